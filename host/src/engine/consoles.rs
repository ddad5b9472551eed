//! Consoles of the VMs: the newest output of each, and the listeners that follow it.
//!
//! The newest output of each VM is kept for late listeners, within a bound for the whole fleet. One
//! thread writes; a listener that does not keep up is cut off, so that the writer never waits.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use crate::sync::lock;
use tokio::sync::Notify;

/// Bytes of output that are kept for one VM.
pub const HISTORY_MAX: usize = 64 << 10;
/// Bytes of output that are kept for all VMs together.
const TOTAL_MAX: usize = 64 << 20;
/// Bytes that may wait for a listener before it is cut off: more than a history.
const BEHIND_MAX: usize = 256 << 10;
/// Largest number of listeners of one VM.
const LISTENERS_MAX: usize = 256;

/// History and listeners of one VM.
#[derive(Default)]
struct Console {
    history: VecDeque<u8>,
    listeners: Vec<Weak<Subscription>>,
}

/// Console of one VM.
#[derive(Default)]
struct VmConsole {
    /// Allocated when there is output to keep or somebody listens.
    console: Mutex<Option<Box<Console>>>,
    /// Bytes that the VM has written.
    written: AtomicU64,
}

/// Consoles of a fleet.
pub struct Consoles {
    vms: Vec<VmConsole>,
    /// Bytes that are kept, all VMs together.
    kept: AtomicUsize,
    kept_max: usize,
    /// VM at which the search for a history to shorten continues (clock hand).
    hand: AtomicUsize,
}

/// The end of a VM's output.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tail {
    /// Bytes of output before this tail.
    pub offset: u64,
    /// The output itself.
    pub bytes: Vec<u8>,
}

struct Subscription {
    queue: Mutex<Queue>,
    changed: Notify,
}

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    /// Whether the listener did not keep up.
    cut: bool,
}

/// Subscription to one VM's console. Dropping it ends the subscription.
pub struct Listener(Arc<Subscription>);

/// What a listener receives.
#[derive(PartialEq, Eq, Debug)]
pub enum Received {
    /// Console output.
    Bytes(Vec<u8>),
    /// The listener did not keep up and receives no more.
    Cut,
}

impl Consoles {
    /// Returns the consoles of `count` VMs.
    pub fn new(count: u32) -> Self {
        Self {
            vms: (0..count).map(|_| VmConsole::default()).collect(),
            kept: AtomicUsize::new(0),
            kept_max: TOTAL_MAX,
            hand: AtomicUsize::new(0),
        }
    }

    /// Appends output of a VM. To be called by one thread only.
    pub fn write(&self, vm: u32, bytes: &[u8]) {
        let Some(vm_console) = self.vms.get(vm as usize) else { return };
        let mut console = lock(&vm_console.console);
        let Console { history, listeners } = &mut **console.get_or_insert_default();
        let before = history.len();
        let news = &bytes[bytes.len().saturating_sub(HISTORY_MAX)..];
        let over = (before + news.len()).saturating_sub(HISTORY_MAX);
        history.drain(..over);
        history.extend(news);
        listeners.retain(|listener| listener.upgrade().is_some_and(|shared| shared.push(bytes)));
        vm_console.written.fetch_add(bytes.len() as u64, Ordering::Release);
        let after = history.len();
        drop(console);
        // The history only ever grows here.
        let kept = self.kept.fetch_add(after - before, Ordering::Relaxed) + (after - before);
        if kept > self.kept_max {
            self.forget();
        }
    }

    /// Halves histories, one VM after the other, until the bound is kept.
    fn forget(&self) {
        for _ in 0..2 * self.vms.len() {
            let at = self.hand.fetch_add(1, Ordering::Relaxed) % self.vms.len();
            if let Some(console) = &mut *lock(&self.vms[at].console) {
                let old = console.history.len().div_ceil(2);
                console.history.drain(..old);
                console.history.shrink_to_fit();
                if self.kept.fetch_sub(old, Ordering::Relaxed) - old <= self.kept_max {
                    return;
                }
            }
        }
    }

    /// Returns how many bytes the VM has written.
    pub fn written(&self, vm: u32) -> u64 {
        self.vms.get(vm as usize).map_or(0, |s| s.written.load(Ordering::Acquire))
    }

    /// Returns what is kept of a VM's output.
    pub fn tail(&self, vm: u32) -> Tail {
        let Some(vm_console) = self.vms.get(vm as usize) else { return Tail::default() };
        Self::tail_of(vm_console, lock(&vm_console.console).as_deref())
    }

    fn tail_of(vm_console: &VmConsole, console: Option<&Console>) -> Tail {
        let bytes: Vec<u8> =
            console.map(|console| console.history.iter().copied().collect()).unwrap_or_default();
        Tail { offset: vm_console.written.load(Ordering::Acquire) - bytes.len() as u64, bytes }
    }

