//! Facts about a graph. A graph enters; a [`Summary`] and coupling groups leave. Knows no pass.

mod cache;
pub mod diff;
mod live;
mod open;
mod role;
mod sandbox;
pub mod saturation;
mod size;
mod stored;
mod summarize;
pub mod summary;
mod timing;
mod weights;

pub use sandbox::{diff_in_child, handlers, saturation_in_child, summarize_in_child, weight_in_child};
pub use saturation::{SaturatedLayer, Saturation};
pub use size::{dimensions, input_shapes};
pub use stored::summarize_checkpoint;
pub use summarize::{Options, bound, require_known, summarize, summarize_file, summarize_opened};
pub use summary::{Layer, Summary, TensorInfo, Total, ValueInfo};
pub use timing::time_units;
pub use weights::distribution;
