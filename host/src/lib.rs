//! pxvm as a library: from images to a running fleet.
//!
//! [`image`] reads files, [`machine`] assembles a fleet from them, a [`backend`] executes it,
//! [`engine`] runs it until the user's condition, [`control`] is what users can do to its VMs,
//! [`usage`] keeps what they used of memory;
//! [`console`], [`progress`] and [`report`] show
//! what happens. [`api`] is the HTTP API of a running fleet, and [`client`] uses it. [`commands`]
//! are the subcommands of the program `pxvm`.

pub mod api;
pub mod backend;
pub mod bare;
pub mod calibration;
pub mod choice;
pub mod cli;
pub mod client;
pub mod commands;
pub mod console;
pub mod control;
pub mod dtb;
pub mod engine;
pub mod error;
pub mod exit;
pub mod host;
pub mod image;
pub mod machine;
pub mod net;
pub mod progress;
pub mod report;
pub mod signals;
pub mod stdio;
mod sync;
pub mod trace;
pub mod units;
pub mod usage;
pub mod virtio;
