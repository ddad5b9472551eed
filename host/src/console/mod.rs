//! Guests' consoles: keyboard and screen, log files, and the line that says a guest is ready.

pub mod escape;
pub mod keyboard;
pub mod log;
pub mod ready;
pub mod screen;
pub mod terminal;
