//! The calibration of this host: read from the cache, or measured and kept.

use std::time::{SystemTime, UNIX_EPOCH};

use super::say;
use crate::backend::cuda::driver::Info;
use crate::backend::cuda::{self, CudaError, gpu::Gpu};
use crate::calibration::hardware::Hardware;
use crate::calibration::measure::{self, MeasureError, OnGpu, Times};
use crate::calibration::{Calibration, store};
use crate::host;
use crate::image::cache;
use crate::signals;
use crate::stdio;
use crate::units::Size;

/// Why this host could not be calibrated.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// The CPU backend could not be measured.
    #[error("the CPU backend cannot be measured")]
    Cpu(#[source] MeasureError),
    /// The GPU cannot be used.
    #[error(transparent)]
    Open(CudaError),
    /// The GPU could not be measured.
    #[error("the GPU cannot be measured")]
    Gpu(#[source] MeasureError),
}

/// What a calibration came to.
pub struct Calibrated {
    /// The measured speeds.
    pub calibration: Calibration,
    /// Why they were not kept, if they were not.
    pub not_kept: Option<String>,
    /// The GPU that was measured, for a fleet.
    pub gpu: Option<Box<dyn Gpu>>,
}

/// Returns the calibration that was kept for some hardware. One that is damaged is none.
pub fn kept(hardware: &Hardware) -> Option<Calibration> {
    match store::read(&cache::calibrations(), hardware) {
        Ok(kept) => kept,
        Err(error) => {
            let file = store::path(&cache::calibrations(), hardware);
            tracing::info!("{} {}", file.display(), crate::exit::sentence(&error));
            None
        }
    }
}

/// Measures this host, and a GPU if one is given, and keeps the result. Where another process has
/// just done so, that is as good, unless it is to be `anew`.
pub fn calibrate(
    hardware: Hardware,
    gpu: Option<(u32, &Info)>,
    anew: bool,
) -> Result<Calibrated, CalibrateError> {
    let folder = cache::calibrations();
    let _lock = store::lock(&folder);
    if let Some(calibration) = kept(&hardware).filter(|_| !anew) {
        return Ok(Calibrated { calibration, not_kept: None, gpu: None });
    }
    let _message = InterruptMessage::new();
    say("calibrating this host, about 3 s, once");
    let mut made = measure(hardware, gpu)?;
    if made.not_kept.is_none() {
        let result = store::write(&folder, &made.calibration);
        made.not_kept =
            result.err().map(|e| format!("it cannot be kept in {}: {e}", folder.display()));
    }
    if let Some(why) = &made.not_kept {
        say(&format!("the calibration is for this run alone: {why}"));
    }
    Ok(made)
}

fn measure(hardware: Hardware, gpu: Option<(u32, &Info)>) -> Result<Calibrated, CalibrateError> {
    let times = Times::USUAL;
    let cpu = measure::cpu(host::cores() as u32, &times).map_err(CalibrateError::Cpu)?;
    let mut made = Calibrated {
        calibration: Calibration { hardware, measured_at: now(), cpu, gpu: None },
        not_kept: None,
        gpu: None,
    };
    if let Some((device, info)) = gpu {
        let gpu = cuda::open(device, &say).map_err(CalibrateError::Open)?;
        let available = gpu.available().map_err(CalibrateError::Open)?;
        let OnGpu { speed, unsteady, gpu } =
            measure::gpu(gpu, &times).map_err(CalibrateError::Gpu)?;
        made.calibration.gpu = Some(speed);
        made.gpu = Some(gpu);
        made.not_kept = match measure::taken_by_others(info.memory, Size(available)) {
            Some(taken) => Some(format!("other programs have {taken} of the GPU's memory")),
            None if unsteady => Some("other programs seem to use the GPU".to_owned()),
            None => None,
        };
    }
    Ok(made)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Returns the age of a calibration in seconds; 0 for one of the future.
pub fn age(calibration: &Calibration) -> u64 {
    now().saturating_sub(calibration.measured_at)
}

/// While this lives, a signal that ends the program says that nothing was kept.
struct InterruptMessage;

impl InterruptMessage {
    fn new() -> Self {
        signals::on_interrupt(|| {
            stdio::say("pxvm: interrupted while this host was calibrated; nothing was kept");
            signals::end();
        });
        Self
    }
}

impl Drop for InterruptMessage {
    fn drop(&mut self) {
        signals::end_on_interrupt();
    }
}
