//! Measurements for the dashboard: speeds, and a short history of the fleet.
//!
//! VMs are measured when a client requests it, a few times a second at most. The fleet as a whole
//! is measured once a second.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::SharedApp;
use crate::control::VmState;
use crate::engine::FleetHandle;
use crate::net::{Counts, VirtualLink};
use crate::sync::lock;

/// Age up to which a measurement of the VMs is reused.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Time over which speeds are averaged, if VMs are measured often.
const WINDOW: Duration = Duration::from_secs(1);
/// Seconds of history.
const HISTORY: usize = 120;
const SECOND: Duration = Duration::from_secs(1);

/// Measurements of a VM.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Row {
    /// Number of the VM's state.
    pub state: u8,
    /// Millions of instructions a second, in tenths.
    pub mips: u64,
    /// Packets received and sent.
    pub packets: (u64, u64),
    /// Bytes written to the console.
    pub console: u64,
}

/// Measurements of the fleet at one second of its run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Point {
    /// Seconds since the start.
    pub t: u64,
    /// Millions of instructions a second.
    pub mips: f64,
    /// Number of VMs that were ready.
    pub ready: u32,
    /// Packets in this second, both ways.
    pub packets: u64,
}

/// Measurements of the last second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pulse {
    /// Millions of instructions a second.
    pub mips: f64,
    /// Network counters since the start.
    pub network: Counts,
}

#[derive(Default)]
struct Looks {
    /// When VMs were measured, and how many instructions each had retired. The newest is last.
    samples: VecDeque<(Instant, Vec<u64>)>,
    rows: Arc<Vec<Row>>,
}

/// Measurements of a fleet.
pub struct Gauges {
    fleet: Arc<FleetHandle>,
    link: Arc<VirtualLink>,
    looks: Mutex<Looks>,
    history: Mutex<(VecDeque<Point>, Pulse)>,
}

/// Rounds to three decimal places.
pub fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

impl Gauges {
    /// Returns measurements without any sample.
    pub fn new(fleet: Arc<FleetHandle>, link: Arc<VirtualLink>) -> Self {
        Self { fleet, link, looks: Mutex::default(), history: Mutex::default() }
    }

    /// Returns measurements of the VMs, at most `LOOK_EVERY` old.
    pub fn look(&self) -> Arc<Vec<Row>> {
        self.fleet.backend().watched();
        let mut looks = lock(&self.looks);
        let now = Instant::now();
        let fresh = looks.samples.back().is_some_and(|(at, _)| now - *at < LOOK_EVERY);
        if !fresh || looks.rows.len() != self.fleet.state().records().len() {
            self.refresh(&mut looks, now);
        }
        Arc::clone(&looks.rows)
    }

    fn refresh(&self, looks: &mut Looks, now: Instant) {
        let backend = self.fleet.backend();
        let states: Vec<u8> =
            self.fleet.state().records().iter().map(|record| record.state as u8).collect();
        let counts: Vec<u64> = (0..states.len() as u32).map(|vm| backend.instret(vm)).collect();
        // The newest sample that is as old as the window stays.
        while looks.samples.get(1).is_some_and(|(at, _)| now - *at >= WINDOW) {
            looks.samples.pop_front();
        }
        let (since, before) = match looks.samples.front() {
            Some((at, counts)) => (*at, &counts[..]),
            None => (self.fleet.started(), &[][..]),
        };
        let us = (now - since).as_micros().max(1) as u64;
        let row = |(vm, state): (usize, u8)| Row {
            state,
            mips: {
                let retired = counts[vm].saturating_sub(before.get(vm).copied().unwrap_or(0));
                (retired * 10 + us / 2) / us
            },
            packets: self.link.packets(vm as u32),
            console: self.fleet.consoles.written(vm as u32),
        };
        looks.rows = Arc::new(states.into_iter().enumerate().map(row).collect());
        looks.samples.push_back((now, counts));
    }

    /// Returns the history and the last second.
    pub fn history(&self) -> (Vec<Point>, Pulse) {
        let history = lock(&self.history);
        (history.0.iter().copied().collect(), history.1)
    }
}

/// Measures the fleet once a second, for ever.
pub async fn keep_history(app: SharedApp) {
    let mut ticker = tokio::time::interval(SECOND);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut at, mut instructions, mut packets) = (app.fleet.started(), 0, 0);
    loop {
        ticker.tick().await;
        let now = Instant::now();
        let totals = app.fleet.backend().totals();
        let network = app.link.total();
        let span = (now - at).as_secs_f64().max(1e-3);
        let mips = rounded(totals.instructions.saturating_sub(instructions) as f64 / span / 1e6);
        let passed = network.rx_packets + network.tx_packets;
        let point = Point {
            t: (now - app.fleet.started()).as_secs(),
            mips,
            ready: app.fleet.counts()[VmState::Ready],
            packets: passed - packets,
        };
        (at, instructions, packets) = (now, totals.instructions, passed);
        let mut history = lock(&app.gauges.history);
        history.1 = Pulse { mips, network };
        if history.0.len() == HISTORY {
            history.0.pop_front();
        }
        history.0.push_back(point);
    }
}
