//! The Unix socket by which `pxvm` commands find running fleets: `NAME.sock` in a folder that only
//! its owner can enter.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

/// Longest name of a fleet: the path of a socket has 107 bytes at most.
const NAME_MAX: usize = 32;
const ENDING: &str = "sock";

/// Why a fleet's socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The text cannot be a name.
    #[error("`{0}` is no name of a fleet: up to 32 letters, digits, - and _")]
    Name(String),
    /// Another fleet has the name.
    #[error("a fleet named `{0}` runs already; choose another name: --name")]
    Taken(String),
    /// The folder is not safe: another user could have put the socket there.
    #[error("{} belongs to another user, or others may enter it", .0.display())]
    Foreign(PathBuf),
    /// No fleet runs.
    #[error("no fleet runs here; `pxvm boot` starts one")]
    NoFleet,
    /// No fleet of this name runs.
    #[error("no fleet named `{name}` runs here; {}", running(.all))]
    Unknown {
        /// The name.
        name: String,
        /// Names of the running fleets.
        all: Vec<String>,
    },
    /// Several fleets run, and none was named.
    #[error("several fleets run here: {}; choose one: --fleet NAME", .0.join(", "))]
    Several(Vec<String>),
    /// Any other reason.
    #[error("cannot use {}", .0.display())]
    Io(PathBuf, #[source] io::Error),
}

fn running(all: &[String]) -> String {
    match all {
        [] => "none does".to_owned(),
        all => format!("these do: {}", all.join(", ")),
    }
}

impl SocketError {
    /// Whether the user requested something impossible.
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::Io(..) | Self::Foreign(_))
    }
}

/// A fleet's socket, bound.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    keep: Keep,
}

/// The socket's file, removed when this is dropped.
#[derive(Debug)]
pub struct Keep(PathBuf);

impl Drop for Keep {
    fn drop(&mut self) {
        // If the file cannot be removed, the next fleet of this name removes it.
        let _ = fs::remove_file(&self.0);
    }
}

/// Returns the folder of sockets: `$XDG_RUNTIME_DIR/pxvm`, or else a folder of the user among the
/// temporary files.
pub fn folder() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_absolute()) {
        Some(dir) => PathBuf::from(dir).join("pxvm"),
        None => std::env::temp_dir().join(format!("pxvm-{}", geteuid().as_raw())),
    }
}

/// Checks that a folder belongs to the user and nobody else may enter it.
fn check(folder: &Path) -> Result<(), SocketError> {
    let about = fs::symlink_metadata(folder).map_err(|e| SocketError::Io(folder.into(), e))?;
    let own = about.is_dir() && about.uid() == geteuid().as_raw() && about.mode() & 0o077 == 0;
    own.then_some(()).ok_or_else(|| SocketError::Foreign(folder.into()))
}

fn check_name(name: &str) -> Result<(), SocketError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let good = (1..=NAME_MAX).contains(&name.len()) && name.chars().all(plain);
    good.then_some(()).ok_or_else(|| SocketError::Name(name.to_owned()))
}

impl Socket {
    /// Binds the socket of the fleet `name` in `folder`, which is made if it is missing.
    pub fn bind(folder: &Path, name: &str) -> Result<Self, SocketError> {
        check_name(name)?;
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |e| SocketError::Io(path, e)
        };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed(folder))?;
        check(folder)?;
        let path = folder.join(name).with_extension(ENDING);
        if UnixStream::connect(&path).is_ok() {
            return Err(SocketError::Taken(name.to_owned()));
        }
        // Left by a fleet that could not clean up.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(failed(&path))?;
        let keep = Keep(path.clone());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed(&path))?;
        Ok(Self { listener, keep })
    }

    pub(super) fn into_tokio(self) -> io::Result<(tokio::net::UnixListener, Keep)> {
        self.listener.set_nonblocking(true)?;
        Ok((tokio::net::UnixListener::from_std(self.listener)?, self.keep))
    }
}

/// Returns the socket of the fleet `name`, or of the only one that runs. Sockets that no fleet
/// listens to are removed.
pub fn find(folder: &Path, name: Option<&str>) -> Result<PathBuf, SocketError> {
    name.map(check_name).transpose()?;
    let Ok(entries) = fs::read_dir(folder) else {
        return Err(missing(name, Vec::new()));
    };
    check(folder)?;
    let mut found = Vec::new();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
        let (Some(stem), true) = (stem, path.extension().is_some_and(|end| end == ENDING)) else {
            continue;
        };
        match UnixStream::connect(&path) {
            Ok(_) => found.push((stem, path)),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                let _ = fs::remove_file(&path);
            }
            Err(_) => {}
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    let all: Vec<String> = found.iter().map(|(name, _)| name.clone()).collect();
    match name {
        Some(name) => match found.into_iter().find(|(stem, _)| stem == name) {
            Some((_, path)) => Ok(path),
            None => Err(missing(Some(name), all)),
        },
        None if found.len() > 1 => Err(SocketError::Several(all)),
        None => found.pop().map(|(_, path)| path).ok_or(SocketError::NoFleet),
    }
}

fn missing(name: Option<&str>, all: Vec<String>) -> SocketError {
    match name {
        Some(name) => SocketError::Unknown { name: name.to_owned(), all },
        None => SocketError::NoFleet,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_is_found_by_its_name_or_as_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("pxvm");
        assert!(matches!(find(&folder, None), Err(SocketError::NoFleet)));
        let first = Socket::bind(&folder, "first").unwrap();
        assert!(find(&folder, None).is_ok() && find(&folder, Some("first")).is_ok());
        let text = find(&folder, Some("other")).unwrap_err().to_string();
        assert!(text.contains("these do: first"), "{text}");
        assert!(matches!(Socket::bind(&folder, "first"), Err(SocketError::Taken(_))));
        let _second = Socket::bind(&folder, "second").unwrap();
        let text = find(&folder, None).unwrap_err().to_string();
        assert!(text.contains("first, second"), "{text}");
        drop(first);
        assert!(!folder.join("first.sock").exists() && find(&folder, None).is_ok());
    }

    #[test]
    fn what_is_left_of_a_fleet_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("pxvm");
        let Socket { listener, keep } = Socket::bind(&folder, "gone").unwrap();
        drop(listener);
        std::mem::forget(keep);
        assert!(matches!(find(&folder, None), Err(SocketError::NoFleet)));
        assert!(!folder.join("gone.sock").exists());
    }

    #[test]
    fn a_folder_that_others_can_enter_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("pxvm");
        let _socket = Socket::bind(&folder, "x").unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(find(&folder, None), Err(SocketError::Foreign(_))));
        assert!(matches!(Socket::bind(&folder, "y"), Err(SocketError::Foreign(_))));
    }

    #[test]
    fn names_are_plain() {
        let dir = tempfile::tempdir().unwrap();
        let long = "x".repeat(NAME_MAX + 1);
        for name in ["", "../x", "a/b", "a.b", &long] {
            assert!(matches!(Socket::bind(dir.path(), name), Err(SocketError::Name(_))), "{name}");
        }
    }
}
