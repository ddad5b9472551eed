//! The program as the driver compiled it for a card, kept from run to run.
//!
//! The driver takes seconds to compile PTX. It has a cache of its own, which is not everywhere and
//! forgets; so what it compiled is also kept in pxvm's, a file for each program, kind of card and
//! driver. A copy is only ever a shortcut: one that is damaged, or that the driver refuses, is made
//! anew, and where none can be kept the driver gets the PTX.

use std::collections::hash_map::RandomState;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::driver::Info;
use super::error::CudaError;
use crate::image::cache;

/// What a copy begins with. Another format has another one.
const MAGIC: [u8; 8] = *b"pxvmgpu1";
/// The checksum that follows: SHA-256 of the key and the program.
const SUM: usize = 32;
/// No copy is longer: it is read into memory.
const SIZE_MAX: u64 = 64 << 20;
/// Copies that are kept: those of a few cards, and of drivers and programs before.
const COPIES: usize = 8;

/// Where the copies are.
pub fn folder() -> PathBuf {
    cache::root().join("gpu")
}

/// The place of one copy.
#[derive(Debug)]
pub struct KeptCopy {
    folder: PathBuf,
    name: String,
    /// All that the compiled program depends on.
    key: String,
}

/// What [`KeptCopy::read`] can find instead of a copy.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// There is none yet.
    #[error("none")]
    None,
    /// It is not what was written.
    #[error("{0} is damaged")]
    Damaged(PathBuf),
    /// Somebody else wrote it.
    #[error("{0} belongs to another user")]
    Foreign(PathBuf),
    /// It cannot be read.
    #[error("{0} cannot be read")]
    Io(PathBuf, #[source] io::Error),
}

impl KeptCopy {
    /// The copy of `ptx` for a card and its driver.
    pub fn new(folder: PathBuf, ptx: &[u8], info: &Info) -> Self {
        let Info { capability: (major, minor), cuda: (x, y), driver, .. } = info;
        let target = format!("sm{major}{minor}-cuda{x}.{y}-{driver}");
        let ptx: String = Sha256::digest(ptx).iter().map(|b| format!("{b:02x}")).collect();
        let name = format!("{target}-{}.cubin", &ptx[..16]);
        Self { folder, name, key: format!("{target} {ptx}") }
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    fn sum(&self, cubin: &[u8]) -> [u8; SUM] {
        Sha256::new()
            .chain_update(&self.key)
            .chain_update([0])
            .chain_update(cubin)
            .finalize()
            .into()
    }

    /// The compiled program.
    pub fn read(&self) -> Result<Vec<u8>, Unusable> {
        use io::ErrorKind::{NotADirectory, NotFound};
        let path = self.path();
        let (mut bytes, file) = match self.bytes(&path) {
            Ok(found) => found,
            Err(e) if matches!(e.kind(), NotFound | NotADirectory) => return Err(Unusable::None),
            Err(e) => return Err(Unusable::Io(path, e)),
        };
        let owner = file.metadata().map_err(|e| Unusable::Io(path.clone(), e))?.uid();
        if owner != 0 && owner != rustix::process::geteuid().as_raw() {
            return Err(Unusable::Foreign(path));
        }
        const HEAD: usize = MAGIC.len() + SUM;
        let whole = bytes.len() > HEAD
            && bytes[..MAGIC.len()] == MAGIC
            && bytes[MAGIC.len()..HEAD] == self.sum(&bytes[HEAD..]);
        if !whole {
            return Err(Unusable::Damaged(path));
        }
        // The one that was used last is the last to go.
        let _ = file.set_modified(SystemTime::now());
        // Not a part of the buffer: the start of one is aligned, which an image should be.
        bytes.drain(..HEAD);
        Ok(bytes)
    }

    fn bytes(&self, path: &Path) -> io::Result<(Vec<u8>, File)> {
        // Something that is not a file, such as a FIFO, must not make it wait.
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let mut bytes = Vec::new();
        (&file).take(SIZE_MAX).read_to_end(&mut bytes)?;
        Ok((bytes, file))
    }

    /// Makes the folder; whether a copy can be kept there.
    pub fn prepare(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        rustix::fs::access(&self.folder, rustix::fs::Access::WRITE_OK).map_err(io::Error::from)
    }

    /// Keeps the compiled program, and drops the oldest copies when there are too many. Whoever reads
    /// meanwhile finds the old one, the new one, or none.
    pub fn keep(&self, cubin: &[u8]) -> io::Result<()> {
        self.prepare()?;
        // Another process may write the same, and may have the same number in a container.
        let random = RandomState::new().build_hasher().finish();
        let part = self.folder.join(format!("{}.{random:016x}.part", self.name));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&part)
            .and_then(|mut file| {
                file.write_all(&MAGIC)?;
                file.write_all(&self.sum(cubin))?;
                file.write_all(cubin)
            })
            .and_then(|()| fs::rename(&part, self.path()));
        if written.is_err() {
            let _ = fs::remove_file(&part);
        }
        self.drop_oldest();
        written
    }

