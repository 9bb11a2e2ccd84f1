//! The examples of a bundle. Those in Python and Rust are the same for every bundle and read `session.json`;
//! the one in C++ has names and settings written into it.

use super::card::{Port, Session};
use crate::runtime::Optimization;

const PYTHON: &str = include_str!("../../examples/deploy/example.py");
const RUST: &str = include_str!("../../examples/deploy/main.rs");
const MANIFEST: &str = include_str!("../../examples/deploy/Cargo.toml.in");
const CPP: &str = include_str!("../../examples/deploy/example.cpp.in");

/// File names and texts.
pub(super) fn of(session: &Session) -> Vec<(&'static str, String)> {
    vec![
        ("example.py", PYTHON.to_string()),
        ("example.rs", RUST.to_string()),
        ("Cargo.toml", MANIFEST.to_string()),
        ("example.cpp", cpp(session)),
    ]
}

/// A name as a C++ string literal, quotes included.
fn literal(text: &str) -> String {
    let mut out = String::from("\"");
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(byte)]),
            b' '..=b'~' => out.push(char::from(byte)),
            // Three octal digits end by themselves.
            _ => out.push_str(&format!("\\{byte:03o}")),
        }
    }
    out.push('"');
    out
}

fn element_type(dtype: &str) -> String {
    let name = match dtype {
        "f32" => "FLOAT",
        "f64" => "DOUBLE",
        "f16" => "FLOAT16",
        "bf16" => "BFLOAT16",
        "i8" => "INT8",
        "i16" => "INT16",
        "i32" => "INT32",
        "i64" => "INT64",
        "u8" => "UINT8",
        "u16" => "UINT16",
        "u32" => "UINT32",
        "u64" => "UINT64",
        "bool" => "BOOL",
        _ => "UNDEFINED",
    };
    format!("ONNX_TENSOR_ELEMENT_DATA_TYPE_{name}")
}

fn cpp(session: &Session) -> String {
    let port = |p: &Port| {
        let shape: Vec<String> = p.shape.iter().map(ToString::to_string).collect();
        let (name, file) = (literal(&p.name), literal(&p.file));
        format!("    {{{name}, {}, {{{}}}, {file}}},\n", element_type(&p.dtype), shape.join(", "))
    };
    let outputs: Vec<String> = session.outputs.iter().map(|p| literal(&p.name)).collect();
    let s = &session.settings;
    let flag = |on: bool| if on { "1" } else { "0" };
    let able = |on: bool| if on { "Enable" } else { "Disable" };
    let level = match s.optimization {
        Optimization::None => "ORT_DISABLE_ALL",
        Optimization::Basic => "ORT_ENABLE_BASIC",
        Optimization::Extended => "ORT_ENABLE_EXTENDED",
        Optimization::All => "ORT_ENABLE_ALL",
    };
    // Names come last, so that none of them can hold a mark.
    CPP.replace("@THREADS@", &s.threads.to_string())
        .replace("@BRANCHES@", &s.branches.to_string())
        .replace("@MODE@", if s.branches > 1 { "ORT_PARALLEL" } else { "ORT_SEQUENTIAL" })
        .replace("@LEVEL@", level)
        .replace("@ARENA@", able(s.arena))
        .replace("@PATTERN@", able(s.memory_pattern))
        .replace("@SPINNING@", flag(s.spinning))
        .replace("@NO_PREPACKING@", flag(!s.prepacking))
        .replace("@DENORMALS@", flag(s.denormals_as_zero))
        .replace("@MODEL@", &session.model)
        .replace("@OUTPUTS@", &outputs.join(", "))
        .replace("@INPUTS@", &session.inputs.iter().map(port).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_literals_and_no_mark_stays() {
        assert_eq!(literal("a\"b\\c\nü1"), "\"a\\\"b\\\\c\\012\\303\\2741\"");
        let port =
            Port { name: "x\n\"".into(), dtype: "f32".into(), shape: vec![1, 3], file: "sample/0".into() };
        let session = Session {
            inputs: vec![port.clone()],
            outputs: vec![port],
            ..Session::new("model.onnx", Default::default(), None, None, 0.01)
        };
        let text = cpp(&session);
        assert!(
            text.contains("{\"x\\012\\\"\", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, {1, 3}, \"sample/0\"},")
        );
        assert!(!text.contains('@'), "{text}");
    }
}
