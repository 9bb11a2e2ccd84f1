//! The executor over `ops`: forward, reverse pass over the graph, optimisers, training loop.
