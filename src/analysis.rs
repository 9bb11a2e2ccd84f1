//! Facts about a graph. A graph enters; a [`Summary`] and coupling groups leave. Knows no pass.

pub mod summary;
pub use summary::{Layer, Summary, ValueInfo};
