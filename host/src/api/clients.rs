//! The connections of an address's clients.
//!
//! Whoever may use the API has its own room. Strangers, who have not shown yet that they may, have
//! another; when it is full, the one who was silent longest goes, so that nobody is kept out by
//! those who only connect.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::serve::CONNECTIONS_MAX;
use crate::sync::lock;

/// Strangers' connections at a time.
pub const STRANGERS_MAX: usize = 128;

/// All of them.
pub struct Clients {
    strangers: Mutex<HashMap<u64, Stranger>>,
    next: AtomicU64,
    room: Arc<Semaphore>,
}

struct Stranger {
    heard: Instant,
    gone: Arc<Notify>,
}

/// One of them.
pub struct Client {
    id: u64,
    all: Arc<Clients>,
    /// Told when it has to go.
    pub gone: Arc<Notify>,
    /// Its place among those who may, as soon as it is one.
    place: OnceLock<OwnedSemaphorePermit>,
}

impl Clients {
    /// No clients yet.
    pub fn new() -> Arc<Self> {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Arc::new(Self { strangers: Mutex::default(), next: AtomicU64::new(0), room })
    }

    /// Takes a new connection in.
    pub fn admit(self: &Arc<Self>) -> Arc<Client> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let gone = Arc::new(Notify::new());
        let mut strangers = lock(&self.strangers);
        if strangers.len() >= STRANGERS_MAX {
            let silent = strangers.iter().min_by_key(|(_, stranger)| stranger.heard);
            if let Some(id) = silent.map(|(&id, _)| id)
                && let Some(stranger) = strangers.remove(&id)
            {
                stranger.gone.notify_one();
            }
        }
        strangers.insert(id, Stranger { heard: Instant::now(), gone: Arc::clone(&gone) });
        Arc::new(Client { id, all: Arc::clone(self), gone, place: OnceLock::new() })
    }
}

impl Client {
    /// It says something.
    pub fn speaks(&self) {
        if let Some(stranger) = lock(&self.all.strangers).get_mut(&self.id) {
            stranger.heard = Instant::now();
        }
    }

    /// It has shown that it may. Returns whether there is room for it.
    pub fn is_welcome(&self) -> bool {
        if self.place.get().is_none() {
            let Ok(permit) = Arc::clone(&self.all.room).try_acquire_owned() else { return false };
            lock(&self.all.strangers).remove(&self.id);
            // Its requests come one after the other.
            let _ = self.place.set(permit);
        }
        true
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        lock(&self.all.strangers).remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn is_gone(client: &Client) -> bool {
        client.gone.notified().now_or_never().is_some()
    }

    #[test]
    fn the_stranger_that_was_silent_longest_gives_way() {
        let clients = Clients::new();
        let all: Vec<_> = (0..STRANGERS_MAX).map(|_| clients.admit()).collect();
        all[0].speaks();
        assert!(all[1].is_welcome());
        let _one = clients.admit();
        assert!(!all.iter().any(|client| is_gone(client)));
        let _another = clients.admit();
        let gone: Vec<usize> = (0..all.len()).filter(|&i| is_gone(&all[i])).collect();
        assert_eq!(gone, [2]);
        drop(all);
        assert_eq!(lock(&clients.strangers).len(), 2);
    }

    #[test]
    fn those_who_may_have_room_of_their_own() {
        let clients = Clients::new();
        let all: Vec<_> = (0..CONNECTIONS_MAX)
            .map(|_| {
                let client = clients.admit();
                assert!(client.is_welcome() && client.is_welcome());
                client
            })
            .collect();
        let late = clients.admit();
        assert!(!late.is_welcome());
        assert!(!all.iter().any(|client| is_gone(client)));
        drop(all);
        assert!(late.is_welcome());
    }
}
