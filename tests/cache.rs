//! Models, data and the runtime library that tests fetch once: `$TINSMITH_TEST_CACHE`, or
//! `target/test-cache`.

use std::path::PathBuf;
use tinsmith::config::Paths;
use tinsmith::fetch::{Fetched, fetch};
use tinsmith::monitor::Silent;
use tinsmith::runtime::{self, Library, Runtime};

pub fn paths() -> Paths {
    tinsmith::child::set_program(env!("CARGO_BIN_EXE_tinsmith"));
    // An empty variable is none: it would put the cache where the tests run.
    let given = std::env::var_os("TINSMITH_TEST_CACHE").filter(|dir| !dir.is_empty());
    let dir = given.map_or_else(
        || PathBuf::from(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("test-cache"),
        PathBuf::from,
    );
    Paths::under(&dir)
}

/// A model or data set by name. Fails the test where it cannot be had.
pub fn fetched(name: &str) -> Fetched {
    fetch(name, &paths(), &Silent).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The installed runtime library.
pub fn library() -> Library {
    runtime::install(&paths(), &Silent).unwrap_or_else(|e| panic!("ONNX Runtime: {e}"))
}

/// The runtime, loaded into the test's process.
pub fn runtime() -> Runtime {
    Runtime::open(&library()).unwrap_or_else(|e| panic!("ONNX Runtime: {e}"))
}
