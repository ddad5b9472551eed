//! Errors of the GPU and the CUDA driver, with advice on what to do.

use crate::units::Size;

/// The oldest driver, that of CUDA 11.8: it is the first to read our version of PTX
/// (`ptx_builder::FEATURES`).
macro_rules! oldest_driver {
    () => {
        "520"
    };
}
pub(super) use oldest_driver;

/// Why a GPU cannot be used, or not any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// There is no CUDA driver.
    #[error(
        "libcuda is not installed; install NVIDIA's driver, version {} or later",
        oldest_driver!()
    )]
    NoDriver,
    /// This build has no code for a GPU.
    #[error("this pxvm has no GPU part: {0}")]
    NoPtx(&'static str),
    /// The driver has no device of this index.
    #[error(
        "there is no CUDA device {index}: the driver sees {count}; see --device, nvidia-smi and CUDA_VISIBLE_DEVICES"
    )]
    NoDevice {
        /// Index of the device that was requested.
        index: u32,
        /// Number of devices.
        count: u32,
    },
    /// The device is too old.
    #[error("CUDA device {name} has compute capability {major}.{minor}; 7.5 (Turing) is needed")]
    TooOld {
        /// Name of the device.
        name: String,
        /// Major part of the compute capability.
        major: i32,
        /// Minor part of the compute capability.
        minor: i32,
    },
    /// The driver's compiler refused our PTX.
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
    /// A CUDA call failed.
    #[error("{call} failed: {what} (CUDA error {code}); {advice}")]
    Call {
        /// Name of the call.
        call: &'static str,
        /// The driver's description of the error.
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
        /// Name of the call.
        call: &'static str,
        /// Bytes that were requested.
        bytes: Size,
        /// CUDA's number.
        code: u32,
    },
    /// Other programs use all of the device's memory.
    #[error(
        "CUDA device {name} has no memory left, so that 0 machines fit: another process has it \
         (see nvidia-smi)"
    )]
    Full {
        /// Name of the device.
        name: String,
    },
    /// The device's compute mode keeps this process out.
    #[error(
        "CUDA device {name} cannot be shared: its compute mode is exclusive and another process has \
         it, or prohibits all (see nvidia-smi, or --device for another one)"
    )]
    Exclusive {
        /// Name of the device.
        name: String,
    },
    /// The device does not respond.
    #[error(
        "{call} failed: the GPU did not answer for {seconds} seconds; see dmesg for messages of \
         NVIDIA's driver (Xid)"
    )]
    Hung {
        /// The call that was waited for.
        call: &'static str,
        /// Seconds that were waited.
        seconds: u64,
    },
    /// Host and device disagree although nothing failed: a bug of pxvm.
    #[error("the GPU's part contradicts the host's: {0}")]
    Contract(&'static str),
}

impl CudaError {
    /// Whether the user requested a GPU that cannot be used, or more memory than it has. Nothing
    /// was started in that case.
    pub fn is_usage(&self) -> bool {
        use CudaError::{Exclusive, Full, NoDevice, NoDriver, NoMemory, NoPtx, TooOld};
        let no_gpu = matches!(self, NoDriver | NoPtx(_) | NoDevice { .. } | TooOld { .. });
        no_gpu || matches!(self, Full { .. } | Exclusive { .. } | NoMemory { .. })
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
