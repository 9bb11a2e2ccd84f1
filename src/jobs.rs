//! Jobs: a directory each, an append-only event log, one reducer, a detached worker, a queue.
//! Requests enter; events, state and artefacts leave. Only the worker computes; the faces submit,
//! look and control. Knows no face.

pub mod checkpoint;
pub mod clock;
pub mod event;
pub mod liveness;
pub mod lock;
pub mod log;
pub mod process;
pub mod queue;
pub mod reporter;
pub mod request;
pub mod state;
pub mod store;
pub mod work;
pub mod worker;

pub use event::{Event, Record};
pub use liveness::Liveness;
pub use log::Tail;
pub use queue::{cancel, delete, dispatch, pause, resume, submit, terminate};
pub use request::Request;
pub use state::{JobState, Phase, Status};
pub use store::{JobHandle, JobId, list, open};
