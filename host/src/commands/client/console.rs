//! `pxvm console`: goes to the console of a machine.

use std::io::Write;

use clap::Args;

use super::run;
use crate::cli::FLEET_CODES;
use crate::cli::fleet::one;
use crate::client::Client;
use crate::client::block_on;
use crate::commands::printing;
use crate::console::escape::{self, Action};
use crate::console::keyboard::{self, Typed};
use crate::console::terminal::{self, OutputMode, RawMode};
use crate::error::Error;
use crate::exit::{self, Code, sentence};
use crate::signals;
use crate::stdio::{Stderr, print, say};

/// Bytes of console input that are sent at a time.
const TYPED_AT_ONCE: usize = 4096;

/// `pxvm console`.
#[derive(Debug, Args)]
#[command(
    long_about = "Go to the console of a machine: what it has said, what it says, and a keyboard.\
        \n\nOn a terminal every key goes to the guest; Ctrl-A x leaves it as it is, Ctrl-A h \
        helps. Otherwise standard input is passed on, and the console is followed until Ctrl-C.",
    after_long_help = exit::help(FLEET_CODES)
)]
pub struct Console {
    /// The machine
    #[arg(value_name = "ID", value_parser = one)]
    pub id: u32,
    /// Name of the fleet; needed where several run
    #[arg(long, value_name = "NAME")]
    pub fleet: Option<String>,
}

/// `pxvm console`
pub fn console(args: Console) -> Result<Code, Error> {
    let Console { id, fleet } = args;
    let client = Client::find(fleet.as_deref())?;
    let interactive = terminal::is_interactive();
    // A refusal is printed before the terminal's mode is changed.
    run(async { Ok(client.get(&format!("/api/v1/vms/{id}")).await?) })?;
    if interactive {
        say("pxvm: Ctrl-A x leaves, Ctrl-A h helps");
    }
    let (ender, mut end) = tokio::sync::mpsc::channel(1);
    let on_signal = ender.clone();
    signals::on_interrupt(move || {
        let _ = on_signal.try_send(Code::Interrupted);
    });
    let raw = interactive.then(|| RawMode::enter(OutputMode::Raw)).transpose();
    let raw = raw.map_err(|e| Error::io("set up the terminal", e))?;
    let act = move |action| match action {
        Action::Leave => {
            let _ = ender.try_send(Code::Success);
        }
        Action::Help => {
            let _ = Stderr.write_all(escape::HELP_ATTACHED.as_bytes());
        }
    };
    let typed =
        keyboard::read(interactive, act).map_err(|e| Error::io("read standard input", e))?;
    let typist = client.clone();
    std::thread::Builder::new()
        .name("keyboard".into())
        .spawn(move || type_all(&typist, id, &typed))
        .map_err(|e| Error::io("read the keyboard", e))?;
    let left = run(async {
        let mut follow = client.follow(id).await?;
        let show = async {
            while let Some(bytes) = follow.next().await {
                if !print(&bytes).map_err(printing)? {
                    return Ok(Some(Code::Success));
                }
            }
            Ok(None)
        };
        tokio::select! {
            shown = show => shown,
            // The end of a pipe does not end the console: only a signal or a person does.
            Some(code) = end.recv() => Ok(Some(code)),
        }
    })?;
    drop(raw);
    if interactive {
        let how = if left.is_some() { "left the console" } else { "the fleet has ended" };
        say(&format!("\npxvm: {how}"));
    }
    Ok(left.unwrap_or(Code::Success))
}

/// Sends standard input to the VM, no faster than the VM reads it.
fn type_all(client: &Client, id: u32, typed: &Typed) {
    loop {
        let bytes = typed.take(TYPED_AT_ONCE);
        if !bytes.is_empty() {
            if let Ok(Err(error)) = block_on(client.type_at(id, &bytes)) {
                say(&format!("\r\npxvm: {}\r", sentence(&error)));
            }
        } else if typed.added.recv().is_err() && typed.is_empty() {
            return;
        }
    }
}
