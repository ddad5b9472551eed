//! `tests/foreign/run.py`, with a guest of our own in place of those that others made.

mod common;

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use emu_core::layout::VIRT;
    use pxvm_tests::asm::{Asm, reg::*};
    use pxvm_tests::machine::RAM;
    use pxvm_tests::{elf, needs};

    /// Asks for a key, says which one it got, and powers off.
    fn asks() -> Vec<u8> {
        const POWER_OFF: u32 = 0x5555;
        const LINE_STATUS: i32 = 5;
        const DATA_READY: i32 = 1;
        let words = Asm::build(RAM, |a| {
            a.li(S0, VIRT.uart.base);
            for letter in *b"key? " {
                a.li(T0, letter.into()).sb(T0, 0, S0);
            }
            let wait = a.mark();
            a.lbu(T0, LINE_STATUS, S0).andi(T0, T0, DATA_READY).beq(T0, ZERO, wait);
            a.lbu(T0, 0, S0).sb(T0, 0, S0).store_li(VIRT.finisher.base, POWER_OFF).stop();
        });
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        elf::executable(RAM, &bytes, RAM)
    }

    /// Runs a table of guests. Returns the exit code and the output.
    fn foreign(folder: &Path, table: &str, no_skip: &str) -> (i32, String) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/foreign/run.py");
        let path = folder.join("guests.conf");
        std::fs::write(&path, table).unwrap();
        let mut command = Command::new("python3");
        command.args([script, "--table", path.to_str().unwrap(), env!("CARGO_BIN_EXE_pxvm")]);
        command.arg(folder).env("PXVM_NO_SKIP", no_skip);
        command.env("XDG_STATE_HOME", env!("CARGO_TARGET_TMPDIR"));
        let (code, out, err) = super::common::run(&mut command);
        (code, out + &err)
    }

    #[test]
    fn the_runner_of_foreign_guests_types_waits_and_tells_what_is_wrong() {
        if !needs::program("python3") {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("asks.elf"), asks()).unwrap();
        let guest = |name: &str, file: &str, script: &str| {
            format!("[{name}]\npatience = 60\npxvm = boot --firmware @{file}\nscript =\n{script}\n")
        };
        let good = guest(
            "good",
            "asks.elf",
            "    see key\n    see \\? $\n    type x\n    see x\n    exit 0",
        );

        let (code, out) = foreign(folder.path(), &good, "");
        assert!(code == 0 && out.contains("1 passed, 0 failed, 0 skipped"), "{out}");

        // What was seen is not seen again.
        let order = guest("order", "asks.elf", "    see \\?\n    type y\n    see key");
        let status = guest("status", "asks.elf", "    see key\n    type z\n    exit 4");
        let (code, out) = foreign(folder.path(), &(good.clone() + &order + &status), "");
        assert!(code == 1 && out.contains("1 passed, 2 failed, 0 skipped"), "{out}");
        assert!(out.contains("order in pxvm: it ended without 'key'"), "{out}");
        assert!(out.contains("--- console:") && out.contains("key? y"), "{out}");
        assert!(out.contains("status in pxvm: exit code 0 where 4 was expected"), "{out}");

        let absent = good + &guest("absent", "nowhere.elf", "    exit 0");
        let (code, out) = foreign(folder.path(), &absent, "");
        assert!(code == 0 && out.contains("not run: no nowhere.elf"), "{out}");
        assert!(out.contains("1 passed, 0 failed, 1 skipped"), "{out}");
        let (code, out) = foreign(folder.path(), &absent, "1");
        assert!(code == 1, "{out}");
    }
}
