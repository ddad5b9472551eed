//! Properties of the host: memory, cores, open files, random numbers.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::rand::GetRandomFlags;

use crate::units::Size;

/// Returns the memory that programs can still get without swapping.
pub fn memory_available() -> Size {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    // Without the file (the host is not Linux): half of a small host's memory.
    meminfo(&info, "MemAvailable:").unwrap_or(Size::mib(4096))
}

/// Returns the size of the host's memory.
pub fn memory_total() -> Option<Size> {
    meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

fn meminfo(text: &str, key: &str) -> Option<Size> {
    let line = text.lines().find(|l| l.starts_with(key))?;
    let kib: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(Size(kib << 10))
}

/// Returns how many threads run at once.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Raises the limit of open files as high as the host allows. Returns it, unless there is none.
pub fn raise_open_files() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(_) => current,
    }
}

/// Returns random bytes of cryptographic quality.
pub fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    // Up to this length getrandom(2) is never interrupted.
    const { assert!(N <= 256) };
    let mut bytes = [0; N];
    rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_kib() {
        let text = "MemTotal:       24000000 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(meminfo(text, "MemAvailable:"), Some(Size::mib(2)));
        assert_eq!(meminfo(text, "SwapFree:"), None);
    }
}
