//! Terminal workbench.
