//! What guests used of memory in earlier runs: a small file for each guest, in a folder of the cache.
//!
//! It decides how many VMs a device is expected to have room for. A file is replaced as a whole, and
//! read with suspicion: one that is damaged is no file, and the next run makes a new one.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::machine::{Expected, Fleet, Link, Source};
use crate::units::hex;

/// Version of the files, to be raised when their content gets another meaning.
const FORMAT: u32 = 1;
/// Largest file that is read.
const SIZE_MAX: u64 = 256;
/// Largest number of files. There is one for each guest, and command lines make many guests.
const FILES_MAX: usize = 256;
/// The most frames that a VM can have: 4 GiB of RAM, and as much of a disk.
const FRAMES_MAX: u32 = 1 << 21;

/// Private frames that the VMs of a fleet used, on average.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// When all were ready.
    pub ready: u32,
    /// At the most.
    pub most: u32,
}

/// Content of a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    format: u32,
    usage: Usage,
}

/// The file of a guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UsageFile(PathBuf);

impl UsageFile {
    /// Returns the file, in `folder`, of what `fleet` runs: its images, memory and command line, and
    /// `ready`, the pattern that shows that it is ready. How many VMs there are does not count.
    pub fn of(folder: &Path, fleet: &Fleet, ready: &str) -> Self {
        let mut digest = Sha256::new();
        digest.update(&fleet.base.frames);
        digest.update(fleet.base.pages().to_le_bytes());
        digest.update((fleet.base.rom.len() as u64).to_le_bytes());
        let disk = fleet.disks.is_some();
        digest.update([u8::from(fleet.link == Link::Up), u8::from(disk)]);
        digest.update((fleet.append.len() as u64).to_le_bytes());
        digest.update(&fleet.append);
        digest.update(ready);
        Self(folder.join(format!("{}.json", &hex(&digest.finalize())[..16])))
    }

    /// Returns what the guest used; `None` if that is not known.
    pub fn read(&self) -> Option<Usage> {
        let found = self.0.metadata().ok()?;
        if !found.is_file() || found.len() > SIZE_MAX {
            return None;
        }
        let mut bytes = Vec::new();
        File::open(&self.0).ok()?.take(SIZE_MAX).read_to_end(&mut bytes).ok()?;
        let Content { format, usage } = serde_json::from_slice(&bytes).ok()?;
        let possible = 1 <= usage.ready && usage.ready <= usage.most && usage.most <= FRAMES_MAX;
        (format == FORMAT && possible).then_some(usage)
    }

    /// Keeps what the guest used in a run. The most of all runs is kept.
    pub fn note(&self, now: Usage) -> io::Result<()> {
        let before = self.read();
        let most = now.most.max(now.ready).max(before.map_or(0, |usage| usage.most));
        let usage = Usage { most, ..now };
        if before == Some(usage) {
            return Ok(());
        }
        let folder = self.0.parent().unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        remove_old(folder)?;
        let text = serde_json::to_vec(&Content { format: FORMAT, usage })?;
        // Another process may write the same file.
        let new = self.0.with_extension(format!("{}.new", process::id()));
        let written = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| fs::rename(&new, &self.0));
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    }
}

