//! `pxvm completions` and `pxvm man`, generated from clap's description of the command line.

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use super::Cli;
use super::printing;
use crate::cli::{PLAIN_CODES, long_help};
use crate::error::Error;
use crate::exit::Code;
use crate::stdio::print;

const COMPLETIONS_EXAMPLES: &str = "Example:\n  \
        pxvm completions bash > ~/.local/share/bash-completion/completions/pxvm";

/// `pxvm completions`.
#[derive(Debug, Args)]
#[command(
    after_help = COMPLETIONS_EXAMPLES,
    after_long_help = long_help(COMPLETIONS_EXAMPLES, PLAIN_CODES)
)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

const MAN_EXAMPLES: &str = "Examples:\n  \
        pxvm man | man -l -\n  \
        pxvm man --dir ~/.local/share/man/man1";

/// `pxvm man`.
#[derive(Debug, Args)]
#[command(after_help = MAN_EXAMPLES, after_long_help = long_help(MAN_EXAMPLES, PLAIN_CODES))]
pub struct Man {
    /// Write pxvm.1 and one page for each command to this folder
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Prints a completion script.
pub fn completions(args: Completions) -> Result<Code, Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pxvm", &mut script);
    print(&script).map_err(printing)?;
    Ok(Code::Success)
}

/// Prints the main manual page, or writes all pages.
pub fn man(args: Man) -> Result<Code, Error> {
    match args.dir {
        Some(dir) => std::fs::create_dir_all(&dir)
            .and_then(|()| clap_mangen::generate_to(Cli::command(), &dir))
            .map_err(|e| Error::io(format!("write manual pages to {}", dir.display()), e))?,
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut page)
                .and_then(|()| print(&page))
                .map_err(printing)?;
        }
    }
    Ok(Code::Success)
}
