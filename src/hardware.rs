//! What this machine is and what other devices are: instruction sets, caches, cores, limits, measured
//! peaks, device profiles. Knows no model.

pub mod device;
pub mod integer;
pub mod machine;
pub mod peaks;

pub use device::Device;
pub use integer::IntegerSet;
pub use machine::{Caches, Limits, Machine};
pub use peaks::Peaks;
