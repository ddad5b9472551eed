//! Writes the guests of [`pxvm_tests::guests`] to a folder, as ELF files, for `tests/gpu/run.sh`.

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs, io};

use pxvm_tests::guests::{Guest, good, hostile, quiet, semihosting, with_disk};

fn write(folder: &Path, guests: &[Guest]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for Guest { name, elf } in guests {
        fs::write(folder.join(name).with_extension("elf"), elf)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let Some(folder) = env::args_os().nth(1) else {
        eprintln!("usage: guests FOLDER");
        return ExitCode::from(2);
    };
    let folder = Path::new(&folder);
    let all = [
        ("good", good(8)),
        ("hostile", hostile()),
        ("quiet", vec![quiet()]),
        ("disk", with_disk()),
        ("semihosting", vec![semihosting()]),
    ];
    match all.iter().try_for_each(|(name, guests)| write(&folder.join(name), guests)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guests: cannot write to {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}
