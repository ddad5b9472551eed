//! How much memory of its own a VM is expected to use.

use std::fmt;

use emu_core::mem::FRAME_SIZE;

use crate::units::Size;

/// What is expected of a guest of which nothing is known. This project's has 436 private frames
/// when it is ready, and 477 with a network (measured with `pxvm boot --until ready --json`; the
/// same on all backends).
const TYPICAL: u32 = 480;

/// Private frames that a VM is expected to have, on average over a fleet. It decides how many VMs
/// fit a device, and nothing else: a VM may take more as long as there are free ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expected {
    /// Frames when the VM is ready.
    pub frames: u32,
    /// Frames of a fleet's VMs at their most, if that is known.
    pub most: Option<u32>,
    /// Where that is known from.
    pub source: Source,
}

/// Where an expectation comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The user.
    Given,
    /// Earlier runs of this guest.
    EarlierRuns,
    /// Nowhere: it is what a typical guest uses.
    Typical,
}

impl Expected {
    /// Returns what the user says that a VM uses.
    pub fn given(size: Size) -> Self {
        let frames = size.0.div_ceil(FRAME_SIZE.into());
        Self {
            frames: u32::try_from(frames).unwrap_or(u32::MAX),
            most: None,
            source: Source::Given,
        }
    }

    /// Returns the memory that is expected.
    pub fn size(&self) -> Size {
        size_of_frames(self.frames)
    }
}

impl Default for Expected {
    fn default() -> Self {
        Self { frames: TYPICAL, most: None, source: Source::Typical }
    }
}

/// Returns the bytes in a number of frames.
pub fn size_of_frames(frames: u32) -> Size {
    Size(u64::from(frames) * u64::from(FRAME_SIZE))
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Given => "by --memory-per-vm",
            Self::EarlierRuns => "as in earlier runs",
            Self::Typical => "as is typical of guests: this one has not run here",
        })
    }
}
