//! Subcommands that act on a fleet that runs already.

mod add;
mod command;
mod console;
mod exec;
mod logs;
mod ps;

pub use self::add::{Add, add};
pub use self::command::{FleetCommand, command};
pub use self::console::{Console, console};
pub use self::exec::{Exec, exec};
pub use self::logs::{Logs, logs};
pub use self::ps::{Ps, ps};

use crate::client::block_on;
use crate::error::Error;

fn run<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    block_on(work).map_err(|e| Error::io("talk to the fleet", e))?
}