/// Makes room for one more file, if there are many: removes those written longest ago.
fn remove_old(folder: &Path) -> io::Result<()> {
    let files = folder.read_dir()?.flatten();
    let mut files: Vec<_> = files
        .filter_map(|file| Some((file.metadata().ok()?.modified().ok()?, file.path())))
        .collect();
    files.sort_unstable();
    for (_, path) in files.iter().take((files.len() + 1).saturating_sub(FILES_MAX)) {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// Sets what is expected of a fleet's VMs to what they used in earlier runs, unless the user has
/// said what to expect.
pub fn expect(fleet: &mut Fleet, file: &UsageFile) {
    if fleet.expected.source != Source::Given
        && let Some(Usage { ready, most }) = file.read()
    {
        fleet.expected = Expected { frames: ready, most: Some(most), source: Source::EarlierRuns };
    }
}

#[cfg(test)]
mod tests {
    use emu_core::layout::MachineKind;

    use super::*;
    use crate::image::{Payload, Segment};
    use crate::units::Size;

    const USAGE: Usage = Usage { ready: 436, most: 543 };

    fn fleet(count: u32) -> Fleet {
        let segments = vec![Segment { addr: 0x8000_0000, bytes: vec![0x6f, 0, 0, 0], size: 4 }];
        let payload = Payload::linked(segments, 0x8000_0000);
        Fleet::bare(count, MachineKind::Virt, Size::mib(1), payload).unwrap()
    }

    fn file(folder: &tempfile::TempDir) -> UsageFile {
        UsageFile::of(&folder.path().join("usage"), &fleet(1), "READY")
    }

    #[test]
    fn what_a_guest_used_is_expected_of_it_the_next_time() {
        let folder = tempfile::tempdir().unwrap();
        let (file, mut fleet) = (file(&folder), fleet(9));
        expect(&mut fleet, &file);
        assert_eq!(fleet.expected, Expected::default());
        file.note(USAGE).unwrap();
        expect(&mut fleet, &file);
        let known = Expected { frames: 436, most: Some(543), source: Source::EarlierRuns };
        assert_eq!(fleet.expected, known);
        fleet.expected = Expected::given(Size::mib(3));
        expect(&mut fleet, &file);
        assert_eq!((fleet.expected.frames, fleet.expected.source), (768, Source::Given));
    }

    #[test]
    fn the_newest_run_and_the_most_of_all_count() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(&folder);
        file.note(USAGE).unwrap();
        file.note(Usage { ready: 440, most: 440 }).unwrap();
        assert_eq!(file.read(), Some(Usage { ready: 440, most: 543 }));
        file.note(Usage { ready: 600, most: 0 }).unwrap();
        assert_eq!(file.read(), Some(Usage { ready: 600, most: 600 }));
        let names: Vec<_> = folder.path().join("usage").read_dir().unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[test]
    fn guests_that_differ_have_files_of_their_own() {
        let one = fleet(1);
        let of = |fleet: &Fleet, ready| UsageFile::of(Path::new("/nowhere"), fleet, ready);
        let changes: [fn(&mut Fleet); 5] = [
            |it| it.base.frames[4096] ^= 1,
            |it| it.base.rows[0].push(0),
            |it| it.base.rom.push(0),
            |it| it.append += "quiet",
            |it| it.link = Link::Down,
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut other = one.clone();
            change(&mut other);
            assert_ne!(of(&other, "READY"), of(&one, "READY"), "{index}");
        }
        assert_ne!(of(&one, "login:"), of(&one, "READY"));
        assert_eq!(of(&fleet(7), "READY"), of(&one, "READY"));
    }

    #[test]
    fn a_file_that_is_damaged_or_of_another_version_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(&folder);
        file.note(USAGE).unwrap();
        let whole = fs::read_to_string(&file.0).unwrap();
        for length in 0..whole.len() {
            fs::write(&file.0, &whole[..length]).unwrap();
            assert_eq!(file.read(), None, "cut to {length}");
        }
        for (from, to) in [
            ("\"format\":1", "\"format\":2"),
            ("\"ready\":436", "\"ready\":0"),
            ("\"ready\":436", "\"ready\":544"),
            ("\"ready\":436", "\"ready\":-1"),
            ("\"most\":543", "\"most\":4294967295"),
            ("\"most\":543", "\"most\":543,\"more\":1"),
        ] {
            assert!(whole.contains(from), "{whole}");
            fs::write(&file.0, whole.replace(from, to)).unwrap();
            assert_eq!(file.read(), None, "{to}");
        }
        fs::write(&file.0, whole.clone() + &" ".repeat(SIZE_MAX as usize)).unwrap();
        assert_eq!(file.read(), None);
        // The next run replaces it.
        file.note(USAGE).unwrap();
        assert_eq!(file.read(), Some(USAGE));
    }

    #[test]
    fn a_folder_that_is_none_keeps_nothing_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(&folder);
        fs::write(folder.path().join("usage"), "in the way").unwrap();
        assert!(file.note(USAGE).is_err());
        fs::remove_file(folder.path().join("usage")).unwrap();
        fs::create_dir_all(&file.0).unwrap();
        assert!(file.note(USAGE).is_err());
        assert_eq!(file.read(), None);
        assert_eq!(folder.path().join("usage").read_dir().unwrap().count(), 1);
    }

    #[test]
    fn there_are_never_many_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(&folder);
        fs::create_dir(folder.path().join("usage")).unwrap();
        for n in 0..FILES_MAX + 5 {
            fs::write(folder.path().join(format!("usage/{n}.json")), "{}").unwrap();
        }
        file.note(USAGE).unwrap();
        assert_eq!(folder.path().join("usage").read_dir().unwrap().count(), FILES_MAX);
        assert_eq!(file.read(), Some(USAGE));
    }
}
