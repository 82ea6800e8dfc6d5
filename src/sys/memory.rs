//! The C library's allocator, and how the kernel maps memory.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

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

/// Of include/uapi/linux/userfaultfd.h.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}

const UFFDIO: u32 = 0xaa;
ioctl_iowr_nr!(UFFDIO_API, UFFDIO, 0x3f, Api);
ioctl_iowr_nr!(UFFDIO_REGISTER, UFFDIO, 0x00, Register);

/// As long as what is returned is open, the kernel maps those pages of a shared mapping that are touched, and not their neighbours, too, as
/// it does of pages that are in memory already: it leaves that out where a userfaultfd is told of writes to protected pages. None is protected.
///
/// # Errors
/// What userfaultfd(2) says; a kernel before 5.19 cannot.
pub fn map_singly(start: u64, length: u64) -> io::Result<OwnedFd> {
    const USER_MODE_ONLY: libc::c_int = 1;
    const WRITE_PROTECTION_OF_SHARED_MEMORY: u64 = 1 << 12;
    const WRITE_PROTECTION: u64 = 1 << 1;
    let done = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: the call takes flags and makes a descriptor.
    let number =
        unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY) } as libc::c_int;
    done(number)?;
    // SAFETY: it has just been made.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    let mut api = Api { api: UFFDIO.into(), features: WRITE_PROTECTION_OF_SHARED_MEMORY, ioctls: 0 };
    // SAFETY: the kernel reads and writes one such structure, which outlives the call.
    done(unsafe { ioctl_with_mut_ref(&fd.as_raw_fd(), UFFDIO_API(), &mut api) })?;
    let mut register = Register { start, length, mode: WRITE_PROTECTION, ioctls: 0 };
    // SAFETY: the same.
    done(unsafe { ioctl_with_mut_ref(&fd.as_raw_fd(), UFFDIO_REGISTER(), &mut register) })?;
    Ok(fd)
}
