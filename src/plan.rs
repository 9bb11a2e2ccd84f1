//! Goals, recipes, recommendation. A summary and a device enter; ranked proposals leave.

pub mod goal;
pub mod proposal;
pub mod recipe;

pub use goal::Goal;
pub use proposal::{Confidence, Proposal};
pub use recipe::{DataSpec, Recipe, Step};
