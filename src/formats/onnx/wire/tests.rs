//! Files made for the walk, good and bad.

use super::*;
use crate::error::Kind as ErrorKind;
use crate::formats::onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto};
use prost::Message as _;

fn walk_bytes(bytes: &[u8]) -> Result<Walk> {
    walk_with(bytes, &Limits::default())
}

fn walk_with(bytes: &[u8], limits: &Limits) -> Result<Walk> {
    let read = |at: u64, out: &mut [u8]| {
        out.copy_from_slice(&bytes[at as usize..at as usize + out.len()]);
        Ok(())
    };
    walk(bytes.len() as u64, &read, limits)
}

fn sample() -> ModelProto {
    let tensor = |name: &str, n: usize, doc: Option<&str>| TensorProto {
        dims: vec![n as i64],
        data_type: Some(2),
        name: Some(name.into()),
        raw_data: Some(vec![n as u8; n].into()),
        doc_string: doc.map(str::to_string),
        ..Default::default()
    };
    ModelProto {
        ir_version: Some(8),
        producer_name: Some("test".into()),
        graph: Some(GraphProto {
            name: Some("g".into()),
            initializer: vec![
                tensor("large", 300_000, Some("after the data")),
                tensor("small", 10, None),
                tensor("edge", LARGE as usize, None),
                TensorProto {
                    dims: vec![2000],
                    data_type: Some(1),
                    name: Some("typed".into()),
                    float_data: (0..2000).map(|v| v as f32).collect(),
                    ..Default::default()
                },
            ],
            node: vec![NodeProto {
                op_type: Some("Relu".into()),
                input: vec!["a".into(), String::new()],
                output: vec!["b".into()],
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn join(bytes: &[u8], walked: &Walk, skeleton: &[u8]) -> Vec<u8> {
    let (pieces, total) =
        splice(skeleton, &|n| walked.payloads.get(n as usize).map(|p| (p.field, p.len))).unwrap();
    let mut out = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Skeleton(r) => out.extend_from_slice(&skeleton[r]),
            Piece::Bytes(b) => out.extend(b),
            Piece::Payload(n) => {
                let p = walked.payloads[n as usize];
                out.extend_from_slice(&bytes[p.offset as usize..(p.offset + p.len) as usize]);
            }
        }
    }
    assert_eq!(out.len() as u64, total);
    out
}

#[test]
fn a_file_taken_apart_and_spliced_is_the_same_file() {
    let bytes = sample().encode_to_vec();
    let walked = walk_bytes(&bytes).unwrap();
    assert_eq!(walked.payloads.iter().map(|p| p.len).collect::<Vec<_>>(), [300_000, LARGE, 8000]);
    assert!(walked.skeleton.len() < 300);
    let model = ModelProto::decode(walked.skeleton.clone()).unwrap();
    let graph = model.graph.as_ref().unwrap();
    assert_eq!(graph.initializer[0].payload, [0]);
    assert_eq!(graph.initializer[2].payload, [1]);
    assert_eq!(graph.node[0].input, ["a", ""]);
    assert!(join(&bytes, &walked, &model.encode_to_vec()) == bytes);
}

#[test]
fn damage_is_named_with_offset_and_field() {
    let cases: [(&[u8], &str, &str); 9] = [
        (&[0x08, 0x80], "ONNX-VARINT", "at byte 1"),
        (&[0x08, 1, 0x28, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1], "ONNX-VARINT", "at byte 3"),
        (&[0x08, 1, 0x00, 0], "ONNX-FIELD", "at byte 2"),
        (&[0x08, 1, 0x0b], "ONNX-GROUP", "at byte 2"),
        (&[0x08, 1, 0x3d, 0, 0, 0, 0], "ONNX-WIRE", "graph: the field has a wrong wire type at byte 2"),
        (&[0x08, 1, 0x0f], "ONNX-WIRE", "at byte 2"),
        (&[0x3a, 9, 0x0a, 1], "ONNX-LENGTH", "graph: the field is longer"),
        (&[0x3a, 4, 0x0a, 2, 0x1a, 5], "ONNX-LENGTH", "graph.node[0].name: "),
        (&[0x3a, 5, 0x0a, 3, 0x1a, 1, 0xff], "ONNX-UTF8", "graph.node[0].name: text is not UTF-8 at byte 6"),
    ];
    for (bytes, code, text) in cases {
        let e = walk_bytes(bytes).unwrap_err();
        assert_eq!(e.code(), code, "{e}");
        assert_eq!(e.kind(), ErrorKind::Invalid);
        assert!(e.to_string().contains(text), "{e} lacks {text}");
    }
    let twice = [0x08, 1, 0x08, 2];
    assert_eq!(walk_bytes(&twice).unwrap_err().code(), "ONNX-TWICE");
}

#[test]
fn unknown_fields_are_reported_and_left_out() {
    let mut bytes = sample().encode_to_vec();
    bytes.extend([0xf8, 0x07, 5]); // field 127, varint
    bytes.extend([0xfa, 0x07, 2, 1, 2]);
    let walked = walk_bytes(&bytes).unwrap();
    assert_eq!(walked.unknown, [("ModelProto field 127".to_string(), 2)]);
    assert_eq!(ModelProto::decode(walked.skeleton).unwrap().producer_name.as_deref(), Some("test"));
}

#[test]
fn a_payload_marker_inside_a_file_is_an_unknown_field() {
    let mut model = sample();
    model.graph.as_mut().unwrap().initializer[1].payload = vec![0];
    let walked = walk_bytes(&model.encode_to_vec()).unwrap();
    assert_eq!(walked.unknown.len(), 1);
    let decoded = ModelProto::decode(walked.skeleton).unwrap();
    assert!(decoded.graph.unwrap().initializer[1].payload.is_empty());
}

#[test]
fn depth_is_limited_without_recursion() {
    let nested = |levels: usize| {
        // TypeProto.sequence_type.elem_type ... two messages a level, then graph.input.type around it.
        let mut inner: Vec<u8> = Vec::new();
        for i in 0..levels {
            let mut outer = vec![if i % 2 == 0 { 0x0a } else { 0x22 }];
            put_varint(&mut outer, inner.len() as u64);
            outer.extend(&inner);
            inner = outer;
        }
        for tag in [0x12u8, 0x5a, 0x3a] {
            let mut outer = vec![tag];
            put_varint(&mut outer, inner.len() as u64);
            outer.extend(&inner);
            inner = outer;
        }
        inner
    };
    let bytes = nested(96);
    let walked = walk_bytes(&bytes).unwrap();
    ModelProto::decode(walked.skeleton).unwrap();
    assert_eq!(walk_bytes(&nested(98)).unwrap_err().code(), "ONNX-DEPTH");
    assert_eq!(walk_bytes(&nested(20_000)).unwrap_err().code(), "ONNX-DEPTH");
}

#[test]
fn bombs_are_refused_by_count_and_size() {
    let wrap = |body: Vec<u8>| {
        let mut out = vec![0x3a];
        put_varint(&mut out, body.len() as u64);
        out.extend(body);
        out
    };
    let limits = Limits { nodes: 1000, items: 1000, ..Limits::default() };
    let nodes = wrap([0x0a, 0].repeat(1001));
    let e = walk_with(&nodes, &limits).unwrap_err();
    assert_eq!((e.kind(), e.code()), (ErrorKind::Limit, "LIMIT"));
    assert!(e.to_string().contains("TINSMITH_LIMITS=nodes=") && e.to_string().contains("graph"), "{e}");
    let mut strings = vec![0x0a];
    put_varint(&mut strings, 2002);
    strings.extend([0x0a, 0].repeat(1001));
    assert_eq!(walk_with(&wrap(strings), &limits).unwrap_err().kind(), ErrorKind::Limit);
    let small = Limits { memory_bytes: 10_000, ..Limits::default() };
    assert_eq!(walk_with(&nodes, &small).unwrap_err().kind(), ErrorKind::Limit);
}

#[test]
fn packed_numbers_unpack_and_damage_is_seen() {
    assert_eq!(unpack(&[1, 0xac, 2], 9), Some(vec![1, 300]));
    assert_eq!(unpack(&[1, 1], 1), None);
    assert_eq!(unpack(&[0x80], 9), None);
    assert_eq!(unpack(&[0xff; 11], 9), None);
}
