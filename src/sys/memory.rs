//! The C library's allocator.

/// Makes the allocator give freed memory back to the system early and keep to one pool, for a process that is to stay small rather
/// than be the fastest.
pub fn stay_small() {
    const SMALLEST_MAPPING: libc::c_int = 64 << 10;
    // SAFETY: mallopt takes numbers, and takes its locks; a parameter that it does not know changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, SMALLEST_MAPPING);
        libc::mallopt(libc::M_TRIM_THRESHOLD, SMALLEST_MAPPING);
    }
}
