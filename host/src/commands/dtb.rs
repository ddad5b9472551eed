//! `pxvm dtb`: prints a VM's device tree.

use std::path::PathBuf;

use clap::Args;

use super::printing;
use crate::backend::ClockSource;
use crate::cli::{GuestArgs, PLAIN_CODES, long_help};
use crate::dtb::{self, Chosen, SEED_WORDS, Shape};
use crate::error::Error;
use crate::exit::Code;
use crate::image::disk::{Access, Disks};
use crate::image::{Role, cache, load, rom};
use crate::machine::cmdline::bootargs;
use crate::machine::fleet::Root;
use crate::machine::{AssembleError, assemble, plan};
use crate::stdio::print;
use crate::virtio::{self, Virtio};

const EXAMPLES: &str = "Examples:\n  \
        pxvm dtb                          the default machine's tree, as source\n  \
        pxvm dtb --machine semu --blob semu.dtb";

/// `pxvm dtb`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = long_help(EXAMPLES, PLAIN_CODES))]
pub struct Dtb {
    /// The machine.
    #[command(flatten)]
    pub guest: GuestArgs,
    /// Which machine of a fleet
    #[arg(long, value_name = "I", default_value_t = 0)]
    pub vm: u32,
    /// Write the blob to FILE instead of printing source
    #[arg(long, value_name = "FILE")]
    pub blob: Option<PathBuf>,
}

/// Prints a VM's device tree, or writes the blob.
pub fn dtb(args: Dtb) -> Result<Code, Error> {
    let Dtb { mut guest, vm, blob: file, .. } = args;
    // Nothing runs that could write.
    if let Some(disk) = &mut guest.disk {
        disk.access = Access::CopyOnWrite;
    }
    let options = guest.options(vm.saturating_add(1), ClockSource::Instret)?;
    let blob = if !options.default_kernel() || cache::default_folder().is_dir() {
        assemble(&options)?.blob(vm, 0)
    } else {
        // Images are not loaded: the tree has no initrd, and a ROM only if one was given.
        plan::ram(options.kind, options.memory)?;
        let open = |spec| Disks::open(spec, options.count);
        let disks = options.disk.as_ref().map(open).transpose()?;
        let memory = options.memory.0 as u32;
        let window = options.kind.map().rom;
        let rom = options.rom.as_ref().map(|path| rom::rom(path, window)).transpose()?;
        let rom = rom.map_or(0, |rom| rom.len() as u32);
        let slots = Virtio::new(options.kind, virtio::Guest::Linux, &options.virtio);
        let slots = slots.map_err(AssembleError::from)?.slots;
        let shape = Shape { kind: options.kind, memory, rom, disk: disks.is_some(), slots };
        let tree = match &options.dtb {
            None => dtb::emit(&shape),
            Some(path) => dtb::given(&load(Role::DeviceTree, path, Ok)?, &shape, options.dtb_fix)?,
        };
        let root = if rom != 0 && options.initrd.is_none() { Root::Rom } else { Root::Initrd };
        let (given, link) = (tree.bootargs(), options.link);
        let bootargs = bootargs(vm, given.as_deref(), root, link, &options.append);
        Some(tree.blob(&Chosen { bootargs, initrd: None, rng_seed: [0; SEED_WORDS] }))
    };
    // A fleet that boots always has a tree.
    let blob = blob.unwrap_or_default();
    match file {
        Some(path) => std::fs::write(&path, blob)
            .map_err(|e| Error::io(format!("write {}", path.display()), e))?,
        None => {
            let text = dtb::text(&blob)?;
            print(text.as_bytes()).map_err(printing)?;
        }
    }
    Ok(Code::Success)
}
