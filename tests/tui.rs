//! The workbench: state by keys, screens as text, any size, hostile text, and the real program in a PTY.

#[path = "tui/fixtures.rs"]
mod fixtures;
#[path = "tui/flows.rs"]
mod flows;
#[path = "tui/quantised.rs"]
mod quantised;
#[path = "tui/say.rs"]
mod say;
#[path = "tui/map.rs"]
mod map;
#[path = "tui/model_tab.rs"]
mod model_tab;
#[path = "tui/picture.rs"]
mod picture;
#[path = "tui/desk.rs"]
mod desk;
#[path = "tui/pty.rs"]
mod pty;
#[path = "tui/screens.rs"]
mod screens;

use tinsmith::tui::keys_markdown;

/// `UPDATE_DOCS=1` writes the page instead of comparing it.
#[test]
fn the_documented_keys_are_those_of_the_program() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/keys.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, keys_markdown()).unwrap();
    }
    let page = std::fs::read_to_string(path).unwrap();
    assert_eq!(page, keys_markdown(), "docs/keys.md is old; UPDATE_DOCS=1 writes it");
}
