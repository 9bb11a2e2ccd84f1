//! Facts about a graph. A graph enters; a [`Summary`] and coupling groups leave. Knows no pass.

mod live;
mod size;
mod summarize;
pub mod summary;

pub use summarize::{Options, require_known, summarize, summarize_file, summarize_opened};
pub use summary::{Layer, Summary, ValueInfo};
