//! `--backend`: finds what there is, and chooses where `auto` leaves it open.

use super::boot::PreparedBackend;
use super::calibrate::{self, CalibrateError, Calibrated};
use crate::backend::BackendError;
use crate::backend::cpu::check_count;
use crate::backend::cuda::driver::Info;
use crate::backend::cuda::gpu::Gpu;
use crate::backend::cuda::{self, CudaError, DeviceFleet};
use crate::calibration::hardware::Hardware;
use crate::calibration::measure::MeasureError;
use crate::choice::{Choice, Chosen, Step, Wanted};
use crate::cli::BackendChoice;
use crate::error::Error;
use crate::exit::sentence;
use crate::machine::Fleet;

/// The GPU that a fleet may use.
pub(super) enum Found {
    /// None is wanted.
    Unwanted,
    /// There is one. It is not open yet.
    Card(Info),
    /// There is none, and `--backend` does not insist.
    None(CudaError),
}

impl Found {
    /// Looks for a GPU, if `--backend` wants one.
    pub(super) fn look(backend: BackendChoice, device: u32) -> Result<Self, Error> {
        if backend == BackendChoice::Cpu {
            return Ok(Self::Unwanted);
        }
        match (backend, cuda::available(device)) {
            (_, Ok(info)) => Ok(Self::Card(info)),
            (BackendChoice::Auto, Err(error)) => Ok(Self::None(error)),
            (_, Err(error)) => Err(BackendError::from(error).into()),
        }
    }

    /// Whether there is one.
    pub(super) fn is_card(&self) -> bool {
        matches!(self, Self::Card(_))
    }
}

/// What runs a fleet.
pub(super) struct Selected {
    /// The choice of `auto`.
    pub choice: Option<Choice>,
    /// The device number, if it is a GPU.
    device: Option<u32>,
    /// That GPU, where it is open already.
    gpu: Option<Box<dyn Gpu>>,
    /// What else `auto` can do when the GPU fails, or has too little memory.
    fallback: Option<Wanted>,
}

impl Selected {
    /// What `--backend` says, without a choice.
    pub(super) fn given(device: Option<u32>) -> Self {
        Self { choice: None, device, gpu: None, fallback: None }
    }

    /// Chooses, and calibrates this host if the choice depends on it.
    pub(super) fn choose(wanted: Wanted, found: &Found, device: u32) -> Self {
        let card = match found {
            Found::Card(info) => Ok(info),
            Found::None(error) => Err(error),
            Found::Unwanted => Err(&CudaError::NoDriver),
        };
        let hardware = || Hardware::of_host(card.ok());
        let step = wanted.known(card.map(drop), || calibrate::kept(&hardware()));
        let (choice, gpu) = match (step, card) {
            (Step::Made(choice), _) => (choice, None),
            (Step::Calibrate, Ok(info)) => {
                match calibrate::calibrate(hardware(), Some((device, info)), false) {
                    Ok(Calibrated { calibration, gpu, .. }) => (wanted.measured(&calibration), gpu),
                    Err(error) => (uncalibrated(&wanted, &error), None),
                }
            }
            (Step::Calibrate, Err(error)) => (Choice::gpu_failed(error.to_string()), None),
        };
        let is_gpu = choice.chosen == Chosen::Cuda;
        Self {
            device: is_gpu.then_some(device),
            gpu: gpu.filter(|_| is_gpu),
            // Who gave an option for a GPU insists on it.
            fallback: (is_gpu && wanted.gpu_option.is_none()).then_some(wanted),
            choice: Some(choice),
        }
    }

    /// Reserves the memory of a fleet.
    pub(super) fn prepare(
        &mut self,
        fleet: &Fleet,
        options: cuda::Options,
        lockstep: bool,
    ) -> Result<PreparedBackend, Error> {
        let Some(device) = self.device else {
            check_count(fleet)?;
            return Ok(PreparedBackend::Cpu);
        };
        let open = match self.gpu.take() {
            Some(gpu) => Ok(gpu),
            None => cuda::open(device, &super::say).map_err(BackendError::from),
        };
        let error = match open.and_then(|gpu| DeviceFleet::new(gpu, fleet)) {
            Ok(device) if lockstep => {
                return Ok(PreparedBackend::Lockstep(device, options.packing));
            }
            Ok(device) => return Ok(PreparedBackend::Cuda(device, options)),
            Err(error) => error,
        };
        let Some(wanted) = self.fallback.take() else { return Err(error.into()) };
        if let Err(other) = check_count(fleet) {
            return Err(roomier(error, other).into());
        }
        self.device = None;
        self.choice = Some(match (room(&error), &self.choice) {
            (Some(room), Some(made)) => wanted.without_gpu_memory(room, made),
            _ => Choice::gpu_failed(sentence(&error)),
        });
        Ok(PreparedBackend::Cpu)
    }

    /// The number of the GPU that runs the fleet.
    pub(super) fn device(&self) -> Option<u32> {
        self.device
    }
}

/// Chooses where the calibration failed. A GPU that fails there, or has no memory even for it, is not
/// used.
fn uncalibrated(wanted: &Wanted, error: &CalibrateError) -> Choice {
    match error {
        CalibrateError::Cpu(_) | CalibrateError::Gpu(MeasureError::Late(_)) => {
            wanted.by_rule(sentence(error))
        }
        CalibrateError::Open(_) | CalibrateError::Gpu(_) => Choice::gpu_failed(sentence(error)),
    }
}

