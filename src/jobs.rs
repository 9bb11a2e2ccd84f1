//! Jobs: a directory each, an append-only event log, one reducer, a detached worker, a queue.
//! Recipes and options enter; events, state and artefacts leave. Knows no face.

pub mod event;
pub mod state;

pub use event::{Event, Record};
pub use state::{JobState, Phase, Status};
