//! Guests that do what no program would: they fault or run on, alone.

use pxvm_tests::asm::{Asm, csr::*, reg::*};
use pxvm_tests::hash::StateHash;
use pxvm_tests::machine::{DATA, RAM, RAM_SIZE, ROM, Sv32, pte};
use pxvm_tests::memory::Frames;

use emu_core::abi::ExitCode;
use emu_core::chacha::ChaCha;
use emu_core::dev::virtio::driver::{Prng, for_seeds};
use emu_core::dev::virtio::{blk::Blk, net::Net, rng::Rng};
use emu_core::mmu::Privilege::{self, Machine, Supervisor, User};

use crate::TestMachine;

/// A machine with an image of its own text, a neighbour that has run, and what neither may touch.
struct Neighbours {
    hostile: TestMachine,
    quiet: TestMachine,
    state: StateHash,
    shared: Vec<u8>,
}

impl Neighbours {
    fn new() -> Self {
        let frames = Frames::new(&[[0x5a; 4096], [0xa5; 4096]], 600);
        let mut quiet = TestMachine::on(&frames, vec![1, 2, 1]);
        quiet.load_at(RAM + 0x4000, |a| {
            a.li(A0, 5).sw(A0, 0, SP).stop();
        });
        quiet.set_x(SP, DATA).vm.hart.pc = RAM + 0x4000;
        quiet.run(100);
        let state = quiet.hash();
        let shared = frames.shared_bytes();
        let mut hostile = TestMachine::with_rom(&frames, vec![1, 2, 1], vec![2, 0, 1]);
        let virtio = &mut hostile.vm.platform.dev.virtio;
        virtio.net = Net::new([2, 0, 0, 0, 0, 1]);
        virtio.rng = Rng::new(ChaCha::new([0; 8]));
        virtio.blk = Blk::new(16);
        Self { hostile, quiet, state, shared }
    }

    /// Runs the hostile one in slices until it ends or has had enough.
    fn run(&mut self) {
        for _ in 0..20 {
            let exit = self.hostile.run(500);
            match exit.code {
                ExitCode::Budget | ExitCode::Idle => {}
                // Its own end. A frame it does not get, it does not need.
                _ => break,
            }
            self.hostile.port.output.clear();
        }
    }

    fn check(&mut self) {
        assert_eq!(self.quiet.hash(), self.state, "a neighbour changed");
        assert!(self.quiet.frames().shared_bytes() == self.shared, "the image changed");
        assert_eq!(self.hostile.vm.hart.x[0], 0);
        assert_eq!(self.hostile.vm.hart.pc & 3, 0);
    }
}

fn random_words(rng: &mut Prng, n: usize) -> Vec<u32> {
    use emu_core::insn::ROWS;
    (0..n)
        .map(|_| {
            let word = rng.next_u32();
            // Random operands in a real instruction, most of the time.
            let row = rng.pick(ROWS);
            if rng.one_in(4) { word } else { word & !row.mask | row.matches }
        })
        .collect()
}

fn random_register(rng: &mut Prng) -> u32 {
    match rng.below(6) {
        0 => rng.next_u32(),
        1 => RAM + rng.below(RAM_SIZE),
        2 => 0x1000_0000 + rng.below(0x9000),
        3 => ROM + rng.below(0x4000),
        4 => rng.pick(&[0x0200_0000, 0x0200_4000, 0x0c00_0000, 0x0c20_0000, 0x10_1000]),
        _ => rng.below(4096),
    }
}

fn executes_random_words(privilege: Privilege, translated: bool, seed: u64) {
    for_seeds(seed, 60, |rng| {
        let mut n = Neighbours::new();
        let m = &mut n.hostile;
        for page in 0..4 {
            let words = random_words(rng, 1024);
            m.write_words(RAM + 0x8000 + 0x1000 * page, &words);
        }
        for r in 1..32 {
            m.set_x(r, random_register(rng));
        }
        m.set_csr(MTVEC, RAM + 0x8000 + rng.below(0x1000));
        m.set_csr(STVEC, RAM + 0x9000 + rng.below(0x1000));
        m.set_csr(MEDELEG, rng.next_u32()).set_csr(MIDELEG, rng.next_u32());
        m.set_csr(MIE, rng.next_u32()).set_csr(MCOUNTEREN, rng.next_u32());
        if translated {
            let mut tables = Sv32::new();
            let user = if privilege == User { pte::U } else { 0 };
            tables.map_super(m, RAM, RAM, pte::S_ALL | user);
            for root in [0, 0x40, 0x48, 0x30] {
                m.write_words(Sv32::root_entry(root << 22), &[rng.next_u32()]);
            }
            m.set_csr(SATP, Sv32::satp());
        }
        m.vm.hart.pc = RAM + 0x8000;
        m.port.input.extend([1, 2, 3]);
        m.enter(privilege);
        n.run();
        n.check();
    });
}

