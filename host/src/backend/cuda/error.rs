//! What can go wrong with a GPU, and what to try.

use crate::units::Size;

/// The oldest driver, that of CUDA 11.8: it is the first to read our version of PTX
/// (`ptx_builder::FEATURES`).
macro_rules! oldest_driver {
    () => {
        "520"
    };
}
pub(super) use oldest_driver;

/// A GPU cannot be used, or not any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// No driver.
    #[error(
        "libcuda is not installed; install NVIDIA's driver, version {} or later",
        oldest_driver!()
    )]
    NoDriver,
    /// The program has no code for a GPU.
    #[error("this pxvm has no GPU part: {0}")]
    NoPtx(&'static str),
    /// The driver sees no such device.
    #[error(
        "there is no CUDA device {index}: the driver sees {count}; see --device, nvidia-smi and CUDA_VISIBLE_DEVICES"
    )]
    NoDevice {
        /// Which one was asked for.
        index: u32,
        /// How many there are.
        count: u32,
    },
    /// The device is too old.
    #[error("CUDA device {name} has compute capability {major}.{minor}; 7.5 (Turing) is needed")]
    TooOld {
        /// Its name.
        name: String,
        /// Of the capability.
        major: i32,
        /// Of the capability.
        minor: i32,
    },
    /// The driver's compiler refused our code.
    #[error(
        "the driver refused pxvm's PTX (CUDA error {code}); a driver of version {} or later takes it. \
         It said: {log}",
        oldest_driver!()
    )]
    Refused {
        /// CUDA's error number.
        code: u32,
        /// The compiler's log.
        log: String,
    },
    /// A call failed.
    #[error("{call} failed: {what} (CUDA error {code}); {advice}")]
    Call {
        /// Which one.
        call: &'static str,
        /// CUDA's words.
        what: String,
        /// CUDA's number.
        code: u32,
        /// What to try.
        advice: &'static str,
    },
    /// An allocation failed.
    #[error(
        "the GPU has no {bytes} left ({call}, CUDA error {code}); another process may have taken it: \
         see nvidia-smi, or run fewer machines"
    )]
    NoMemory {
        /// Which call.
        call: &'static str,
        /// How much was asked for.
        bytes: Size,
        /// CUDA's number.
        code: u32,
    },
    /// All of the device's memory is somebody else's.
    #[error(
        "CUDA device {name} has no memory left, so that 0 machines fit: another process has it \
         (see nvidia-smi)"
    )]
    Full {
        /// Its name.
        name: String,
    },
    /// It does not answer.
    #[error(
        "{call} failed: the GPU did not answer for {seconds} seconds; see dmesg for messages of \
         NVIDIA's driver (Xid)"
    )]
    Hung {
        /// What was waited for.
        call: &'static str,
        /// How long.
        seconds: u64,
    },
    /// It stopped although nothing failed: a bug of ours.
    #[error("the GPU's part contradicts the host's: {0}")]
    Contract(&'static str),
}

impl CudaError {
    /// Whether the user asked for a GPU where there is none that can be used, or for more memory
    /// than it has. Nothing was started then.
    pub fn is_usage(&self) -> bool {
        use CudaError::{Full, NoDevice, NoDriver, NoMemory, NoPtx, TooOld};
        matches!(
            self,
            NoDriver | NoPtx(_) | NoDevice { .. } | TooOld { .. } | Full { .. } | NoMemory { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn all_name_the_same_oldest_driver() {
        // The driver of CUDA 11.8 is the first that reads PTX 7.8.
        assert_eq!((ptx_builder::FEATURES, oldest_driver!()), ("+ptx78", "520"));
        let documents = [
            ("gpu.md", include_str!("../../../../docs/guide/gpu.md")),
            ("guide/README.md", include_str!("../../../../docs/guide/README.md")),
            ("cli.md", include_str!("../../../../docs/cli.md")),
        ];
        for (name, text) in documents {
            let words: Vec<&str> = text.split_whitespace().collect();
            let said: Vec<_> =
                words.windows(4).filter(|w| w[0] == "version" && w[2] == "or").collect();
            assert!(!said.is_empty() && said.iter().all(|w| w[1] == oldest_driver!()), "{name}");
        }
    }
}
