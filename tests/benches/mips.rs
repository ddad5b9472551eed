//! Instructions a second: by class, compute loop, TLB, copy on write, Linux boot.
//!
//! `cargo bench -p pxvm-tests`; throughput is in elements, which are instructions (or faults, for
//! copy on write). Compare two revisions on one machine, never a number with a wish:
//! `--save-baseline before`, then `--baseline before`.

use std::hint::black_box;
use std::path::PathBuf;
use std::rc::Rc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use emu_core::abi::ExitCode;
use emu_core::chacha::ChaCha;
use emu_core::dev::virtio::{net::Net, rng::Rng};
use emu_core::mem::FRAME_SIZE;
use emu_core::mmu::Privilege::Supervisor;
use pxvm_tests::asm::{Asm, csr, reg::*};
use pxvm_tests::machine::{DATA, RAM, Sv32, TestMachine, pte};
use pxvm_tests::memory::{Frames, Space};

/// Instructions in a measurement.
const SLICE: u32 = 1_000_000;
/// Times that a loop's body stands in it, so that the loop itself counts little.
const UNROLL: u32 = 32;

/// A machine that repeats `body` for ever.
fn looping(body: impl Fn(&mut Asm, u32)) -> TestMachine {
    let mut m = TestMachine::program(|a| {
        let top = a.mark();
        for n in 0..UNROLL {
            body(a, n);
        }
        a.j(top);
    });
    for r in 1..32 {
        m.set_x(r, 0x1234_5678u32.wrapping_mul(r) | 1);
    }
    m.set_x(S0, DATA);
    m
}

fn measure(c: &mut Criterion, group: &str, name: &str, mut m: TestMachine) {
    let mut group = c.benchmark_group(group);
    group.throughput(Throughput::Elements(SLICE.into()));
    group.bench_function(name, |b| b.iter(|| black_box(m.run(SLICE))));
    group.finish();
}

fn classes(c: &mut Criterion) {
    let mut class = |name, body: &dyn Fn(&mut Asm, u32)| measure(c, "class", name, looping(body));
    class("alu", &|a, n| {
        match n % 4 {
            0 => a.add(A0, A1, A2),
            1 => a.xori(A1, A0, 0x55),
            2 => a.srl(A2, A3, A0),
            _ => a.sltu(A3, A1, A2),
        };
    });
    class("mul", &|a, n| {
        if n % 2 == 0 {
            a.mul(A0, A1, A2)
        } else {
            a.mulhu(A1, A0, A3)
        };
    });
    class("div", &|a, n| {
        if n % 2 == 0 {
            a.divu(A0, A1, A2)
        } else {
            a.rem(A3, A4, A5)
        };
    });
    class("load", &|a, n| {
        a.lw(A0, 4 * n as i32, S0);
    });
    class("store", &|a, n| {
        a.sw(A0, 4 * n as i32, S0);
    });
    // As on a stack that starts at an odd address.
    class("misaligned_load", &|a, n| {
        a.lw(A0, 4 * n as i32 + 1, S0);
    });
    class("misaligned_store", &|a, n| {
        a.sw(A0, 4 * n as i32 + 1, S0);
    });
    class("branch_taken", &|a, _| {
        let next = a.label();
        a.beq(ZERO, ZERO, next).place(next);
    });
    class("branch_not_taken", &|a, _| {
        let next = a.label();
        a.bne(ZERO, ZERO, next).place(next);
    });
    class("amo", &|a, _| {
        a.amoadd_w(A0, A1, S0);
    });
    class("lr_sc", &|a, n| {
        if n % 2 == 0 {
            a.lr_w(A0, S0)
        } else {
            a.sc_w(A1, A0, S0)
        };
    });
    class("csr", &|a, n| {
        if n % 2 == 0 {
            a.csrrw(A0, csr::MSCRATCH, A1)
        } else {
            a.csrr(A2, csr::MSCRATCH)
        };
    });
    let beside_code = TestMachine::program(|a| {
        let data = a.label();
        a.la(S0, data);
        let top = a.mark();
        a.lw(A0, 0, S0).addi(A0, A0, 1).sw(A0, 0, S0).j(top).place(data).word(0);
    });
    measure(c, "class", "store_beside_code", beside_code);
    let call = TestMachine::program(|a| {
        let f = a.label();
        let top = a.mark();
        for _ in 0..UNROLL {
            a.jal(RA, f);
        }
        a.j(top).place(f).ret();
    });
    measure(c, "class", "call_and_return", call);
    let ecall = TestMachine::program(|a| {
        let handler = a.label();
        a.la(T0, handler).csrrw(ZERO, csr::MTVEC, T0);
        let top = a.mark();
        a.ecall().j(top);
        a.place(handler).csrr(T0, csr::MEPC).addi(T0, T0, 4).csrrw(ZERO, csr::MEPC, T0).mret();
    });
    measure(c, "class", "trap_and_return", ecall);
}

