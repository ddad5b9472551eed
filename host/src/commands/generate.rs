//! `pxvm completions` and `pxvm man`, generated from clap's description of the command line.

use clap::CommandFactory;

use super::printing;
use crate::cli::{Cli, Completions, Man};
use crate::exit::{Code, Error};
use crate::stdio::print;

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
