//! Mutexes that ignore poisoning.

use std::sync::{Mutex, MutexGuard};

/// Locks a mutex, even if a thread panicked while holding it: the data is consistent between any
/// two changes, and the other threads continue.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
