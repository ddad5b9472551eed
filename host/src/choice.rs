//! The choice of `--backend auto`: the CPU or the GPU, and why.
//!
//! A pure function of what is asked, what GPU is there, and the calibration of this host, which is
//! called for only when the rest does not settle it.

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::backend::cuda::CudaError;
use crate::calibration::{Calibration, Runs};

/// VMs for each thread of the host from which on a GPU is taken where nothing was measured: a core
/// runs about so many as fast as a GPU that is not full.
const RULE_OF_THUMB: u32 = 20;

/// What is asked of a backend, as far as the choice depends on it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Number of VMs: the capacity of the fleet.
    pub count: u32,
    /// Number of threads that run at once on this host.
    pub cores: u32,
    /// Number of threads that the CPU backend would have.
    pub threads: u32,
    /// How the VMs run: a fleet that ends when it has booted runs alike. What stays is given
    /// different work.
    pub runs: Runs,
    /// Whether guests write to disk images, which only the CPU backend can do.
    pub writes_back: bool,
    /// An option that was given and is for a GPU.
    pub gpu_option: Option<&'static str>,
    /// Number of VMs for which the host has memory.
    pub host_room: u64,
}

/// The two that `auto` chooses from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Chosen {
    /// The CPU backend.
    Cpu,
    /// The GPU.
    Cuda,
}

/// A choice. Its text is the line that the user sees.
#[derive(Clone, PartialEq, Debug)]
pub struct Choice {
    /// What was chosen.
    pub chosen: Chosen,
    /// Why.
    pub reason: Reason,
    /// What both were expected to come to, where that was the reason.
    pub estimates: Option<Estimates>,
}

/// Speeds that are expected, in billions of instructions a second of all VMs together.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Estimates {
    /// Whether VMs are expected to run alike: `true` for fleets that only boot.
    pub alike: bool,
    /// Speed of the CPU backend.
    pub cpu_gips: f64,
    /// Speed of the GPU.
    pub cuda_gips: f64,
}

/// Why a backend was chosen.
#[derive(Clone, PartialEq, Debug)]
pub enum Reason {
    /// There is no GPU to use, for the reason that follows.
    NoGpu(String),
    /// Guests write to disk images.
    WriteBack,
    /// An option is for a GPU.
    GpuOption(&'static str),
    /// Each VM has a core of its own.
    CoreEach {
        /// Number of VMs.
        count: u32,
        /// Number of threads.
        threads: Threads,
    },
    /// The other one is slower.
    Faster {
        /// Number of VMs.
        count: u32,
        /// What is slower.
        other: Other,
        /// How many times as long the other one would take.
        times: f64,
    },
    /// The other one would be faster, and lacks memory.
    NoMemory {
        /// Number of VMs.
        count: u32,
        /// What lacks memory.
        place: &'static str,
        /// For how many VMs there is memory, where that is known.
        room: Option<u64>,
    },
    /// Nothing was measured.
    RuleOfThumb {
        /// Number of VMs.
        count: u32,
        /// Number of threads.
        threads: Threads,
        /// Why nothing was measured.
        why: String,
    },
    /// The GPU failed before a fleet was started on it, for the reason that follows.
    GpuFailed(String),
}

/// The slower one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Other {
    /// The GPU.
    Gpu,
    /// So many threads of the host.
    Threads(Threads),
}

/// Threads that run VMs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Threads {
    /// How many there are.
    pub count: u32,
    /// Whether these are all that run at once on this host.
    pub all: bool,
}

impl fmt::Display for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { count: 1, all: true } => f.write_str("this host's core"),
            Self { count, all: true } => write!(f, "this host's {count} cores"),
            Self { count: 1, all: false } => f.write_str("one thread"),
            Self { count, all: false } => write!(f, "{count} threads"),
        }
    }
}

/// The next step of a choice.
#[derive(Clone, PartialEq, Debug)]
pub enum Step {
    /// The choice is made.
    Made(Choice),
    /// It takes a calibration.
    Calibrate,
}

impl Wanted {
    fn threads(&self) -> Threads {
        let count = self.threads.min(self.cores).max(1);
        Threads { count, all: count == self.cores }
    }

    /// Chooses by what is known without measuring: whether there is a GPU, or why not, and the
    /// calibration that was `kept`, which is read only where it counts.
    pub fn known(
        &self,
        gpu: Result<(), &CudaError>,
        kept: impl FnOnce() -> Option<Calibration>,
    ) -> Step {
        let made = |chosen, reason| Step::Made(Choice { chosen, reason, estimates: None });
        if self.writes_back {
            return made(Chosen::Cpu, Reason::WriteBack);
        }
        if let Err(error) = gpu {
            return made(Chosen::Cpu, Reason::NoGpu(missing(error)));
        }
        if let Some(option) = self.gpu_option {
            return made(Chosen::Cuda, Reason::GpuOption(option));
        }
        if let Some(kept) = kept() {
            return Step::Made(self.measured(&kept));
        }
        let threads = self.threads();
        if self.count <= threads.count && u64::from(self.count) <= self.host_room {
            // No GPU runs a few VMs as fast as a core each.
            return made(Chosen::Cpu, Reason::CoreEach { count: self.count, threads });
        }
        Step::Calibrate
    }

