//! The CUDA driver's cache of compiled programs: where the driver keeps the machine code that it
//! compiles from our PTX once for each kind of card.
//!
//! The cache is the driver's own, in a folder of ours: the environment variable `CUDA_CACHE_PATH`
//! names it, which the driver reads when it is initialised. The driver looks programs up by source,
//! card and version, and compiles again what is damaged.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};

/// Environment variable of the CUDA driver: the folder of its cache.
pub const FOLDER: &str = "CUDA_CACHE_PATH";
/// Environment variable of the CUDA driver: 1 turns its cache off.
pub const DISABLE: &str = "CUDA_CACHE_DISABLE";

/// Loading a program takes longer than this only if the driver compiles it instead of reading its
/// cache.
pub const LONG: Duration = Duration::from_secs(1);

/// The environment, as [`std::env::var_os`] returns it.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

fn set(environment: Environment, name: &str) -> Option<OsString> {
    environment(name).filter(|value| !value.is_empty())
}

/// Returns the value for [`FOLDER`] with which the driver keeps programs in `ours`: `None` where
/// the user has decided otherwise, or where others could put programs into that folder.
pub fn wanted(environment: Environment, ours: &Path) -> Option<PathBuf> {
    if [FOLDER, DISABLE].iter().any(|name| set(environment, name).is_some()) {
        return None;
    }
    // The driver may resolve the path from another working directory.
    let ours = std::path::absolute(ours).ok()?;
    is_safe(&ours).then_some(ours)
}

/// Whether a folder belongs to this user alone, or can be made.
fn is_safe(folder: &Path) -> bool {
    match folder.metadata() {
        Ok(found) => {
            let owner = found.uid() == rustix::process::geteuid().as_raw();
            found.is_dir() && owner && found.mode() & 0o022 == 0
        }
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

/// Where the driver keeps compiled programs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CacheLocation {
    /// In this folder.
    Folder(PathBuf),
    /// Where the driver keeps all programs of the user.
    Usual,
    /// Nowhere: the user has turned the cache off.
    Nowhere,
}

/// Returns where the driver keeps programs under an environment.
pub fn cache_location_in(environment: Environment) -> CacheLocation {
    match (set(environment, DISABLE), set(environment, FOLDER)) {
        (Some(disable), _) if disable != "0" => CacheLocation::Nowhere,
        (_, Some(folder)) => CacheLocation::Folder(folder.into()),
        _ => CacheLocation::Usual,
    }
}

/// Returns where the driver of this process keeps programs.
pub fn cache_location() -> CacheLocation {
    cache_location_in(&|name| std::env::var_os(name))
}

/// Makes the folder that the driver will use, without rights for others.
pub fn make_folder() {
    let CacheLocation::Folder(folder) = cache_location() else { return };
    if let Err(error) = DirBuilder::new().recursive(true).mode(0o700).create(&folder) {
        // The driver compiles each time then.
        tracing::info!("compiled programs cannot be kept in {}: {error}", folder.display());
    }
}

/// Whether a folder holds a compiled program and more can be written to it.
pub fn is_kept_in(folder: &Path) -> bool {
    let writable = rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok();
    writable && has_program(folder, DEPTH)
}

/// Folders above a program in the driver's cache, at most: there are three.
const DEPTH: u32 = 8;
/// A compiled program is larger; the driver's list of them, which is there first, is smaller.
const PROGRAM_MIN: u64 = 4096;

fn has_program(folder: &Path, depth: u32) -> bool {
    let Ok(entries) = folder.read_dir() else { return false };
    entries.flatten().any(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => depth > 0 && has_program(&entry.path(), depth - 1),
        Ok(found) => found.is_file() && found.len() >= PROGRAM_MIN,
        Err(_) => false,
    })
}

/// Does `work`, and calls `say` meanwhile if the work takes longer than `limit`.
pub fn watched<T>(limit: Duration, say: impl Fn() + Sync, work: impl FnOnce() -> T) -> T {
    let (working, done) = bounded::<()>(0);
    thread::scope(|scope| {
        let watch = || {
            if done.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                say();
            }
        };
        // Without the thread the work is done all the same, and nothing is printed.
        let _ = thread::Builder::new().name("compiling".to_owned()).spawn_scoped(scope, watch);
        let _working = working;
        work()
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn value(variables: &[(&str, &str)], name: &str) -> Option<OsString> {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
    }

    fn given(variables: &[(&str, &str)], ours: &Path) -> Option<PathBuf> {
        wanted(&|name| value(variables, name), ours)
    }

    #[test]
    fn programs_are_kept_in_our_folder_unless_the_user_has_decided() {
        let ours = Path::new("/nowhere/pxvm/gpu");
        for none in [&[][..], &[(FOLDER, "")], &[(DISABLE, "")], &[("HOME", "/x")]] {
            assert_eq!(given(none, ours).as_deref(), Some(ours), "{none:?}");
        }
        for decided in [(FOLDER, "/elsewhere"), (DISABLE, "1"), (DISABLE, "0")] {
            assert_eq!(given(&[decided], ours), None, "{decided:?}");
        }
        assert!(given(&[], Path::new("cache/gpu")).is_some_and(|folder| folder.is_absolute()));
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_not_used() {
        let root = tempfile::tempdir().unwrap();
        let ours = root.path().join("gpu");
        assert!(given(&[], &ours).is_some(), "one that is not there");
        fs::create_dir(&ours).unwrap();
        for (mode, used) in [(0o700, true), (0o755, true), (0o770, false), (0o777, false)] {
            fs::set_permissions(&ours, Permissions::from_mode(mode)).unwrap();
            assert_eq!(given(&[], &ours).is_some(), used, "{mode:o}");
        }
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(given(&[], &file), None);
        assert_eq!(given(&[], &file.join("gpu")), None);
    }

    #[test]
    fn the_environment_says_where_the_driver_keeps_programs() {
        let of = |variables: &[(&str, &str)]| cache_location_in(&|name| value(variables, name));
        assert_eq!(of(&[]), CacheLocation::Usual);
        assert_eq!(of(&[(FOLDER, "/x")]), CacheLocation::Folder("/x".into()));
        assert_eq!(of(&[(FOLDER, "/x"), (DISABLE, "0")]), CacheLocation::Folder("/x".into()));
        assert_eq!(of(&[(FOLDER, "/x"), (DISABLE, "1")]), CacheLocation::Nowhere);
    }

    #[test]
    fn a_program_is_kept_where_there_is_more_than_the_drivers_list() {
        let root = tempfile::tempdir().unwrap();
        let list = root.path().join("index");
        assert!(!is_kept_in(root.path()) && !is_kept_in(&root.path().join("none")));
        // All that a full disk takes.
        fs::write(&list, [0; 32]).unwrap();
        fs::create_dir_all(root.path().join("f/7")).unwrap();
        assert!(!is_kept_in(root.path()) && !is_kept_in(&list));
        fs::write(root.path().join("f/7/9a72a88ba7334e"), [0; 8192]).unwrap();
        assert!(is_kept_in(root.path()));
    }

    #[test]
    fn only_work_that_takes_long_is_told() {
        let (tell, told) = bounded(1);
        let say = || tell.try_send(()).unwrap();
        assert_eq!(watched(Duration::MAX, say, || 7), 7);
        assert!(told.is_empty());
        // Work that continues until the message is printed, or far too long.
        let result = watched(Duration::ZERO, say, || told.recv_timeout(Duration::from_secs(60)));
        assert_eq!(result, Ok(()));
    }
}
