//! Locks that outlive whoever held them.

use std::sync::{Mutex, MutexGuard};

/// Locks, also after a thread that held the lock has panicked: what it guards is whole between any
/// two changes, and the others go on.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
