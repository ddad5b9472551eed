//! Guests' consoles: the terminal, log files, and the line that says a guest is ready.

pub mod escape;
pub mod log;
pub mod ready;
pub mod terminal;
