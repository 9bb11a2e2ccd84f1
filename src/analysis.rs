//! Facts about a graph. A graph enters; a [`Summary`] and coupling groups leave. Knows no pass.

mod live;
mod sandbox;
mod size;
mod summarize;
pub mod summary;

pub use sandbox::{handlers, summarize_in_child};
pub use summarize::{Options, require_known, summarize, summarize_file, summarize_opened};
pub use summary::{Layer, Summary, ValueInfo};