    /// Chooses by a calibration.
    pub fn measured(&self, calibration: &Calibration) -> Choice {
        let Self { count, runs, .. } = *self;
        let threads = self.threads();
        let Some(gpu) = &calibration.gpu else {
            return self.by_rule("no GPU was measured".to_owned());
        };
        let cpu_speed = calibration.cpu.estimate(count, threads.count).max(1.0);
        let gpu_speed = gpu.estimate(count, runs).max(1.0);
        let estimates = Some(Estimates {
            alike: runs == Runs::Alike,
            cpu_gips: cpu_speed / 1e9,
            cuda_gips: gpu_speed / 1e9,
        });
        let (chosen, other, times) = if gpu_speed > cpu_speed {
            (Chosen::Cuda, Other::Threads(threads), gpu_speed / cpu_speed)
        } else {
            (Chosen::Cpu, Other::Gpu, cpu_speed / gpu_speed)
        };
        if chosen == Chosen::Cpu && u64::from(count) > self.host_room {
            let reason = Reason::NoMemory { count, place: "this host", room: Some(self.host_room) };
            return Choice { chosen: Chosen::Cuda, reason, estimates };
        }
        Choice { chosen, reason: Reason::Faster { count, other, times }, estimates }
    }

    /// Chooses without a calibration: `why` there is none.
    pub fn by_rule(&self, why: String) -> Choice {
        let threads = self.threads();
        let count = self.count;
        let many = count > threads.count.saturating_mul(RULE_OF_THUMB);
        let fits = u64::from(count) <= self.host_room;
        let chosen = if many || !fits { Chosen::Cuda } else { Chosen::Cpu };
        Choice { chosen, reason: Reason::RuleOfThumb { count, threads, why }, estimates: None }
    }

    /// Chooses the CPU, because the GPU has too little memory for the fleet.
    pub fn without_gpu_memory(&self, room: Option<u64>, made: &Choice) -> Choice {
        let reason = Reason::NoMemory { count: self.count, place: "the GPU", room };
        Choice { chosen: Chosen::Cpu, reason, estimates: made.estimates }
    }
}

/// Returns why there is no GPU, without advice: nobody has asked for one.
fn missing(error: &CudaError) -> String {
    match error {
        CudaError::NoDriver => "no libcuda.so.1".to_owned(),
        CudaError::NoDevice { count: 0, .. } => "the driver sees none".to_owned(),
        other => other.to_string(),
    }
}

impl Choice {
    /// Returns the choice of the CPU because the GPU failed.
    pub fn gpu_failed(why: String) -> Self {
        Self { chosen: Chosen::Cpu, reason: Reason::GpuFailed(why), estimates: None }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.chosen {
            Chosen::Cpu => "cpu",
            Chosen::Cuda => "gpu",
        };
        write!(f, "{name}: {}", self.reason)
    }
}

/// A number of VMs.
struct Vms(u32);

impl fmt::Display for Vms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} VM{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}

/// How much longer something takes.
struct Longer(f64);

impl fmt::Display for Longer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ..1.15 => f.write_str("about as long"),
            ..2.95 => write!(f, "{:.1} times as long", self.0),
            _ => write!(f, "{:.0} times as long", self.0),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoGpu(why) => write!(f, "no GPU ({why})"),
            Self::WriteBack => f.write_str("disks with :rw work on the CPU backend only"),
            Self::GpuOption(option) => write!(f, "{option} is for a GPU"),
            Self::CoreEach { count, threads } => {
                write!(f, "{}, no more than {threads}", Vms(*count))
            }
            Self::Faster { count, other, times } => {
                let vms = Vms(*count);
                let longer = Longer(*times);
                match other {
                    Other::Gpu => write!(f, "{vms}; the GPU would take {longer}"),
                    Other::Threads(threads) => write!(f, "{vms}; {threads} would take {longer}"),
                }
            }
            Self::NoMemory { count, place, room } => {
                write!(f, "{}; {place} has memory for ", Vms(*count))?;
                match room {
                    Some(room) => write!(f, "about {room}"),
                    None => f.write_str("fewer"),
                }
            }
            Self::RuleOfThumb { count, threads, why } => {
                write!(f, "{} for {threads}, by rule of thumb ({why})", Vms(*count))
            }
            Self::GpuFailed(why) => write!(f, "the GPU cannot be used ({why})"),
        }
    }
}

impl Serialize for Choice {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut fields = to.serialize_struct("Choice", 3)?;
        fields.serialize_field("backend", &self.chosen)?;
        fields.serialize_field("reason", &self.reason.to_string())?;
        fields.serialize_field("estimates", &self.estimates)?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibration::tests::large;

    fn wanted(count: u32) -> Wanted {
        Wanted {
            count,
            cores: 32,
            threads: 32,
            runs: Runs::Alike,
            writes_back: false,
            gpu_option: None,
            host_room: 100_000,
        }
    }

