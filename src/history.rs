//! SQLite index over job directories, always rebuildable from them.
