//! Asking memory for something before it is needed.
//!
//! A look-up is a chain of places in memory, each of which says where the next one is, and each takes a hundred
//! nanoseconds to come when the table is large. So the look-ups of a batch go along together: all ask for their first
//! place, then all read it and ask for their second one. To ask is not to wait: the processor goes on with the hash of
//! the next one meanwhile.

/// Asks for the cache line in which a value begins. It changes nothing but the time that reading takes.
#[inline]
pub(super) fn prefetch<T: Copy>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    safe_arch::prefetch_t0(value);
    // Elsewhere there is no stable way to ask. Reading does, and the processor goes on for as far as it looks ahead.
    #[cfg(not(target_arch = "x86_64"))]
    std::hint::black_box(*value);
}
