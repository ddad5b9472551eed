//! Standard input as console input for a guest.
//!
//! A thread reads it. The number of bytes read and not yet taken is bounded: at the bound the
//! thread reads no further, and the writer of the pipe blocks.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::escape::{Action, Escape};
use crate::stdio;
use crate::sync::lock;

/// Bytes from a pipe that may wait for a guest.
const PIPED_MAX: usize = 64 << 10;
/// Bytes from a terminal that may wait for a guest: more than anybody types ahead, because the key
/// that leaves the console must get through.
const TYPED_MAX: usize = 1 << 20;

/// Queue of bytes that were read.
#[derive(Debug)]
pub struct Typed {
    shared: Arc<InputBuffer>,
    /// Receives when bytes were added.
    pub added: Receiver<()>,
}

#[derive(Debug)]
struct InputBuffer {
    queue: Mutex<Queue>,
    has_room: Condvar,
    max: usize,
}

#[derive(Debug, Default)]
struct Queue {
    bytes: VecDeque<u8>,
    /// Whether the reader of the queue has gone.
    closed: bool,
}

/// Source of bytes.
#[derive(Debug)]
struct Keyboard {
    shared: Arc<InputBuffer>,
    added: Sender<()>,
}

impl Typed {
    /// Returns a source without any input.
    pub fn nothing() -> Self {
        queue(0).1
    }

    /// Takes the oldest bytes, at most `max`.
    pub fn take(&self, max: usize) -> Vec<u8> {
        let mut queue = lock(&self.shared.queue);
        let len = queue.bytes.len().min(max);
        let taken = queue.bytes.drain(..len).collect();
        drop(queue);
        self.shared.has_room.notify_one();
        taken
    }

    /// Whether no bytes wait.
    pub fn is_empty(&self) -> bool {
        lock(&self.shared.queue).bytes.is_empty()
    }
}

impl Drop for Typed {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.has_room.notify_one();
    }
}

impl Keyboard {
    /// Queues bytes as there is room for them. Returns `false` when the reader has gone.
    fn push(&self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let mut queue = lock(&self.shared.queue);
            while queue.bytes.len() >= self.shared.max && !queue.closed {
                let woken = self.shared.has_room.wait(queue);
                queue = woken.unwrap_or_else(|poisoned| poisoned.into_inner());
            }
            if queue.closed {
                return false;
            }
            let room = self.shared.max - queue.bytes.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            queue.bytes.extend(now);
            bytes = later;
            drop(queue);
            // A full channel has a wake-up pending already.
            let _ = self.added.try_send(());
        }
        true
    }
}

fn queue(max: usize) -> (Keyboard, Typed) {
    let (sender, added) = bounded(1);
    let shared = Arc::new(InputBuffer { queue: Mutex::default(), has_room: Condvar::new(), max });
    (Keyboard { shared: Arc::clone(&shared), added: sender }, Typed { shared, added })
}

/// Reads standard input to its end on a thread of its own. At a terminal, escape sequences are
/// removed and their actions passed to `act`.
pub fn read(interactive: bool, mut act: impl FnMut(Action) + Send + 'static) -> io::Result<Typed> {
    let (keyboard, typed) = queue(if interactive { TYPED_MAX } else { PIPED_MAX });
    let reader = move || {
        let mut escape = Escape::default();
        let mut buffer = [0; 4096];
        // The end of a pipe does not end the guest, and a lost terminal counts as an end.
        while let Ok(n @ 1..) = stdio::read(io::stdin().as_fd(), &mut buffer) {
            let read = &buffer[..n];
            let more = if interactive {
                let (guest, actions) = escape.feed(read);
                actions.into_iter().for_each(&mut act);
                keyboard.push(&guest)
            } else {
                keyboard.push(read)
            };
            if !more {
                return;
            }
        }
    };
    thread::Builder::new().name("stdin".into()).spawn(reader)?;
    Ok(typed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_comes_in_order_and_no_more_than_the_bound_waits() {
        let (keyboard, typed) = queue(100);
        let sent: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
        let all = sent.clone();
        let writer = thread::spawn(move || keyboard.push(&all));
        let mut got = Vec::new();
        while got.len() < sent.len() {
            typed.added.recv().unwrap();
            assert!(lock(&typed.shared.queue).bytes.len() <= 100);
            got.extend(typed.take(60));
            got.extend(typed.take(usize::MAX));
        }
        assert_eq!(got, sent);
        assert!(writer.join().unwrap() && typed.is_empty());
    }

    #[test]
    fn a_writer_does_not_wait_for_a_reader_that_is_gone() {
        let (keyboard, typed) = queue(10);
        let writer = thread::spawn(move || keyboard.push(&[0; 100]));
        typed.added.recv().unwrap();
        drop(typed);
        assert!(!writer.join().unwrap());
    }
}
