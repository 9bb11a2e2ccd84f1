//! Graph to graph: prune, quantize, optimize, lower.
