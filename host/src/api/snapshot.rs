//! Snapshot of a VM in the API: registers, CSRs and devices, as JSON. Devices are read through
//! their own registers, on a copy of the VM.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use emu_core::abi::{Platform, REGISTER_NAMES, Vm};
use emu_core::csr::{self, CsrOp};
use emu_core::dev::virtio::DeviceKind;
use emu_core::mmu::Privilege;
use emu_core::port::NullPort;
use serde::Serialize;

use super::SharedApp;
use super::bodies::Id;
use super::error::ApiError;
use crate::backend::Inspection;

/// Numbers of the CSRs in a snapshot.
const CSRS: [u32; 24] = [
    0x100, 0x104, 0x105, 0x106, 0x10a, 0x140, 0x141, 0x142, 0x143, 0x144, 0x180, 0x300, 0x301,
    0x302, 0x303, 0x304, 0x305, 0x306, 0x340, 0x341, 0x342, 0x343, 0x344, 0x30a,
];

/// UART registers that can be read without side effects, with their offsets.
const UART: [(&str, u32); 5] = [("ier", 1), ("lcr", 3), ("mcr", 4), ("lsr", 5), ("msr", 6)];

/// Registers by name.
type Words = BTreeMap<&'static str, u32>;

/// Body of a response: a VM between two slices.
#[derive(Serialize)]
pub struct SnapshotBody {
    pc: u32,
    privilege: &'static str,
    waiting: bool,
    instret: u64,
    time: u64,
    timecmp: u64,
    registers: Words,
    csrs: Words,
    devices: BTreeMap<String, Words>,
    private_frames: u32,
}

/// `GET /api/v1/vms/{id}/snapshot`
pub async fn snapshot(
    State(app): State<SharedApp>,
    Id(id): Id,
) -> Result<Json<SnapshotBody>, ApiError> {
    let inspection = app.fleet.inspect(id).await?.ok_or(ApiError::NoMemory(id))?;
    Ok(Json(describe(inspection)))
}

fn describe(inspection: Inspection) -> SnapshotBody {
    let Inspection { vm, instret, private_frames } = inspection;
    let Vm { mut hart, mut platform } = *vm;
    let registers = REGISTER_NAMES.into_iter().zip(hart.x).collect();
    let privilege = match hart.ctx.privilege {
        Privilege::User => "U",
        Privilege::Supervisor => "S",
        Privilege::Machine => "M",
    };
    let pc = hart.pc;
    let devices = devices(&mut platform);
    // Read in M-mode, as the machine's own software would.
    hart.ctx.privilege = Privilege::Machine;
    let csr = |number| {
        let value = platform.csr_access(&mut hart, number, CsrOp::Set, None);
        Some((csr::name(number)?, value.ok()?.0))
    };
    let csrs = CSRS.into_iter().filter_map(csr).collect();
    let clock = &platform.clock;
    SnapshotBody {
        pc,
        privilege,
        waiting: platform.waiting != 0,
        instret,
        time: clock.time(),
        timecmp: clock.timecmp(),
        registers,
        csrs,
        devices,
        private_frames,
    }
}

fn devices(platform: &mut Platform) -> BTreeMap<String, Words> {
    let dev = &mut platform.dev;
    let mut uart = dev.uart.clone();
    let uart = UART.map(|(name, offset)| (name, uart.read(offset, &mut NullPort)));
    let plic = |name, offset| (name, dev.plic.clone().read(offset));
    let plic = [
        plic("pending", 0x1000),
        plic("enable_m", 0x2000),
        plic("enable_s", 0x2080),
        plic("threshold_m", 0x20_0000),
        plic("threshold_s", 0x20_1000),
    ];
    let clint = [("msip", dev.clint.msip)];
    let mut all = BTreeMap::from([
        ("uart".to_owned(), Words::from(uart)),
        ("plic".to_owned(), Words::from(plic)),
        ("clint".to_owned(), Words::from(clint)),
    ]);
    for device in DeviceKind::ALL {
        if !dev.virtio.has(device) {
            continue;
        }
        let slot = dev.virtio.slot(device);
        let register = |offset| dev.virtio.read(slot, offset, 4);
        let mut words = Words::from([
            ("slot", slot),
            ("status", register(0x070)),
            ("interrupt_status", register(0x060)),
        ]);
        if device == DeviceKind::Net {
            let counters = &dev.virtio.net.counters;
            // Values within the range of JavaScript's integers.
            words.extend([
                ("rx_frames", counters.rx_packets as u32),
                ("rx_drops", counters.rx_drops as u32),
                ("tx_frames", counters.tx_packets as u32),
                ("tx_drops", counters.tx_drops as u32),
            ]);
        }
        all.insert(format!("virtio_{}", device.name()), words);
    }
    all
}

#[cfg(test)]
mod tests {
    use emu_core::dev::virtio::net::Net;
    use emu_core::layout::MachineKind;

    use super::*;

    #[test]
    fn a_snapshot_tells_registers_by_name() {
        let mut vm = Vm::new(MachineKind::Virt);
        (vm.hart.x[10], vm.hart.pc) = (7, 0x8000_0000);
        vm.platform.dev.virtio.net = Net::new([2; 6]);
        let body = describe(Inspection { vm: Box::new(vm), instret: 5, private_frames: 3 });
        let json = serde_json::to_value(&body).unwrap();
        assert_eq!((&json["registers"]["a0"], &json["privilege"]), (&7.into(), &"M".into()));
        assert_eq!(json["csrs"].as_object().unwrap().len(), CSRS.len());
        assert_eq!(json["devices"]["virtio_net"]["status"], 0);
        assert_eq!(json["devices"]["uart"]["lsr"], 0x60);
        assert!(json["devices"]["virtio_blk"].is_null());
    }
}