    fn made(step: Step) -> String {
        match step {
            Step::Made(choice) => choice.to_string(),
            Step::Calibrate => "calibrate".to_owned(),
        }
    }

    #[test]
    fn what_is_obvious_needs_no_calibration() {
        let known = |wanted: &Wanted| made(wanted.known(Ok(()), || None));
        let table = [
            (wanted(1), "cpu: 1 VM, no more than this host's 32 cores"),
            (wanted(32), "cpu: 32 VMs, no more than this host's 32 cores"),
            (Wanted { threads: 16, ..wanted(16) }, "cpu: 16 VMs, no more than 16 threads"),
            (wanted(33), "calibrate"),
            (Wanted { threads: 16, ..wanted(32) }, "calibrate"),
            (Wanted { host_room: 7, ..wanted(8) }, "calibrate"),
            (Wanted { gpu_option: Some("--lanes"), ..wanted(1) }, "gpu: --lanes is for a GPU"),
            (
                Wanted { writes_back: true, ..wanted(8448) },
                "cpu: disks with :rw work on the CPU backend only",
            ),
        ];
        for (wanted, expected) in table {
            assert_eq!(known(&wanted), expected);
        }
    }

    #[test]
    fn without_a_gpu_it_is_the_cpu_and_no_calibration_is_read() {
        let table = [
            (CudaError::NoDriver, "cpu: no GPU (no libcuda.so.1)"),
            (CudaError::NoDevice { index: 0, count: 0 }, "cpu: no GPU (the driver sees none)"),
            (CudaError::NoPtx("no PTX"), "cpu: no GPU (this pxvm has no GPU part: no PTX)"),
        ];
        for (error, expected) in table {
            let step = wanted(8448).known(Err(&error), || panic!("nobody needs it"));
            assert_eq!(made(step), expected);
        }
    }

    #[test]
    fn the_faster_one_is_chosen_and_the_other_one_is_told() {
        let of = |wanted: Wanted| made(wanted.known(Ok(()), || Some(large())));
        let apart = |count| Wanted { runs: Runs::Apart, ..wanted(count) };
        let table = [
            (wanted(1), "cpu: 1 VM; the GPU would take 25 times as long"),
            (wanted(256), "cpu: 256 VMs; the GPU would take 2.1 times as long"),
            (wanted(8448), "gpu: 8448 VMs; this host's 32 cores would take 10 times as long"),
            (apart(8448), "gpu: 8448 VMs; this host's 32 cores would take 1.7 times as long"),
            (apart(256), "cpu: 256 VMs; the GPU would take 2.7 times as long"),
            (wanted(550), "gpu: 550 VMs; this host's 32 cores would take about as long"),
            (
                Wanted { threads: 1, ..wanted(256) },
                "gpu: 256 VMs; one thread would take 10 times as long",
            ),
            (
                Wanted { host_room: 100, ..wanted(256) },
                "gpu: 256 VMs; this host has memory for about 100",
            ),
        ];
        for (wanted, expected) in table {
            assert_eq!(of(wanted), expected);
        }
    }

    #[test]
    fn where_nothing_was_measured_a_rule_decides_and_why_is_told() {
        let rule = |wanted: Wanted| wanted.by_rule("the calibration took too long".to_owned());
        let few = rule(wanted(640));
        assert_eq!(
            few.to_string(),
            "cpu: 640 VMs for this host's 32 cores, by rule of thumb (the calibration took too long)"
        );
        assert_eq!(rule(wanted(641)).chosen, Chosen::Cuda);
        assert_eq!(rule(Wanted { host_room: 10, ..wanted(64) }).chosen, Chosen::Cuda);
        let cpu_only = crate::calibration::Calibration { gpu: None, ..large() };
        assert!(wanted(64).measured(&cpu_only).estimates.is_none());
    }

    #[test]
    fn a_gpu_that_lacks_memory_or_fails_is_told() {
        let first = wanted(60_000).measured(&large());
        let second = wanted(60_000).without_gpu_memory(Some(54_053), &first);
        assert_eq!(second.to_string(), "cpu: 60000 VMs; the GPU has memory for about 54053");
        assert_eq!((second.chosen, second.estimates), (Chosen::Cpu, first.estimates));
        let failed = Choice::gpu_failed("it hangs".to_owned());
        assert_eq!(failed.to_string(), "cpu: the GPU cannot be used (it hangs)");
    }

    #[test]
    fn a_program_reads_backend_reason_and_estimates() {
        let json = serde_json::to_value(wanted(8448).measured(&large())).unwrap();
        assert_eq!(json["backend"], "cuda");
        assert_eq!(json["reason"], "8448 VMs; this host's 32 cores would take 10 times as long");
        let estimates = &json["estimates"];
        assert_eq!((&estimates["alike"], &estimates["cuda_gips"]), (&true.into(), &40.0.into()));
        assert!(estimates["cpu_gips"].as_f64().is_some_and(|gips| (4.0..4.3).contains(&gips)));
        let failed = Choice::gpu_failed(String::new());
        assert!(serde_json::to_value(failed).unwrap()["estimates"].is_null());
    }
}
