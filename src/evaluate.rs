//! Tasks, metrics, parity and statistics. Models and data enter; measurements with raw samples and
//! intervals leave. Knows no job and no recipe.

pub mod accuracy;
pub mod generate;
pub mod measure;
pub mod measurement;
pub mod noise;
pub mod objective;
pub mod parity;
pub mod samples;
pub mod session;
pub mod stats;
pub mod tasks;
pub mod tune;

/// The kinds of work that a child process does for this room.
pub fn handlers() -> Vec<crate::child::Handler> {
    vec![measure::handler(), tasks::handler(), tasks::agreement_handler(), generate::handler()]
}
