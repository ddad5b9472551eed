//! The cache of guest images: where `buildroot/build` puts images, which one is the default, and
//! whether they are undamaged.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::units::hex;

/// Manifest of an image: its files, and what they were built from.
const MANIFEST: &str = "manifest.txt";
/// Line of the manifest that precedes the list of files.
const FILES: &str = "# sha256, bytes, file";

/// Image that is used when no kernel is named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DefaultImage {
    /// The kernel.
    pub kernel: PathBuf,
    /// The root file system as an initrd.
    pub initrd: PathBuf,
    /// The root file system as a ROM, to be executed in place.
    pub rom: PathBuf,
}

/// Why there is no usable default image.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// No image was built.
    #[error(
        "no guest image in {}; run `buildroot/build` to make one (about 5 minutes), \
         or name a kernel with --kernel",
        .0.display()
    )]
    Missing(PathBuf),
    /// The image is damaged.
    #[error(
        "the guest image in {} is damaged: {damage}; run `buildroot/build` to make it again, \
         or name a kernel with --kernel",
        folder.display()
    )]
    Damaged {
        /// Folder of the image.
        folder: PathBuf,
        /// How the image differs from the one that was built.
        damage: Damage,
    },
}

/// How an image differs from the one that was built.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// A file is missing.
    #[error("{0} is missing")]
    Gone(String),
    /// A file has another size or other contents.
    #[error("{0} is not the file that was built")]
    Changed(String),
    /// The manifest does not list a file that is there, or must be.
    #[error("{MANIFEST} does not list {0}")]
    Unlisted(String),
    /// The manifest has a malformed line.
    #[error("{MANIFEST} is cut short or overwritten at `{0}`")]
    Garbled(String),
    /// A file cannot be read.
    #[error("{0} cannot be read ({1})")]
    Unreadable(String, io::Error),
}

/// Returns the cache folder: `$PXVM_CACHE`, `$XDG_CACHE_HOME/pxvm` or `~/.cache/pxvm`.
pub fn root() -> PathBuf {
    if let Some(dir) = dir_from_env("PXVM_CACHE") {
        return dir;
    }
    xdg("XDG_CACHE_HOME", ".cache")
}

/// Returns the folder for state that outlives a run: `$XDG_STATE_HOME/pxvm` or
/// `~/.local/state/pxvm`.
pub fn state() -> PathBuf {
    xdg("XDG_STATE_HOME", ".local/state")
}

fn xdg(variable: &str, fallback: &str) -> PathBuf {
    dir_from_env(variable)
        .unwrap_or_else(|| dir_from_env("HOME").unwrap_or_else(|| "/tmp".into()).join(fallback))
        .join("pxvm")
}

fn dir_from_env(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// Returns the folder of images. It has one folder for each, named by the hash of its inputs, and
/// the link `default`.
pub fn images() -> PathBuf {
    root().join("images")
}

/// Returns where the default image is, whether there is one or not.
pub fn default_folder() -> PathBuf {
    images().join("default")
}

/// Returns the folder of what guests used of memory.
pub fn usage() -> PathBuf {
    root().join("usage")
}

/// Returns the folder of programs compiled for GPUs.
pub fn gpu() -> PathBuf {
    root().join("gpu")
}

/// Returns the folder of calibrations: how fast hosts and their GPUs run VMs.
pub fn calibrations() -> PathBuf {
    root().join("calibration")
}

/// Returns the default image, after checking that its files are undamaged.
pub fn default_image() -> Result<DefaultImage, CacheError> {
    let folder = default_folder();
    if !folder.is_dir() {
        return Err(CacheError::Missing(folder));
    }
    let image = || {
        let manifest = Manifest::read(&folder)?;
        Ok(DefaultImage {
            kernel: manifest.checked("Image")?,
            initrd: manifest.checked("initramfs.cpio")?,
            rom: manifest.checked("rootfs.cramfs")?,
        })
    };
    image().map_err(|damage| CacheError::Damaged { damage, folder: folder.clone() })
}

/// Checks every file of an image. The error is the first damage found.
pub fn check(folder: &Path) -> Result<(), Damage> {
    let manifest = Manifest::read(folder)?;
    for name in manifest.files.keys() {
        manifest.checked(name)?;
    }
    // A manifest without its last lines lists fewer files than there are.
    for name in names(folder).map_err(|e| Damage::Unreadable("the folder".to_owned(), e))? {
        if name != MANIFEST && !manifest.files.contains_key(&name) {
            return Err(Damage::Unlisted(name));
        }
    }
    Ok(())
}

/// Returns the names of a folder's files, in order.
pub fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path().is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Returns the length of a file, and its SHA-256 in hexadecimal.
pub fn digest(path: &Path) -> io::Result<(u64, String)> {
    let mut hash = Sha256::new();
    let bytes = io::copy(&mut File::open(path)?, &mut HashWriter(&mut hash))?;
    Ok((bytes, hex(&hash.finalize())))
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Manifest of an image.
struct Manifest {
    folder: PathBuf,
    /// Length and SHA-256 of each file.
    files: BTreeMap<String, (u64, String)>,
}

impl Manifest {
    fn read(folder: &Path) -> Result<Self, Damage> {
        let text = fs::read(folder.join(MANIFEST)).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Damage::Gone(MANIFEST.to_owned()),
            _ => Damage::Unreadable(MANIFEST.to_owned(), e),
        })?;
        let text = String::from_utf8_lossy(&text);
        let mut files = BTreeMap::new();
        for line in text.lines().skip_while(|line| *line != FILES).skip(1) {
            let fields: Vec<_> = line.splitn(3, ' ').collect();
            let entry = match fields[..] {
                [sha256, bytes, name] if sha256.len() == 64 && !name.contains('/') => {
                    bytes.parse().ok().map(|bytes| (name.to_owned(), (bytes, sha256.to_owned())))
                }
                _ => None,
            };
            files.extend([entry.ok_or_else(|| Damage::Garbled(line.to_owned()))?]);
        }
        Ok(Self { folder: folder.to_owned(), files })
    }

    /// Returns the path of a file after checking that it is undamaged.
    fn checked(&self, name: &str) -> Result<PathBuf, Damage> {
        let entry = self.files.get(name).ok_or_else(|| Damage::Unlisted(name.to_owned()))?;
        let path = self.folder.join(name);
        if !path.is_file() {
            return Err(Damage::Gone(name.to_owned()));
        }
        let found = digest(&path).map_err(|e| Damage::Unreadable(name.to_owned(), e))?;
        (found == *entry).then_some(path).ok_or_else(|| Damage::Changed(name.to_owned()))
    }
}