/// Mixes registers, memory and branches as compiled code does.
fn compute_loop(c: &mut Criterion) {
    let m = TestMachine::program(|a| {
        let (top, skip) = (a.label(), a.label());
        a.li(S0, DATA).li(S1, 0x2545_f491).place(top);
        a.slli(T0, S1, 13).xor(S1, S1, T0).srli(T0, S1, 17).xor(S1, S1, T0);
        a.slli(T0, S1, 5).xor(S1, S1, T0).andi(T1, S1, 0x3fc).add(T1, T1, S0);
        a.lw(T2, 0, T1).add(T2, T2, S1).sw(T2, 0, T1);
        a.andi(T3, S1, 8).beq(T3, ZERO, skip).addi(S2, S2, 1).place(skip);
        a.mul(S3, S3, S1).addi(S4, S4, 1).j(top);
    });
    measure(c, "loop", "compute", m);
}

/// Loads, each from another page, over `pages` pages.
fn stride(pages: u32, translated: bool) -> TestMachine {
    let mut m = TestMachine::program(|a| {
        let (again, top) = (a.label(), a.label());
        a.place(again).mv(A1, S0).mv(A2, S2).place(top);
        a.lw(A0, 0, A1).add(A1, A1, S1).addi(A2, A2, -1).bne(A2, ZERO, top).j(again);
    });
    m.set_x(S0, DATA).set_x(S1, FRAME_SIZE).set_x(S2, pages);
    if translated {
        let mut tables = Sv32::new();
        tables.map_super(&mut m, RAM, RAM, pte::S_ALL);
        for page in 0..pages {
            let va = 0x4000_0000 + page * FRAME_SIZE;
            tables.map(&mut m, va, DATA + page % 256 * FRAME_SIZE, pte::S_ALL);
        }
        m.set_x(S0, 0x4000_0000);
        tables.enable(&mut m, Supervisor);
    }
    m
}

/// Four instructions a page.
fn tlb(c: &mut Criterion) {
    measure(c, "tlb", "hit", stride(16, true));
    measure(c, "tlb", "miss_bare", stride(1000, false));
    measure(c, "tlb", "miss_sv32", stride(1000, true));
}

fn copy_on_write(c: &mut Criterion) {
    const FAULTS: u32 = 200;
    let frames = Frames::new(&[[7; FRAME_SIZE as usize]], FAULTS + 8);
    let fresh = || {
        let mut m = TestMachine::on(&frames, vec![1; 2048]);
        m.load(|a| {
            let top = a.mark();
            a.sw(ZERO, 0, S0).add(S0, S0, S1).addi(S2, S2, -1).bne(S2, ZERO, top);
        });
        m.set_x(S0, DATA).set_x(S1, FRAME_SIZE).set_x(S2, FAULTS);
        m
    };
    let mut group = c.benchmark_group("copy_on_write");
    group.throughput(Throughput::Elements(FAULTS.into()));
    let run = |mut m: TestMachine| {
        assert_eq!(m.run(4 * FAULTS).code, ExitCode::Budget);
        m
    };
    group.bench_function("first_store_to_a_page", |b| {
        b.iter_batched(fresh, run, BatchSize::PerIteration);
    });
    group.finish();
}