    /// Subscribes to a VM's console, from its tail on; `None` when it has too many listeners.
    pub fn listen(&self, vm: u32) -> Option<(Tail, Listener)> {
        let vm_console = self.vms.get(vm as usize)?;
        let mut console = lock(&vm_console.console);
        let listeners = &mut console.get_or_insert_default().listeners;
        listeners.retain(|listener| listener.strong_count() > 0);
        if listeners.len() >= LISTENERS_MAX {
            return None;
        }
        let shared = Arc::new(Subscription { queue: Mutex::default(), changed: Notify::new() });
        listeners.push(Arc::downgrade(&shared));
        Some((Self::tail_of(vm_console, console.as_deref()), Listener(shared)))
    }
}

impl Subscription {
    /// Queues bytes for the listener. Returns `false` when it does not keep up.
    fn push(&self, bytes: &[u8]) -> bool {
        let mut queue = lock(&self.queue);
        if queue.bytes.len() + bytes.len() > BEHIND_MAX {
            *queue = Queue { bytes: Vec::new(), cut: true };
        } else {
            queue.bytes.extend_from_slice(bytes);
        }
        let complete = !queue.cut;
        drop(queue);
        self.changed.notify_one();
        complete
    }
}

impl Listener {
    /// Waits for output and returns it.
    pub async fn next(&self) -> Received {
        loop {
            if let Some(received) = self.take() {
                return received;
            }
            self.0.changed.notified().await;
        }
    }

    /// Returns the queued output, if any.
    fn take(&self) -> Option<Received> {
        let mut queue = lock(&self.0.queue);
        match (queue.cut, queue.bytes.is_empty()) {
            (true, _) => Some(Received::Cut),
            (false, true) => None,
            (false, false) => Some(Received::Bytes(std::mem::take(&mut queue.bytes))),
        }
    }

    /// Waits until the listener is cut off, without taking its output.
    pub async fn cut(&self) {
        while !lock(&self.0.queue).cut {
            self.0.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_output_is_kept() {
        let consoles = Consoles::new(2);
        assert_eq!(consoles.tail(0), Tail::default());
        consoles.write(0, b"hello ");
        consoles.write(0, b"world");
        assert_eq!(consoles.tail(0), Tail { offset: 0, bytes: b"hello world".to_vec() });
        consoles.write(0, &vec![b'x'; HISTORY_MAX - 3]);
        let tail = consoles.tail(0);
        assert_eq!(
            (tail.offset, &tail.bytes[..4], tail.bytes.len()),
            (8, &b"rldx"[..], HISTORY_MAX)
        );
        consoles.write(0, &vec![b'y'; 3 * HISTORY_MAX]);
        assert_eq!(consoles.tail(0).bytes, vec![b'y'; HISTORY_MAX]);
        assert_eq!(consoles.written(0), 8 + 4 * HISTORY_MAX as u64);
        assert_eq!(consoles.written(1), 0);
        consoles.write(9, b"nobody");
    }

    #[test]
    fn all_together_keep_to_their_bound() {
        let mut consoles = Consoles::new(100);
        consoles.kept_max = 10 << 10;
        for vm in 0..100 {
            consoles.write(vm, &[b'a' + (vm % 26) as u8; 1000]);
            let kept: usize = (0..100).map(|vm| consoles.tail(vm).bytes.len()).sum();
            assert!(kept <= 10 << 10, "{kept}");
            assert_eq!(kept, consoles.kept.load(Ordering::Relaxed));
        }
        let tail = consoles.tail(0);
        assert_eq!(tail.offset + tail.bytes.len() as u64, 1000);
    }

    #[test]
    fn listeners_hear_everything_once_after_the_tail_and_slow_ones_are_cut_off() {
        let consoles = Consoles::new(1);
        consoles.write(0, b"before");
        let (tail, listener) = consoles.listen(0).unwrap();
        let (_, slow) = consoles.listen(0).unwrap();
        assert_eq!(tail.bytes, b"before");
        assert_eq!(listener.take(), None);
        for _ in 0..10 {
            consoles.write(0, &[b'z'; BEHIND_MAX / 8]);
            let Some(Received::Bytes(bytes)) = listener.take() else { panic!("it hears nothing") };
            assert_eq!(bytes.len(), BEHIND_MAX / 8);
        }
        assert_eq!(slow.take(), Some(Received::Cut));
        assert_eq!(slow.take(), Some(Received::Cut));
        drop(listener);
        let all: Vec<_> = (0..LISTENERS_MAX).map(|_| consoles.listen(0).unwrap()).collect();
        assert!(consoles.listen(0).is_none());
        drop(all);
        assert!(consoles.listen(0).is_some() && consoles.listen(1).is_none());
    }
}
