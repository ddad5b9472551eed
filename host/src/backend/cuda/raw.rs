//! Values of the contract as bytes, and back.

use std::mem::MaybeUninit;

/// Types that are the same bytes on host and device.
///
/// # Safety
/// The type is `repr(C)` (or a primitive) down to its last field.
pub unsafe trait Shared: Sized {}

// SAFETY: all are `repr(C)` of sized integers, pointers and each other.
unsafe impl Shared for u32 {}
// SAFETY: as above.
unsafe impl Shared for u64 {}
// SAFETY: as above.
unsafe impl Shared for emu_core::abi::Vm {}
// SAFETY: as above.
unsafe impl Shared for emu_device::launch::Launch {}
// SAFETY: as above.
unsafe impl Shared for emu_device::launch::Control {}
// SAFETY: as above.
unsafe impl Shared for emu_device::launch::Entry {}
// SAFETY: as above.
unsafe impl Shared for emu_device::launch::StagedVm {}
// SAFETY: as above.
unsafe impl Shared for emu_device::launch::StagedPage {}
// SAFETY: as above.
unsafe impl Shared for emu_device::port::PortState {}
// SAFETY: as above.
unsafe impl Shared for emu_device::port::Outbox {}

/// The bytes of some values, to be copied to the device.
pub fn bytes<T: Shared>(values: &[T]) -> &[u8] {
    // SAFETY: in range. Padding, where a type has any, is copied on and never looked at.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Reads values that `fill` puts into their bytes, zero at first.
///
/// # Safety
/// `fill` leaves bytes that are valid values: what the device, which runs the same code, keeps
/// as such, or zero where that is valid.
pub unsafe fn values<T: Shared, E>(
    count: usize,
    fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<Vec<T>, E> {
    let mut values: Vec<MaybeUninit<T>> = Vec::with_capacity(count);
    let len = count * size_of::<T>();
    // SAFETY: the capacity is there, and the bytes are set before they are seen as bytes. That
    // they are valid values is the caller's word.
    unsafe {
        values.as_mut_ptr().cast::<u8>().write_bytes(0, len);
        fill(std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), len))?;
        values.set_len(count);
        Ok(values.into_iter().map(|v| v.assume_init()).collect())
    }
}
