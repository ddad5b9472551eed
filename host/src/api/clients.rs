//! Limits on the connections of clients: who may stay when there are too many.
//!
//! Clients that have authenticated have their own room. Strangers, which have not yet, have
//! another; when it is full, those that were silent longest are disconnected, so that nobody can be
//! kept out by clients that only connect. Every client has a grace period, because many may connect
//! at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::serve::CONNECTIONS_MAX;
use crate::sync::lock;

/// Strangers' connections that may stay beyond their grace period.
const STRANGERS_MAX: usize = 128;
/// Strangers' connections, those in their grace period included.
const NEWCOMERS_MAX: usize = 1024;
/// Grace period of a new connection.
const GRACE: Duration = Duration::from_secs(1);

/// Connections of an address.
pub struct Clients {
    strangers: Mutex<HashMap<u64, Stranger>>,
    next: AtomicU64,
    room: Arc<Semaphore>,
}

struct Stranger {
    heard: Instant,
    gone: Arc<Notify>,
}

/// One client's connection.
pub struct Client {
    id: u64,
    all: Arc<Clients>,
    /// Notified when the connection has to end.
    pub gone: Arc<Notify>,
    /// Permit of an authenticated client.
    permit: OnceLock<OwnedSemaphorePermit>,
}

impl Clients {
    /// Returns an empty set of connections.
    pub fn new() -> Arc<Self> {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Arc::new(Self { strangers: Mutex::default(), next: AtomicU64::new(0), room })
    }

    /// Adds a new connection.
    pub fn admit(self: &Arc<Self>, now: Instant) -> Arc<Client> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let gone = Arc::new(Notify::new());
        let mut strangers = lock(&self.strangers);
        while strangers.len() >= STRANGERS_MAX {
            let silent = strangers.iter().min_by_key(|(_, stranger)| stranger.heard);
            let Some((&id, stranger)) = silent else { break };
            let is_late = now.saturating_duration_since(stranger.heard) >= GRACE;
            if !is_late && strangers.len() < NEWCOMERS_MAX {
                break;
            }
            stranger.gone.notify_one();
            strangers.remove(&id);
        }
        strangers.insert(id, Stranger { heard: now, gone: Arc::clone(&gone) });
        Arc::new(Client { id, all: Arc::clone(self), gone, permit: OnceLock::new() })
    }
}

impl Client {
    /// Notes that the client has sent something.
    pub fn speaks(&self, now: Instant) {
        if let Some(stranger) = lock(&self.all.strangers).get_mut(&self.id) {
            stranger.heard = now;
        }
    }

    /// Notes that the client has authenticated. Returns whether there is room for it.
    pub fn is_welcome(&self) -> bool {
        if self.permit.get().is_none() {
            let Ok(permit) = Arc::clone(&self.all.room).try_acquire_owned() else { return false };
            lock(&self.all.strangers).remove(&self.id);
            // The requests of a connection come one after the other.
            let _ = self.permit.set(permit);
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
    fn the_strangers_that_were_silent_longest_give_way() {
        let clients = Clients::new();
        let start = Instant::now();
        let at = |ms: usize| start + Duration::from_millis(ms as u64);
        let all: Vec<_> = (0..STRANGERS_MAX).map(|i| clients.admit(at(i))).collect();
        all[0].speaks(at(500));
        assert!(all[1].is_welcome());
        let gone = || (0..all.len()).filter(|&i| is_gone(&all[i])).collect::<Vec<_>>();
        // There is room for one; the next ones stay during their grace period.
        let _more: Vec<_> = (0..3).map(|_| clients.admit(at(600))).collect();
        assert!(gone().is_empty());
        let _another = clients.admit(at(1004));
        assert_eq!(gone(), [2_usize, 3, 4]);
        drop(all);
        assert_eq!(lock(&clients.strangers).len(), 4);
    }

    #[test]
    fn many_may_come_at_once_but_not_without_bound() {
        let clients = Clients::new();
        let now = Instant::now();
        let all: Vec<_> = (0..NEWCOMERS_MAX)
            .map(|i| clients.admit(now + Duration::from_nanos(i as u64)))
            .collect();
        assert!(!all.iter().any(|client| is_gone(client)));
        let _one = clients.admit(now + Duration::from_millis(1));
        assert!(is_gone(&all[0]) && !is_gone(&all[1]));
    }

    #[test]
    fn those_who_may_have_room_of_their_own() {
        let clients = Clients::new();
        let all: Vec<_> = (0..CONNECTIONS_MAX)
            .map(|_| {
                let client = clients.admit(Instant::now());
                assert!(client.is_welcome() && client.is_welcome());
                client
            })
            .collect();
        let late = clients.admit(Instant::now());
        assert!(!late.is_welcome());
        assert!(!all.iter().any(|client| is_gone(client)));
        drop(all);
        assert!(late.is_welcome());
    }
}
