//! The formats on one small table with hostile text.

use super::*;

fn sample() -> Report {
    let mut table = Table::new(&[("name", "<name"), ("latency_ms", "latency ms")]);
    table.push([Cell::text("plain"), Cell::value(1.25, "1.250")]);
    table.push([Cell::text("a,\"b\"\u{1b}[2J|日本"), Cell::empty()]);
    Report::new(&serde_json::json!({"schema_version": 1, "name": "x\u{9b}\u{202e}y"}))
        .unwrap()
        .heading("title")
        .facts([("model", "m.onnx".to_string()), ("empty", String::new())])
        .table(table)
        .line("a line of prose that is somewhat longer than a narrow terminal")
}

#[test]
fn text_is_aligned_and_fits_the_width() {
    insta::assert_snapshot!(sample().render(Format::Text, None), @r#"
    title
    model  m.onnx

    name                 latency ms
    plain                     1.250
    a,"b"\u{1b}[2J|日本           -

    a line of prose that is somewhat longer than a narrow terminal
    "#);
    for width in 20..60 {
        for line in sample().render(Format::Text, Some(width)).lines() {
            assert!(crate::text::columns(line) <= width, "{width}: {line:?}");
        }
    }
}

#[test]
fn csv_quotes_and_markdown_escapes() {
    assert_eq!(
        sample().render(Format::Csv, None),
        "name,latency_ms\nplain,1.25\n\"a,\"\"b\"\"\\u{1b}[2J|日本\",\n"
    );
    let md = sample().render(Format::Md, None);
    assert!(md.contains("| name | latency ms |\n| --- | ---: |\n| plain | 1.250 |"), "{md}");
    assert!(md.contains("\\|"), "{md}");
}

#[test]
fn no_format_lets_control_characters_through_and_json_keeps_the_value() {
    for (name, format) in Format::NAMES {
        let out = sample().render(format, None);
        assert!(out.ends_with('\n'));
        assert!(!out.chars().any(|c| c != '\n' && crate::text::is_unsafe(c)), "{name}: {out:?}");
    }
    let json: Value = serde_json::from_str(&sample().render(Format::Json, None)).unwrap();
    assert_eq!(json["name"], "x\u{9b}\u{202e}y");
    let line: Value = serde_json::from_str(&sample().render(Format::Jsonl, None)).unwrap();
    assert_eq!(line, json);
}