#[test]
fn random_instructions_in_machine_mode_hurt_nobody_else() {
    executes_random_words(Machine, false, 100);
}

#[test]
fn random_instructions_in_supervisor_mode_hurt_nobody_else() {
    executes_random_words(Supervisor, false, 200);
    executes_random_words(Supervisor, true, 300);
}

#[test]
fn random_instructions_in_user_mode_hurt_nobody_else() {
    executes_random_words(User, false, 400);
    executes_random_words(User, true, 500);
}

#[test]
fn random_instructions_under_the_sbi_hurt_nobody_else() {
    for_seeds(600, 60, |rng| {
        let mut n = Neighbours::new();
        let m = &mut n.hostile;
        m.vm.boot_supervisor(RAM + 0x8000, 0, 0);
        m.load_at(RAM + 0x8000, |a| {
            let top = a.mark();
            // Calls with arguments that change all the time.
            for _ in 0..8 {
                let ids = [0, 1, 2, 3, 4, 5, 6, 7, 0x10, 0x5449_4d45, 0x4442_434e, 0x5246_4e43];
                let (id, function) = (rng.pick(&ids), rng.below(5));
                a.li(A7, id).li(A6, function);
                for r in [A0, A1, A2, A3] {
                    a.li(r, random_register(rng));
                }
                a.ecall();
            }
            a.j(top);
        });
        m.port.input.extend(std::iter::repeat_n(7, 200));
        n.run();
        n.check();
    });
}

#[test]
fn garbage_in_every_device_register_hurts_nobody_else() {
    let windows = [
        (0x0200_0000, 0xc000),
        (0x0c00_0000, 0x60_0000),
        (0x1000_0000, 0x100),
        (0x1000_1000, 0x3000),
        (0x10_1000, 0x100),
    ];
    for_seeds(700, 60, |rng| {
        let mut n = Neighbours::new();
        let m = &mut n.hostile;
        m.load_at(RAM + 0x8000, |a| {
            let top = a.mark();
            for _ in 0..60 {
                let (base, size) = rng.pick(&windows);
                // Registers are near the start of most windows.
                let offset = if rng.one_in(2) { rng.below(size) } else { rng.below(0x110) & !3 };
                let window = if base == 0x1000_1000 { rng.below(3) * 0x1000 } else { 0 };
                a.li(S0, (base + window + offset % size) & !3);
                a.li(S1, random_register(rng));
                match rng.below(6) {
                    0 => a.sb(S1, 0, S0),
                    1 => a.sh(S1, 2, S0),
                    2 => a.lw(T0, 0, S0),
                    3 => a.lbu(T0, 1, S0),
                    _ => a.sw(S1, 0, S0),
                };
            }
            a.j(top);
        });
        m.load_at(RAM + 0xe000, |a: &mut Asm| {
            a.csrr(T0, MEPC).addi(T0, T0, 4).csrrw(ZERO, MEPC, T0).mret();
        });
        m.vm.hart.pc = RAM + 0x8000;
        m.port.input.extend(std::iter::repeat_n(7, 200));
        m.port.rx.extend([vec![0; 60], vec![1; 1514], Vec::new()]);
        n.run();
        n.check();
    });
}

#[test]
fn a_jump_to_nowhere_without_a_handler_ends_the_machine() {
    let mut m = TestMachine::program(|a| {
        a.jalr(ZERO, 0, ZERO);
    });
    m.set_csr(MTVEC, 0);
    assert_eq!(m.run(1000).code, ExitCode::Fault);
}
