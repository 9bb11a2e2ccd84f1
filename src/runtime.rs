//! ONNX Runtime: finding and installing the library, sessions with pinned threads, per-operator
//! profiles. Model files and tensors enter, tensors and times leave. Knows no job and no recipe.
//!
//! The library is native code that reads untrusted files: it is loaded in worker and child processes
//! only, never in a face, and only after a child has loaded it without dying ([`probe`]). Everything
//! a face may want from it goes through a child process of [`handlers`].

mod cache;
mod exchange;
mod install;
mod locate;
mod native;
mod probe;
mod profile;
pub mod provider;
mod session;
mod settings;

pub use cache::Kept;
pub use install::{VERSION, install};
pub use locate::{Library, Origin, locate};
pub use native::{MINIMUM_MINOR, Runtime};
pub use probe::{Probe, ensure, probe, probe_within};
pub use profile::{OpTime, read_profile};
pub use session::{Dim, Optimization, Port, Prepared, Session, SessionOptions};
pub use settings::SessionSettings;

/// The kinds of work that a child process does for this room.
pub fn handlers() -> Vec<crate::child::Handler> {
    vec![probe::handler(), provider::handler()]
}
