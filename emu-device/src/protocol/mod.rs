//! What host and device exchange: arguments of a launch, input to VMs, and their output.
//!
//! Each record has both of its ends in one file: the device's, and with the feature `host` the
//! host's.

pub mod inbox;
pub mod launch;
pub mod outbox;
pub mod port;

/// The alignment of records in the log, and of the parts of the inbox.
pub const RECORD_ALIGN: u32 = 8;
