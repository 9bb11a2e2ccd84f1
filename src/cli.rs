//! Command line: parses, calls the rooms below, prints.
