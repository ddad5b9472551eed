//! `pxvm images`: lists the guest images in the cache.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::printing;
use crate::cli::PLAIN_CODES;
use crate::error::Error;
use crate::exit::{self, Code};
use crate::image::cache::{self, CacheError};
use crate::report::print_json;
use crate::stdio::print;
use crate::units::Size;

/// `pxvm images`.
#[derive(Debug, Args)]
#[command(after_long_help = exit::help(PLAIN_CODES))]
pub struct Images {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Digits of a hash that are shown.
const HASH_DIGITS: usize = 16;

#[derive(Debug, Serialize)]
struct Listing {
    folder: PathBuf,
    images: Vec<Image>,
}

#[derive(Debug, Serialize)]
struct Image {
    name: String,
    /// Target of the image's link, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<PathBuf>,
    default: bool,
    /// How the image differs from what was built.
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<String>,
    files: Vec<File>,
}

#[derive(Debug, Serialize)]
struct File {
    name: String,
    bytes: u64,
    sha256: String,
}

/// Lists the images in the cache.
pub fn images(args: Images) -> Result<Code, Error> {
    let folder = cache::images();
    let images = list(&folder).map_err(|e| Error::io(format!("read {}", folder.display()), e))?;
    if args.json {
        print_json(&Listing { folder, images }).map_err(printing)?;
        return Ok(Code::Success);
    }
    let mut text = String::new();
    if images.is_empty() {
        text += &format!("{}\n", CacheError::Missing(folder.join("default")));
    }
    for image in images {
        match &image.link {
            Some(target) => text += &format!("{} -> {}\n", image.name, target.display()),
            None => text += &format!("{}\n", image.name),
        }
        for file in &image.files {
            let hash = &file.sha256[..HASH_DIGITS];
            let size = Size(file.bytes).to_string();
            text += &format!("  {:<20} {size:>10}  {hash}\n", file.name);
        }
        if let Some(damage) = &image.damage {
            text += &format!("  damaged: {damage}; `buildroot/build` makes it again\n");
        }
    }
    print(text.as_bytes()).map_err(printing)?;
    Ok(Code::Success)
}

fn list(folder: &Path) -> io::Result<Vec<Image>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut images = Vec::new();
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        // Hidden folders are builds in progress.
        if !path.is_dir() || name.starts_with('.') {
            continue;
        }
        let files = files(&path)?;
        images.push(Image {
            link: fs::read_link(&path).ok(),
            default: name == "default",
            damage: cache::check(&path).err().map(|damage| damage.to_string()),
            name,
            files,
        });
    }
    images.sort_by(|a, b| (!a.default, &a.name).cmp(&(!b.default, &b.name)));
    Ok(images)
}

fn files(folder: &Path) -> io::Result<Vec<File>> {
    let file = |name: String| {
        let (bytes, sha256) = cache::digest(&folder.join(&name))?;
        Ok(File { name, bytes, sha256 })
    };
    cache::names(folder)?.into_iter().map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_listed_default_first_with_hashes() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["abc", "default", ".tmp"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("Image"), b"").unwrap();
        }
        let images = list(dir.path()).unwrap();
        let names: Vec<_> = images.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names, ["default", "abc"]);
        assert!(images[0].files[0].sha256.starts_with("e3b0c44298fc1c14"));
    }

    #[test]
    fn a_missing_cache_is_an_empty_one() {
        assert!(list(Path::new("/nonexistent/pxvm")).unwrap().is_empty());
    }
}