/// Returns, for an error of too little memory, for how many VMs there is some, if that is known.
fn room(error: &BackendError) -> Option<Option<u64>> {
    match error {
        BackendError::TooMany { fits, .. } => Some(Some(*fits)),
        BackendError::Cuda(CudaError::NoMemory { .. }) => Some(None),
        _ => None,
    }
}

/// Returns the error of the place that has memory for more VMs.
fn roomier(one: BackendError, other: BackendError) -> BackendError {
    let of = |error: &BackendError| room(error).flatten().unwrap_or(0);
    if of(&one) >= of(&other) { one } else { other }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::emulated::Emulated;
    use crate::calibration::{Runs, program};
    use crate::units::Size;

    fn wanted(count: u32) -> Wanted {
        Wanted {
            count,
            cores: 2,
            threads: 2,
            runs: Runs::Alike,
            writes_back: false,
            gpu_option: None,
            host_room: 100_000,
        }
    }

    /// A choice of the GPU that fell on an emulated one.
    fn on(gpu: Emulated, wanted: Wanted) -> Selected {
        Selected {
            choice: Some(wanted.by_rule("a test".to_owned())),
            device: Some(0),
            gpu: Some(Box::new(gpu)),
            fallback: wanted.gpu_option.is_none().then_some(wanted),
        }
    }

    fn prepare(selected: &mut Selected, count: u32) -> Result<PreparedBackend, Error> {
        selected.prepare(
            &program::fleet(count, Runs::Alike).unwrap(),
            cuda::Options::default(),
            false,
        )
    }

    #[test]
    fn a_fleet_that_fits_gets_the_gpu() {
        let mut selected = on(Emulated::new(Size::mib(256)), wanted(50));
        assert!(matches!(prepare(&mut selected, 50), Ok(PreparedBackend::Cuda(..))));
        assert_eq!(selected.device(), Some(0));
        assert_eq!(selected.choice.map(|choice| choice.chosen), Some(Chosen::Cuda));
    }

    #[test]
    fn a_gpu_without_memory_for_a_fleet_leaves_it_to_the_cpu() {
        let mut selected = on(Emulated::new(Size::mib(1)), wanted(50));
        assert!(matches!(prepare(&mut selected, 50), Ok(PreparedBackend::Cpu)));
        let line = selected.choice.as_ref().unwrap().to_string();
        assert!(line.starts_with("cpu: 50 VMs; the GPU has memory for about "), "{line}");
        assert_eq!(selected.device(), None);
    }

    #[test]
    fn a_gpu_that_fails_leaves_a_fleet_to_the_cpu() {
        let mut selected = on(Emulated::new(Size::mib(256)).failing_after(0), wanted(50));
        assert!(matches!(prepare(&mut selected, 50), Ok(PreparedBackend::Cpu)));
        let line = selected.choice.as_ref().unwrap().to_string();
        assert!(line.starts_with("cpu: the GPU cannot be used ("), "{line}");
    }

    #[test]
    fn who_gives_an_option_for_a_gpu_is_told_what_is_wrong_with_it() {
        let wanted = Wanted { gpu_option: Some("--lanes"), ..wanted(50) };
        let mut selected = on(Emulated::new(Size::mib(1)), wanted);
        let error = prepare(&mut selected, 50).err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains("more than the GPU has memory for")));
    }

    #[test]
    fn a_fleet_that_fits_nowhere_is_refused_with_the_larger_number() {
        let count = 30_000_000;
        let mut selected = on(Emulated::new(Size::mib(1)), wanted(count));
        let error = prepare(&mut selected, count).err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains("more than this host has memory for")));
    }

    #[test]
    fn without_a_gpu_nothing_is_measured() {
        let selected = Selected::choose(wanted(1000), &Found::None(CudaError::NoDriver), 0);
        let line = selected.choice.as_ref().unwrap().to_string();
        assert_eq!((line.as_str(), selected.device()), ("cpu: no GPU (no libcuda.so.1)", None));
    }

    #[test]
    fn a_failed_calibration_says_so_and_what_is_taken_instead() {
        let late = || MeasureError::Late(std::time::Duration::from_secs(15));
        let exclusive = CudaError::Exclusive { name: "A Card".to_owned() };
        let table = [
            (
                CalibrateError::Gpu(late()),
                "gpu: 100 VMs for this host's 2 cores, by rule of thumb \
                 (the GPU cannot be measured: it was not done after 15 s)",
            ),
            (
                CalibrateError::Cpu(late()),
                "gpu: 100 VMs for this host's 2 cores, by rule of thumb \
                 (the CPU backend cannot be measured: it was not done after 15 s)",
            ),
            (
                CalibrateError::Gpu(MeasureError::Ended("PowerOff 0".to_owned())),
                "cpu: the GPU cannot be used (the GPU cannot be measured: a VM ended: PowerOff 0)",
            ),
            (
                CalibrateError::Open(exclusive),
                "cpu: the GPU cannot be used (CUDA device A Card cannot be shared: its compute mode \
                 is exclusive and another process has it, or prohibits all (see nvidia-smi, or \
                 --device for another one))",
            ),
        ];
        for (error, line) in table {
            assert_eq!(uncalibrated(&wanted(100), &error).to_string(), line);
        }
    }
}
