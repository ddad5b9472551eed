//! Where `buildroot/build` leaves guest images, and where they are looked for.

use std::path::{Path, PathBuf};

/// The image that is used when no kernel is named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DefaultImage {
    /// The kernel.
    pub kernel: PathBuf,
    /// The root file system as an initrd.
    pub initrd: PathBuf,
    /// The same as a ROM, to be executed in place.
    pub rom: PathBuf,
}

/// The cache: `$PXVM_CACHE`, `$XDG_CACHE_HOME/pxvm` or `~/.cache/pxvm`.
pub fn root() -> PathBuf {
    if let Some(dir) = dir_from_env("PXVM_CACHE") {
        return dir;
    }
    xdg("XDG_CACHE_HOME", ".cache")
}

/// Where state that outlives a run goes: `$XDG_STATE_HOME/pxvm` or `~/.local/state/pxvm`.
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

/// The folder of images: one folder each, by the hash of its inputs, and the link `default`.
pub fn images() -> PathBuf {
    root().join("images")
}

/// The default image in the folder `images`.
pub fn default_in(images: &Path) -> DefaultImage {
    let dir = images.join("default");
    DefaultImage {
        kernel: dir.join("Image"),
        initrd: dir.join("initramfs.cpio"),
        rom: dir.join("rootfs.cramfs"),
    }
}

/// The default image, if it has been built.
pub fn default_image() -> Option<DefaultImage> {
    let image = default_in(&images());
    [&image.kernel, &image.initrd, &image.rom].iter().all(|file| file.is_file()).then_some(image)
}

/// What to say when it has not.
pub fn missing() -> String {
    format!(
        "no guest image in {}; run `buildroot/build` to make one (about 5 minutes), \
         or name a kernel with --kernel",
        images().join("default").display()
    )
}
