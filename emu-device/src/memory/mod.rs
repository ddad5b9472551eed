//! Guest memory in frames: one arena of 4 KiB frames for the whole fleet, and a frame table per VM.
//!
//! Many VMs use the arena at the same time, on the CPU and on the GPU, and there must be no data
//! race. So the frames below [`Arena::shared`], which hold the base image, are written before the
//! fleet starts and are read-only from then on. Every other frame belongs to at most one VM, the
//! one whose table, or the tree of its disk ([`OwnPages`]), names it.

mod arena;
mod cache;
mod code;
mod disk;
mod layout;
mod ram;
mod table;
mod words;

pub use arena::Arena;
pub use cache::{CachedImage, LINE_PAGES, LINE_SIZE, Line, WAYS};
pub use code::{CodeCache, CodePage, CodePool, CodeRef, CodeSlots, NoPool};
pub use disk::{FrameDisk, Image, OwnPages};
pub use layout::{Contiguous, FrameLayout, Interleaved, OnGpu};
pub use ram::FrameRam;
pub use table::{FrameMemory, FrameSource};
pub(crate) use words::copy;
