//! This binary again as a child process: limits, death with the parent, a length-capped pipe.