    /// Removes a copy that is of no use.
    pub fn remove(&self) {
        if let Err(error) = fs::remove_file(self.path()) {
            tracing::debug!(%error, "{} stays", self.path().display());
        }
    }

    /// Bounds the folder, and takes along what a process left that was ended while it wrote.
    fn drop_oldest(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let dated = entries.flatten().filter_map(|entry| {
            let time = entry.metadata().and_then(|m| m.modified()).ok()?;
            Some((time, entry.path()))
        });
        let mut files: Vec<_> = dated.collect();
        files.sort();
        for (_, path) in files.iter().rev().skip(COPIES) {
            let _ = fs::remove_file(path);
        }
    }
}

/// What compiles and loads the program.
pub trait Compiler {
    /// The loaded program.
    type Program;
    /// Compiles it.
    fn compile(&self) -> Result<Vec<u8>, CudaError>;
    /// Loads what was compiled.
    fn load(&self, cubin: &[u8]) -> Result<Self::Program, CudaError>;
    /// Leaves compiling to the driver, and loads.
    fn load_source(&self) -> Result<Self::Program, CudaError>;
}

/// Where a program came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The copy that was there.
    Kept,
    /// It was compiled, and a copy is kept now.
    Made,
    /// It was compiled, and no copy could be kept.
    Source,
}

