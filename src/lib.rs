//! Tinsmith makes neural networks small and fast on ordinary CPUs, and proves it with measurements.
//!
//! The crate is a house of rooms on six floors; a room uses only rooms that stand above it in this
//! list (`tests/architecture.rs` checks it). `docs/architecture.md` shows what flows between them.
#![deny(unsafe_code)]

// 1 ground
pub mod text;
pub mod units;
pub mod error;
pub mod config;
pub mod monitor;
pub mod save;
pub mod child;
pub mod kernels;
pub mod tensor;
pub mod ops;
pub mod graph;
// 2 files
pub mod formats;
pub mod fetch;
pub mod data;
// 3 engine
pub mod hardware;
pub mod runtime;
pub mod execute;
pub mod evaluate;
pub mod analysis;
pub mod passes;
pub mod export;
// 4 decide
pub mod plan;
pub mod compare;
pub mod report;
// 5 work
pub mod jobs;
pub mod history;
pub mod deploy;
// 6 faces
pub mod cli;
pub mod tui;
