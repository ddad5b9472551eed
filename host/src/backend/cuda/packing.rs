//! VMs per warp: how many VMs share one warp of the GPU.

/// Warps that a multiprocessor (SM) runs at full speed when each has one VM: two for each of its
/// four schedulers.
const FULL_SPEED: u32 = 8;

/// Returns the number of VMs per warp for `runnable` VMs on a device with so many
/// multiprocessors (SMs).
///
/// VMs of a warp run at full speed while they are converged, and one after the other while they
/// diverge. So few VMs get a warp each; they are packed once there are more VMs than warps that run
/// at full speed.
///
/// Measured on an H200 (132 multiprocessors), Linux guests that boot, each with its own name and
/// random numbers, seconds to the last READY: 8,448 VMs 5.4 with 4 a warp, 2.8 with 8, 3.1 with 16;
/// 32,768 VMs about the same with 16 and with 32.
pub fn vms_per_warp(runnable: u32, multiprocessors: u32) -> u32 {
    let warps = multiprocessors.saturating_mul(FULL_SPEED).max(1);
    runnable.div_ceil(warps).next_power_of_two().clamp(1, 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_vms_have_a_warp_each_and_many_share() {
        let table = [(0, 1), (1, 1), (256, 1), (1056, 1), (1057, 2), (8448, 8), (32_768, 32)];
        for (runnable, expected) in table {
            assert_eq!(vms_per_warp(runnable, 132), expected, "{runnable}");
        }
        assert_eq!(vms_per_warp(u32::MAX, 1), 32);
    }
}
