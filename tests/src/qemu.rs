//! QEMU's `virt` machine as an oracle: runs an image and gives back its RAM.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The program; `PXVM_QEMU` names another.
fn program() -> String {
    std::env::var("PXVM_QEMU").unwrap_or_else(|_| "qemu-system-riscv32".into())
}

/// The version line, or why there is no QEMU.
pub fn version() -> io::Result<String> {
    let output = Command::new(program()).arg("--version").output().map_err(|e| {
        io::Error::new(e.kind(), format!("{e}; on Debian 12 tests/install.sh installs it"))
    })?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

/// The same extensions as ours, and A and D set by hardware.
const CPU: &str =
    "rv32i,m=on,a=on,zicsr=on,zifencei=on,zicntr=on,s=on,u=on,mmu=on,pmp=on,sv32=on,svadu=on";
const RAM_SIZE: u64 = 16 << 20;
const TIMEOUT: Duration = Duration::from_secs(15);

/// Runs `image` from the start of RAM until it powers off, and returns what RAM then holds in its
/// place, as many bytes as the image has.
///
/// RAM is a file in `dir` that QEMU maps, so nothing needs to be transferred.
pub fn run(image: &[u8], dir: &Path) -> io::Result<Vec<u8>> {
    let ram = dir.join("ram");
    fs::write(&ram, image)?;
    fs::OpenOptions::new().write(true).open(&ram)?.set_len(RAM_SIZE)?;
    let backend =
        format!("memory-backend-file,id=ram,size={RAM_SIZE},mem-path={},share=on", ram.display());
    let mut child = Command::new(program())
        .args(["-machine", "virt,memory-backend=ram", "-m", "16M", "-object", &backend])
        .args(["-cpu", CPU, "-bios", "none", "-display", "none", "-serial", "none"])
        .args(["-monitor", "none", "-no-reboot"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if start.elapsed() > TIMEOUT {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    if !status.is_some_and(|s| s.success()) {
        let mut text = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            io::Read::read_to_string(&mut stderr, &mut text)?;
        }
        return Err(io::Error::other(format!("QEMU ended with {status:?}: {text}")));
    }
    let mut bytes = fs::read(&ram)?;
    bytes.truncate(image.len());
    Ok(bytes)
}
