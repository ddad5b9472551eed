//! Guests' consoles: keyboard input, screen output, log files, and the pattern that shows that a
//! guest is ready.

pub mod escape;
pub mod keyboard;
pub mod log;
pub mod plain;
pub mod ready;
pub mod screen;
pub mod sequence;
pub mod terminal;
pub mod warning;
