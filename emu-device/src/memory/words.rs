//! Copies and fills of whole words.

/// How many words a copy loads before it stores them, so that the loads overlap.
pub const BATCH: usize = 16;

// For the GPU, LLVM turns everything that it recognises as a copy or a fill of memory into a loop
// over single bytes. It does not recognise volatile accesses, so these are used here.

/// Copies words.
///
/// # Safety
/// As [`core::ptr::copy_nonoverlapping`].
pub unsafe fn copy<T: Copy>(from: *const T, to: *mut T, len: usize) {
    // SAFETY: the caller's.
    unsafe {
        if !cfg!(feature = "device") {
            return core::ptr::copy_nonoverlapping(from, to, len);
        }
        let whole = len - len % BATCH;
        for at in whole..len {
            to.add(at).write_volatile(from.add(at).read_volatile());
        }
        for at in (0..whole).step_by(BATCH) {
            let words: [T; BATCH] = core::array::from_fn(|i| from.add(at + i).read_volatile());
            for (i, word) in words.into_iter().enumerate() {
                to.add(at + i).write_volatile(word);
            }
        }
    }
}

/// Fills words with zero.
///
/// # Safety
/// As [`core::ptr::write_bytes`].
pub unsafe fn fill_zero(to: *mut u64, len: usize) {
    // SAFETY: the caller's.
    unsafe {
        if !cfg!(feature = "device") {
            return to.write_bytes(0, len);
        }
        let whole = len - len % BATCH;
        for at in whole..len {
            to.add(at).write_volatile(0);
        }
        for at in (0..whole).step_by(BATCH) {
            for i in 0..BATCH {
                to.add(at + i).write_volatile(0);
            }
        }
    }
}
