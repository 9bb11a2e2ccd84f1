//! A small protobuf writer, so that tests can make ONNX files of any kind, wrong ones included.

/// A message in the making.
#[derive(Clone, Default)]
pub struct Msg(pub Vec<u8>);

pub fn varint(mut v: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while v >= 0x80 {
        out.push((v & 0x7f) as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
    out
}

impl Msg {
    pub fn new() -> Msg {
        Msg::default()
    }
    pub fn raw(mut self, bytes: &[u8]) -> Msg {
        self.0.extend_from_slice(bytes);
        self
    }
    pub fn int(self, field: u32, v: i64) -> Msg {
        let tag = varint(u64::from(field) << 3);
        self.raw(&tag).raw(&varint(v as u64))
    }
    pub fn bytes(self, field: u32, v: &[u8]) -> Msg {
        let tag = varint(u64::from(field) << 3 | 2);
        self.raw(&tag).raw(&varint(v.len() as u64)).raw(v)
    }
    pub fn text(self, field: u32, v: &str) -> Msg {
        self.bytes(field, v.as_bytes())
    }
    pub fn msg(self, field: u32, v: Msg) -> Msg {
        self.bytes(field, &v.0)
    }
    /// The same fields by number, as serialisers write them; fields with a length and varints only.
    pub fn sorted(self) -> Msg {
        let read = |at: &mut usize| {
            let (mut v, mut shift) = (0u64, 0);
            loop {
                let b = self.0[*at];
                *at += 1;
                v |= u64::from(b & 0x7f) << shift;
                shift += 7;
                if b < 0x80 {
                    return v;
                }
            }
        };
        let (mut fields, mut at) = (Vec::new(), 0);
        while at < self.0.len() {
            let start = at;
            let tag = read(&mut at);
            let v = read(&mut at);
            if tag & 7 == 2 {
                at += v as usize;
            }
            fields.push((tag >> 3, &self.0[start..at]));
        }
        fields.sort_by_key(|(n, _)| *n);
        Msg(fields.into_iter().flat_map(|(_, b)| b.iter().copied()).collect())
    }
    pub fn f32(self, field: u32, v: f32) -> Msg {
        let tag = varint(u64::from(field) << 3 | 5);
        self.raw(&tag).raw(&v.to_le_bytes())
    }
    pub fn each(self, field: u32, all: impl IntoIterator<Item = Msg>) -> Msg {
        all.into_iter().fold(self, |m, v| m.msg(field, v))
    }
}

/// ModelProto of IR 8 around a graph.
pub fn model(graph: Msg, opset: i64) -> Msg {
    Msg::new().int(1, 8).text(2, "test").msg(7, graph).msg(8, Msg::new().text(1, "").int(2, opset))
}

/// NodeProto.
pub fn node(op: &str, name: &str, inputs: &[&str], outputs: &[&str]) -> Msg {
    let m = inputs.iter().fold(Msg::new(), |m, i| m.text(1, i));
    let m = outputs.iter().fold(m, |m, o| m.text(2, o));
    let m = if name.is_empty() { m } else { m.text(3, name) };
    m.text(4, op)
}

/// TensorProto with raw data.
pub fn tensor(name: &str, dtype: i64, dims: &[i64], raw: &[u8]) -> Msg {
    dims.iter().fold(Msg::new(), |m, d| m.int(1, *d)).int(2, dtype).text(8, name).bytes(9, raw)
}

/// TensorProto of f32.
pub fn tensor_f32(name: &str, dims: &[i64], values: &[f32]) -> Msg {
    let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    tensor(name, 1, dims, &raw)
}

/// ValueInfoProto of f32; negative dimensions are symbols `s1`, `s2`.
pub fn value(name: &str, dims: &[i64]) -> Msg {
    let shape = Msg::new().each(
        1,
        dims.iter()
            .map(|d| if *d < 0 { Msg::new().text(2, &format!("s{}", -d)) } else { Msg::new().int(1, *d) }),
    );
    let ty = Msg::new().msg(1, Msg::new().int(1, 1).msg(2, shape));
    Msg::new().text(1, name).msg(2, ty)
}
