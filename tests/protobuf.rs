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
    /// The same fields by number, as serialisers write them; varints, lengths and 4-byte fields.
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
            match tag & 7 {
                0 => drop(read(&mut at)),
                2 => {
                    let length = read(&mut at) as usize;
                    at += length;
                }
                _ => at += 4,
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

/// A chain of MatMul, Add and Relu.
pub fn chain(nodes: usize) -> Vec<u8> {
    let mut graph = Msg::new();
    let mut last = "x".to_string();
    for i in 0..nodes {
        let out = format!("layer.{}/value_{i}", i / 3);
        let name = format!("/model/layer.{}/node_{i}", i / 3);
        let n = match i % 3 {
            0 => node("MatMul", &name, &[&last, &format!("w{}", i % 30)], &[&out]),
            1 => node("Add", &name, &[&last, &format!("b{}", i % 30)], &[&out]),
            _ => node("Relu", &name, &[&last], &[&out]),
        };
        graph = graph.msg(1, n);
        last = out;
    }
    for i in (0..30).filter(|i| i % 3 == 0) {
        graph = graph.msg(5, tensor_f32(&format!("w{i}"), &[64, 64], &[0.5; 64 * 64]));
        graph = graph.msg(5, tensor_f32(&format!("b{}", i + 1), &[64], &[0.1; 64]));
    }
    model(graph.text(2, "chain").msg(11, value("x", &[-1, 64])).msg(12, value(&last, &[-1, 64])), 17).0
}

/// One MatMul whose weight is a hole of this many megabytes in a sparse file.
pub fn sparse_model(path: &std::path::Path, megabytes: u64) {
    use std::io::{Seek, SeekFrom, Write};
    let (rows, len) = (megabytes * 256, megabytes << 20);
    let head = Msg::new().int(1, rows as i64).int(1, 1024).int(2, 1).text(8, "w");
    let raw_head = [&[9 << 3 | 2][..], &varint(len)].concat();
    let tensor_len = head.0.len() as u64 + raw_head.len() as u64 + len;
    let rest = Msg::new()
        .msg(1, node("MatMul", "matmul", &["x", "w"], &["y"]))
        .text(2, "g")
        .msg(11, value("x", &[-1, rows as i64]))
        .msg(12, value("y", &[-1, 1024]));
    let tensor_head = [&[5 << 3 | 2][..], &varint(tensor_len)].concat();
    let graph_len = rest.0.len() as u64 + tensor_head.len() as u64 + tensor_len;
    let start = Msg::new().int(1, 8).msg(8, Msg::new().int(2, 17)).raw(&[7 << 3 | 2]).raw(&varint(graph_len));
    let mut file = std::fs::File::create(path).unwrap();
    for piece in [&start.0, &rest.0, &tensor_head, &head.0, &raw_head] {
        file.write_all(piece).unwrap();
    }
    let end = file.seek(SeekFrom::Current(len as i64)).unwrap();
    file.set_len(end).unwrap();
}