/// Loads the program: from its copy, or compiled and kept. Says when it will take long.
pub fn load<C: Compiler>(
    compiler: &C,
    copy: &KeptCopy,
    say: impl FnOnce(),
) -> Result<(C::Program, Origin), CudaError> {
    match copy.read() {
        Ok(cubin) => match compiler.load(&cubin) {
            Ok(program) => return Ok((program, Origin::Kept)),
            Err(error) => {
                tracing::warn!("{} is made anew: {error}", copy.path().display());
                copy.remove();
            }
        },
        Err(Unusable::None) => {}
        Err(error) => {
            let cause = std::error::Error::source(&error);
            let cause = cause.map(|e| format!(": {e}")).unwrap_or_default();
            tracing::warn!("the program compiled for the GPU is made anew: {error}{cause}");
            copy.remove();
        }
    }
    say();
    if let Err(error) = copy.prepare() {
        // The driver may have it in a cache of its own.
        tracing::info!("no copy of the compiled program in {}: {error}", copy.folder.display());
        return Ok((compiler.load_source()?, Origin::Source));
    }
    let made = compiler.compile().and_then(|cubin| Ok((compiler.load(&cubin)?, cubin)));
    match made {
        Ok((program, cubin)) => match copy.keep(&cubin) {
            Ok(()) => Ok((program, Origin::Made)),
            Err(error) => {
                tracing::info!(
                    "no copy of the compiled program in {}: {error}",
                    copy.folder.display()
                );
                Ok((program, Origin::Source))
            }
        },
        Err(error) => {
            tracing::info!("the driver gets the PTX: {error}");
            Ok((compiler.load_source()?, Origin::Source))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::units::Size;

    fn info() -> Info {
        Info {
            name: "a card".into(),
            capability: (9, 0),
            memory: Size::mib(1),
            cuda: (12, 8),
            driver: "570.1".into(),
        }
    }

    fn copy(folder: &Path) -> KeptCopy {
        KeptCopy::new(folder.join("gpu"), b"the text", &info())
    }

    /// What a driver does: it compiles, and loads what it has compiled.
    #[derive(Default)]
    struct Driver {
        compiled: Cell<u32>,
        from_source: Cell<u32>,
        said: Cell<u32>,
        cannot_link: bool,
        refuses: Option<&'static [u8]>,
    }

    const CUBIN: &[u8] = b"\x7fELF, and so on";

    impl Compiler for Driver {
        type Program = Vec<u8>;
        fn compile(&self) -> Result<Vec<u8>, CudaError> {
            self.compiled.set(self.compiled.get() + 1);
            if self.cannot_link {
                return Err(CudaError::Contract("it cannot link"));
            }
            Ok(CUBIN.to_vec())
        }
        fn load(&self, cubin: &[u8]) -> Result<Vec<u8>, CudaError> {
            match self.refuses == Some(cubin) {
                true => Err(CudaError::Contract("it refuses this one")),
                false => Ok(cubin.to_vec()),
            }
        }
        fn load_source(&self) -> Result<Vec<u8>, CudaError> {
            self.from_source.set(self.from_source.get() + 1);
            Ok(b"source".to_vec())
        }
    }

    impl Driver {
        fn open(&self, copy: &KeptCopy) -> (Vec<u8>, Origin) {
            load(self, copy, || self.said.set(self.said.get() + 1)).unwrap()
        }
    }

    #[test]
    fn it_is_compiled_once_and_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let driver = Driver::default();
        assert_eq!(driver.open(&copy(folder.path())), (CUBIN.to_vec(), Origin::Made));
        assert_eq!(driver.open(&copy(folder.path())), (CUBIN.to_vec(), Origin::Kept));
        assert_eq!((driver.compiled.get(), driver.said.get()), (1, 1));
        let file = copy(folder.path()).path().metadata().unwrap();
        let outer = copy(folder.path()).folder.metadata().unwrap();
        let modes = [file, outer].map(|m| m.permissions().mode() & 0o777);
        assert_eq!(modes, [0o600, 0o700]);
    }

    #[test]
    fn another_program_card_or_driver_has_another_copy() {
        let folder = tempfile::tempdir().unwrap();
        let first = copy(folder.path());
        first.keep(CUBIN).unwrap();
        let others = [
            KeptCopy::new(first.folder.clone(), b"another text", &info()),
            KeptCopy::new(
                first.folder.clone(),
                b"the text",
                &Info { capability: (8, 9), ..info() },
            ),
            KeptCopy::new(first.folder.clone(), b"the text", &Info { cuda: (13, 0), ..info() }),
            KeptCopy::new(
                first.folder.clone(),
                b"the text",
                &Info { driver: "580.1".into(), ..info() },
            ),
        ];
        for other in others {
            assert!(matches!(other.read(), Err(Unusable::None)), "{other:?}");
            // Not under its name, either.
            fs::copy(first.path(), other.path()).unwrap();
            assert!(matches!(other.read(), Err(Unusable::Damaged(_))), "{other:?}");
        }
    }

    #[test]
    fn a_damaged_copy_is_refused_and_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (driver, copy) = (Driver::default(), copy(folder.path()));
        driver.open(&copy);
        let good = fs::read(copy.path()).unwrap();
        let mut bad = vec![Vec::new(), good[..good.len() - 1].to_vec(), good[..20].to_vec()];
        bad.extend((0..good.len()).map(|at| {
            let mut one = good.clone();
            one[at] ^= 1 << (at % 8);
            one
        }));
        bad.push([&good[..], &[0]].concat());
        for bytes in bad {
            fs::write(copy.path(), &bytes).unwrap();
            assert!(matches!(copy.read(), Err(Unusable::Damaged(_))), "{bytes:?}");
            assert_eq!(driver.open(&copy), (CUBIN.to_vec(), Origin::Made));
            assert_eq!(fs::read(copy.path()).unwrap(), good);
        }
    }

    #[test]
    fn a_copy_that_the_driver_refuses_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let copy = copy(folder.path());
        copy.keep(b"of an older driver").unwrap();
        let driver = Driver { refuses: Some(b"of an older driver"), ..Driver::default() };
        assert_eq!(driver.open(&copy), (CUBIN.to_vec(), Origin::Made));
        assert_eq!(copy.read().unwrap(), CUBIN);
    }

    #[test]
    fn a_driver_that_cannot_link_gets_the_source() {
        let folder = tempfile::tempdir().unwrap();
        let copy = copy(folder.path());
        for driver in [
            Driver { cannot_link: true, ..Driver::default() },
            Driver { refuses: Some(CUBIN), ..Driver::default() },
        ] {
            assert_eq!(driver.open(&copy), (b"source".to_vec(), Origin::Source));
            assert!(!copy.path().exists());
        }
    }

    #[test]
    fn where_none_can_be_kept_the_driver_gets_the_source() {
        let folder = tempfile::tempdir().unwrap();
        // Not even root can make a folder there.
        fs::write(folder.path().join("gpu"), "a file").unwrap();
        let (driver, copy) = (Driver::default(), copy(folder.path()));
        for times in 1..3 {
            assert_eq!(driver.open(&copy), (b"source".to_vec(), Origin::Source));
            assert_eq!((driver.compiled.get(), driver.from_source.get()), (0, times));
            assert!(matches!(copy.read(), Err(Unusable::None)));
        }
    }

    #[test]
    fn what_cannot_be_written_over_is_left_and_the_program_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let (driver, copy) = (Driver::default(), copy(folder.path()));
        fs::create_dir_all(copy.path().join("in the way")).unwrap();
        assert_eq!(driver.open(&copy), (CUBIN.to_vec(), Origin::Source));
        assert_eq!(fs::read_dir(&copy.folder).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn a_fifo_in_its_place_is_no_copy() {
        let folder = tempfile::tempdir().unwrap();
        let (driver, copy) = (Driver::default(), copy(folder.path()));
        copy.prepare().unwrap();
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, copy.path(), kind, mode, 0).unwrap();
        assert_eq!(driver.open(&copy), (CUBIN.to_vec(), Origin::Made));
    }

    #[test]
    fn there_are_never_many_and_the_last_used_stay() {
        let folder = tempfile::tempdir().unwrap();
        let of = |n: u32| KeptCopy::new(folder.path().join("gpu"), &n.to_le_bytes(), &info());
        let dated = |path: &Path, n: u64| {
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 + n);
            File::options().append(true).open(path).unwrap().set_modified(time).unwrap();
        };
        for n in 0..COPIES as u32 {
            of(n).keep(CUBIN).unwrap();
            dated(&of(n).path(), n.into());
        }
        // What a process left that was ended.
        let part = folder.path().join("gpu/x.part");
        fs::write(&part, "x").unwrap();
        dated(&part, 0);
        assert!(of(0).read().is_ok());
        of(100).keep(CUBIN).unwrap();
        let there = |n| of(n).path().exists();
        assert_eq!(fs::read_dir(folder.path().join("gpu")).unwrap().count(), COPIES);
        assert!(there(0) && !there(1) && there(2) && there(100) && !part.exists());
    }

    #[test]
    fn many_at_once_find_all_of_it_or_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cubin = vec![7; 1 << 20];
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let copy = copy(folder.path());
                    for _ in 0..50 {
                        copy.keep(&cubin).unwrap();
                        assert_eq!(copy.read().unwrap(), cubin);
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(folder.path().join("gpu")).unwrap().count(), 1);
    }
}
