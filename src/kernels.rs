//! Hot numeric loops on slices. Slices enter and leave; no tensor, operator or graph is known here.
