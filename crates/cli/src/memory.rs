//! How memory goes back to the system.

/// Buffers of so many bytes and more are mapped by themselves, and unmapped when they are freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_FROM_BYTES: i32 = 1 << 20;

/// Has the allocator give large buffers back when they are freed.
///
/// Left to itself, glibc raises the size from which it maps buffers, to 32 MiB at most, with each such buffer that is freed. Learning
/// frees some of megabytes every few seconds: from then on they come from the heaps that hold what connections need, which grow around
/// them and do not shrink. Small ones, and with them what serving a request takes, are allocated as before.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: `mallopt` takes two numbers, and is called before there is a second thread.
        #[expect(unsafe_code, reason = "the allocator is C's")]
        let taken = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM_BYTES) };
        // Refused, it costs memory and nothing else.
        debug_assert_eq!(taken, 1);
    }
}
