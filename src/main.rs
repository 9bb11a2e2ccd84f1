//! The `tinsmith` binary: hands over to the command line, or to a worker where it was started as one.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match tinsmith::jobs::worker::invoked(std::env::args_os()) {
        Some(code) => ExitCode::from(code),
        None => tinsmith::cli::main(),
    }
}
