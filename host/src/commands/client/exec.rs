//! `pxvm exec`: runs a command in the shell of a machine.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use regex::bytes::Regex;
use serde_json::json;
use tokio::sync::Notify;

use super::run;
use crate::cli::fleet::one;
use crate::cli::{Codes, INTERRUPTED, seconds};
use crate::cli::{FleetArgs, long_help};
use crate::client::Client;
use crate::client::exec::{self, prompt::Line};
use crate::commands::printing;
use crate::error::Error;
use crate::exit::Code;
use crate::report::print_json;
use crate::signals;
use crate::stdio::{print, say};

const EXAMPLES: &str = "Examples:\n  \
        pxvm exec 3 -- uname -a\n  \
        pxvm exec 3 -- 'ps | grep -c nginx'\n  \
        pxvm exec 3 --timeout 5 --json -- ping -c 1 10.0.2.2";

const CODES: &Codes = &[
    (Code::Success, "the command succeeded; any other number: its own exit code"),
    (Code::Failure, "the machine takes no command: a wrong state, no shell at its prompt"),
    (Code::Usage, "wrong usage; no such fleet or machine"),
    (Code::Timeout, "--timeout expired first; the command was interrupted"),
    (Code::Guest, "the machine ended or started again meanwhile"),
    INTERRUPTED,
];

/// Output of a command that is kept for the report.
const OUTPUT_MAX: usize = 16 << 20;

/// `pxvm exec`.
#[derive(Debug, Args)]
#[command(
    long_about = "Run a command in a machine's shell, by way of its console, and print its output. \
        The shell must be at its prompt.\n\nThe words of the command are put together with \
        spaces and read by the guest's shell. It has no input; its standard error is part of the \
        output. The exit code is the command's own; should something else fail, a message on \
        standard error says so.",
    after_help = EXAMPLES,
    after_long_help = format!("{}\n\nThe command can end with the same numbers; --json tells \
        them apart.", long_help(EXAMPLES, CODES))
)]
pub struct Exec {
    /// The machine
    #[arg(value_name = "ID", value_parser = one)]
    pub id: u32,
    /// The command
    #[arg(value_name = "CMD", required = true, last = true)]
    pub command: Vec<String>,
    /// Give up after this many seconds (exit code 3); the command gets a Ctrl-C
    #[arg(long, value_name = "SECS", value_parser = seconds, default_value = "60")]
    pub timeout: Duration,
    /// Regular expression for the line with the shell's prompt; with an empty one the command is
    /// typed at whatever runs there
    #[arg(long, value_name = "REGEX", default_value = Line::DEFAULT)]
    pub prompt: Regex,
    /// Which fleet.
    #[command(flatten)]
    pub fleet: FleetArgs,
}

/// `pxvm exec`
pub fn exec(args: Exec) -> Result<Code, Error> {
    let Exec { id, command, timeout, prompt, fleet: FleetArgs { fleet, json } } = args;
    let client = Client::find(fleet.as_deref())?;
    let command = command.join(" ");
    let (mut output, mut truncated) = (Vec::new(), false);
    let mut broken = None;
    let interrupt = Arc::new(Notify::new());
    let ring = Arc::clone(&interrupt);
    let mut signals = 0;
    signals::on_interrupt(move || {
        signals += 1;
        if signals > 1 {
            say(&format!("pxvm: interrupted; the command may go on in vm{id}"));
            signals::end();
        }
        ring.notify_one();
    });
    let options = exec::Options { timeout, prompt, interrupt: &interrupt };
    let status = run(async {
        let take = |bytes: &[u8]| {
            if json {
                let room = OUTPUT_MAX - output.len();
                truncated |= bytes.len() > room;
                output.extend_from_slice(&bytes[..bytes.len().min(room)]);
            } else if let Err(error) = print(bytes) {
                // The command continues in any case.
                broken.get_or_insert(error);
            }
            Ok(())
        };
        Ok(exec::run(&client, id, &command, options, take).await?)
    })?;
    if json {
        let output = String::from_utf8_lossy(&output);
        let mut report = json!({ "id": id, "status": status, "output": output });
        if truncated {
            report["truncated"] = true.into();
        }
        print_json(&report).map_err(printing)?;
    }
    match broken {
        Some(error) => Err(printing(error)),
        None => Ok(Code::Status(status)),
    }
}
