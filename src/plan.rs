//! Goals, recipes, recommendation. A summary and a device enter; ranked proposals leave.

pub mod check;
pub mod cost;
mod float;
pub mod goal;
pub mod proposal;
pub mod recipe;
pub mod recommend;
mod rules;
pub mod study;

pub use cost::DeviceFacts;
pub use goal::Goal;
pub use proposal::{Confidence, Proposal};
pub use recipe::{DataSpec, Recipe, Step};
pub use recommend::{Question, Recommendation, Tried, recommend};
pub(crate) use rules::expected_loss;
pub use study::handlers;