const LINUX_MEMORY: u32 = 24 << 20;
const READY: &[u8] = b"PXVM READY";

/// Kernel and initramfs of the default guest image.
fn guest_image() -> Option<[Vec<u8>; 2]> {
    let cache = std::env::var_os("PXVM_CACHE")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/pxvm")))?;
    let image = cache.join("images/default");
    let read = |name: &str| std::fs::read(image.join(name)).ok();
    Some([read("Image")?, read("initramfs.cpio")?])
}

/// A device tree with what the guest needs to boot.
fn device_tree(initrd: (u32, u32)) -> vm_fdt::FdtWriterResult<Vec<u8>> {
    const CPU: u32 = 1;
    const PLIC: u32 = 2;
    let mut f = vm_fdt::FdtWriter::new()?;
    let root = f.begin_node("")?;
    f.property_u32("#address-cells", 1)?;
    f.property_u32("#size-cells", 1)?;
    f.property_string("compatible", "riscv-virtio")?;
    let node = f.begin_node("chosen")?;
    f.property_string("bootargs", "console=ttyS0 quiet retain_initrd panic=1 pxvm.host=bench")?;
    f.property_string("stdout-path", "/soc/serial@10000000")?;
    f.property_u32("linux,initrd-start", initrd.0)?;
    f.property_u32("linux,initrd-end", initrd.1)?;
    f.property_array_u32("rng-seed", &[1, 2, 3, 4, 5, 6, 7, 8])?;
    f.end_node(node)?;
    let node = f.begin_node("memory@80000000")?;
    f.property_string("device_type", "memory")?;
    f.property_array_u32("reg", &[RAM, LINUX_MEMORY])?;
    f.end_node(node)?;
    let cpus = f.begin_node("cpus")?;
    f.property_u32("#address-cells", 1)?;
    f.property_u32("#size-cells", 0)?;
    f.property_u32("timebase-frequency", 10_000_000)?;
    let cpu = f.begin_node("cpu@0")?;
    f.property_string("device_type", "cpu")?;
    f.property_u32("reg", 0)?;
    f.property_string("compatible", "riscv")?;
    f.property_string("riscv,isa", "rv32ima")?;
    f.property_string("mmu-type", "riscv,sv32")?;
    let node = f.begin_node("interrupt-controller")?;
    f.property_u32("#interrupt-cells", 1)?;
    f.property_null("interrupt-controller")?;
    f.property_string("compatible", "riscv,cpu-intc")?;
    f.property_phandle(CPU)?;
    f.end_node(node)?;
    f.end_node(cpu)?;
    f.end_node(cpus)?;
    let soc = f.begin_node("soc")?;
    f.property_u32("#address-cells", 1)?;
    f.property_u32("#size-cells", 1)?;
    f.property_string("compatible", "simple-bus")?;
    f.property_null("ranges")?;
    let node = f.begin_node("plic@c000000")?;
    f.property_string("compatible", "sifive,plic-1.0.0")?;
    f.property_u32("#interrupt-cells", 1)?;
    f.property_u32("#address-cells", 0)?;
    f.property_null("interrupt-controller")?;
    f.property_array_u32("interrupts-extended", &[CPU, 11, CPU, 9])?;
    f.property_array_u32("reg", &[0x0c00_0000, 0x60_0000])?;
    f.property_u32("riscv,ndev", 95)?;
    f.property_phandle(PLIC)?;
    f.end_node(node)?;
    let node = f.begin_node("serial@10000000")?;
    f.property_string("compatible", "ns16550a")?;
    f.property_array_u32("reg", &[0x1000_0000, 0x100])?;
    f.property_u32("clock-frequency", 3_686_400)?;
    f.property_u32("interrupts", 10)?;
    f.property_u32("interrupt-parent", PLIC)?;
    f.end_node(node)?;
    for n in 0..2 {
        let base = 0x1000_1000 + n * 0x1000;
        let node = f.begin_node(&format!("virtio_mmio@{base:x}"))?;
        f.property_string("compatible", "virtio,mmio")?;
        f.property_array_u32("reg", &[base, 0x1000])?;
        f.property_u32("interrupts", n + 1)?;
        f.property_u32("interrupt-parent", PLIC)?;
        f.end_node(node)?;
    }
    f.end_node(soc)?;
    f.end_node(root)?;
    f.finish()
}

