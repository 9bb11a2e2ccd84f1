//! A room may use only rooms that stand above it in `src/lib.rs`.

use std::{fs, path::Path};

fn rust_files(dir: &Path, out: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn rooms() -> Vec<String> {
    let lib = fs::read_to_string("src/lib.rs").unwrap();
    lib.lines()
        .filter_map(|l| l.trim().strip_prefix("pub mod ")?.strip_suffix(';'))
        .map(str::to_string)
        .collect()
}

#[test]
fn rooms_use_only_rooms_above_them() {
    let rooms = rooms();
    assert!(rooms.len() > 20, "rooms are listed in src/lib.rs");
    let mut files = Vec::new();
    rust_files(Path::new("src"), &mut files);
    let mut faults = Vec::new();
    for file in files {
        let relative = file.strip_prefix("src").unwrap();
        let room = relative.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_string();
        let Some(own) = rooms.iter().position(|r| *r == room) else { continue };
        let text = fs::read_to_string(&file).unwrap();
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            for (at, _) in code.match_indices("crate::") {
                let used: String =
                    code[at + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if let Some(other) = rooms.iter().position(|r| *r == used)
                    && other > own
                {
                    faults.push(format!(
                        "{}:{}: {room} uses {used}, which stands below it",
                        file.display(),
                        number + 1
                    ));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn faces_alone_know_the_terminal_and_do_not_know_each_other() {
    let mut files = Vec::new();
    rust_files(Path::new("src"), &mut files);
    for file in files {
        let name = file.to_string_lossy().replace('\\', "/");
        let text = fs::read_to_string(&file).unwrap();
        let face = ["src/cli", "src/tui", "src/web", "src/main.rs"].iter().any(|f| name.starts_with(f));
        for word in ["ratatui::", "crossterm::", "clap::", "axum::"] {
            assert!(face || !text.contains(word), "{name} uses {word} outside the faces");
        }
        if name.starts_with("src/tui") {
            assert!(!text.contains("crate::cli"), "{name}: the workbench knows the command line");
        }
    }
}

#[test]
fn every_module_opens_with_what_it_is() {
    let mut files = Vec::new();
    rust_files(Path::new("src"), &mut files);
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        assert!(
            text.trim_start().starts_with("//!") || file.ends_with("onnx_proto.rs"),
            "{}: no module doc",
            file.display()
        );
    }
}
