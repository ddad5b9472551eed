//! What a calibration holds for: processor, GPU, driver, and the version of pxvm.

use std::fs;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::backend::cuda::{self, driver};
use crate::host;
use crate::units::hex;

/// Hardware and version of pxvm. A calibration of another one does not count.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// Version of pxvm, with a digest of its program for GPUs, which changes with the emulator.
    pub version: String,
    /// Model of the processor.
    pub cpu: String,
    /// Number of threads that run at once, by the affinity and the quota of this process.
    pub cores: u32,
    /// Processors that this process may use, as Linux lists them.
    pub affinity: String,
    /// The GPU, if there is one.
    pub gpu: Option<Card>,
}

/// Identity of a GPU.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Name of the card.
    pub name: String,
    /// UUID of the card, or of its part (MIG).
    pub uuid: String,
    /// Version of the driver, and of the newest CUDA that it supports.
    pub driver: String,
}

impl Hardware {
    /// Returns the hardware of this process, with a GPU.
    pub fn of_host(gpu: Option<&driver::Info>) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self {
            version: version(),
            cpu: cpu(&read("/proc/cpuinfo")),
            cores: host::cores() as u32,
            affinity: value(&read("/proc/self/status"), "Cpus_allowed_list").unwrap_or_default(),
            gpu: gpu.map(|info| {
                let kernel = kernel_driver(&read("/proc/driver/nvidia/version"));
                let (major, minor) = info.cuda;
                Card {
                    name: info.name.clone(),
                    uuid: info.uuid.clone(),
                    driver: format!("{kernel} CUDA {major}.{minor}").trim_start().to_owned(),
                }
            }),
        }
    }
}

fn version() -> String {
    let digest = hex(&Sha256::digest(cuda::ptx()));
    format!("{}-{}", env!("CARGO_PKG_VERSION"), &digest[..16])
}

/// Returns the value of the first line `key: value`.
fn value(text: &str, key: &str) -> Option<String> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().to_owned())
}

/// Returns the model of the processor: its name, or the numbers that Arm has instead.
fn cpu(cpuinfo: &str) -> String {
    if let Some(name) = value(cpuinfo, "model name") {
        return name;
    }
    let numbers = ["CPU implementer", "CPU part", "CPU variant", "CPU revision"];
    let numbers: Vec<String> = numbers.iter().filter_map(|key| value(cpuinfo, key)).collect();
    if numbers.is_empty() { std::env::consts::ARCH.to_owned() } else { numbers.join(" ") }
}

/// Returns the version of NVIDIA's kernel module.
fn kernel_driver(text: &str) -> String {
    let is_version = |word: &&str| {
        word.contains('.') && word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    };
    text.split_whitespace().find(is_version).unwrap_or_default().to_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns some hardware.
    pub fn hardware() -> Hardware {
        Hardware {
            version: "0.1.0-0123456789abcdef".to_owned(),
            cpu: "A Processor".to_owned(),
            cores: 32,
            affinity: "0-31".to_owned(),
            gpu: Some(Card {
                name: "A Card".to_owned(),
                uuid: "GPU-00000000-0000-0000-0000-000000000001".to_owned(),
                driver: "580.159.04 CUDA 13.0".to_owned(),
            }),
        }
    }

    #[test]
    fn this_host_is_known_and_the_same_each_time() {
        let here = Hardware::of_host(None);
        assert_eq!(here, Hardware::of_host(None));
        assert!(here.cores > 0 && !here.cpu.is_empty() && here.gpu.is_none(), "{here:?}");
        assert!(here.version.starts_with(env!("CARGO_PKG_VERSION")), "{here:?}");
        // Linux lists at least as many processors as run threads at once.
        assert!(here.affinity.starts_with(|c: char| c.is_ascii_digit()), "{here:?}");
    }

    #[test]
    fn a_processor_is_named_as_the_kernel_names_it() {
        let amd =
            "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n";
        assert_eq!(cpu(amd), "AMD EPYC");
        let arm =
            "processor\t: 0\nCPU implementer\t: 0x41\nCPU variant\t: 0x0\nCPU part\t: 0xd4f\n";
        assert_eq!(cpu(arm), "0x41 0xd4f 0x0");
        assert_eq!(cpu(""), std::env::consts::ARCH);
    }

    #[test]
    fn the_kernel_module_has_a_version() {
        let text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release \
            Build\nGCC version:  gcc version 12.2.0\n";
        assert_eq!(kernel_driver(text), "580.159.04");
        assert_eq!(kernel_driver(""), "");
    }
}