/// A fleet's shared frames, and which page has which.
struct Fleet {
    frames: Rc<Frames>,
    table: Vec<u32>,
    tree_at: u32,
}

impl Fleet {
    fn new([kernel, initrd]: &[Vec<u8>; 2]) -> Self {
        let tree_at = RAM + LINUX_MEMORY - 0x1_0000;
        let initrd_at = (tree_at - initrd.len() as u32) & !(FRAME_SIZE - 1);
        let tree = device_tree((initrd_at, initrd_at + initrd.len() as u32)).expect("a tree");
        let mut pages = Vec::new();
        let mut table = vec![0; (LINUX_MEMORY / FRAME_SIZE) as usize];
        for (at, bytes) in [(RAM, kernel), (initrd_at, initrd), (tree_at, &tree)] {
            for (n, chunk) in bytes.chunks(FRAME_SIZE as usize).enumerate() {
                let mut page = [0; FRAME_SIZE as usize];
                page[..chunk.len()].copy_from_slice(chunk);
                pages.push(page);
                table[((at - RAM) / FRAME_SIZE) as usize + n] = pages.len() as u32;
            }
        }
        Self { frames: Frames::new(&pages, LINUX_MEMORY / FRAME_SIZE), table, tree_at }
    }

    fn machine(&self) -> TestMachine {
        let space = Space::new(&self.frames, self.table.clone());
        let mut m = TestMachine::with_space(space);
        m.vm.boot_supervisor(RAM, 0, self.tree_at);
        m.vm.platform.dev.virtio.net = Net::new([2, 0, 0, 0, 0, 1]);
        m.vm.platform.dev.virtio.rng = Rng::new(ChaCha::new([0; 8]));
        m
    }
}

/// Runs until the guest prints [`READY`], and returns how many instructions that took.
fn boot(m: &mut TestMachine) -> Option<u64> {
    for _ in 0..4000 {
        let exit = m.run(50_000);
        if m.port.output.windows(READY.len()).any(|w| w == READY) {
            return Some(m.vm.platform.clock.retired);
        }
        if !matches!(exit.code, ExitCode::Budget | ExitCode::Idle) {
            break;
        }
    }
    None
}

fn linux_boot(c: &mut Criterion) {
    let Some(image) = guest_image() else {
        eprintln!("linux_boot: skipped, no guest image; buildroot/build makes one");
        return;
    };
    let fleet = Fleet::new(&image);
    let Some(instructions) = boot(&mut fleet.machine()) else {
        eprintln!("linux_boot: skipped, the guest image does not get ready");
        return;
    };
    let mut group = c.benchmark_group("linux_boot");
    group.sample_size(20).throughput(Throughput::Elements(instructions));
    group.bench_function("to_ready", |b| {
        b.iter_batched(
            || fleet.machine(),
            |mut m| {
                assert!(boot(&mut m).is_some(), "the guest gets ready each time");
                m
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, classes, compute_loop, tlb, copy_on_write, linux_boot);
criterion_main!(benches);
