//! Integration tests, one binary: each module is named after the behaviour that it checks.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

#[path = "architecture.rs"]
mod architecture;
#[path = "jobs.rs"]
mod jobs;

#[path = "onnx.rs"]
mod onnx;
#[path = "checkpoint.rs"]
mod checkpoint;
#[path = "fuzz.rs"]
#[cfg(target_os = "linux")]
mod fuzz;
#[path = "inspection.rs"]
mod inspection;
#[path = "hostile.rs"]
mod hostile;
mod importance;
#[path = "protobuf.rs"]
mod protobuf;
mod recovery;
mod saturation;
mod repair;

#[path = "tui.rs"]
mod tui;

#[path = "cache.rs"]
mod cache;
#[path = "child.rs"]
mod child;
#[path = "runtime.rs"]
mod runtime;
#[path = "cli.rs"]
mod cli;

#[path = "gradients_nn.rs"]
mod gradients_nn;
#[path = "gradients_models.rs"]
mod gradients_models;
#[path = "gradients_attention.rs"]
mod gradients_attention;
#[path = "gradients_pointwise.rs"]
mod gradients_pointwise;
#[path = "gradients_none.rs"]
mod gradients_none;
#[path = "fusion.rs"]
mod fusion;

#[path = "text.rs"]
mod text;
mod text_lines;
mod decoding;

#[path = "conformance.rs"]
mod conformance;
mod deploy;
#[path = "measure.rs"]
mod measure;
#[path = "run.rs"]
mod run;
mod recipe;

#[path = "optimize.rs"]
mod optimize;
mod integer_kernels;
#[path = "quantize.rs"]
mod quantize;
#[path = "sample.rs"]
mod sample;
#[path = "models.rs"]
mod models;
#[path = "gradients_index.rs"]
mod gradients_index;
#[path = "pruning.rs"]
mod pruning;
#[path = "pruning_depth.rs"]
mod pruning_depth;
#[path = "pruning_random.rs"]
mod pruning_random;
mod pruning_faults;
#[path = "contrib.rs"]
mod contrib;
#[path = "lower.rs"]
mod lower;
#[path = "export.rs"]
mod export;
#[path = "transformer.rs"]
mod transformer;
#[path = "pruning_transformer.rs"]
mod pruning_transformer;
#[path = "study.rs"]
mod study;

#[path = "architectures.rs"]
mod architectures;
mod checkpointing;
