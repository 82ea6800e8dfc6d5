//! What a process may do: IDs, capabilities, limits, and what it tells its parent.

use std::io;

use nix::sys::prctl::{set_dumpable, set_no_new_privs, set_pdeathsig};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

/// A set of capabilities as the kernel numbers them: bit `CAP_X` is capability X.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(pub u64);

impl Capabilities {
    pub const NONE: Self = Self(0);

    /// A set of the named ones.
    pub fn of(list: &[caps::Capability]) -> Self {
        Self(list.iter().fold(0, |bits, capability| bits | capability.bitmask()))
    }
}

/// No exec of this process or of its children gains anything any more.
///
/// # Errors
/// What prctl(2) says.
pub fn forbid_new_privileges() -> io::Result<()> {
    Ok(set_no_new_privs()?)
}

/// Takes all other capabilities out of the bounding set and empties the ambient one: no exec gets them back.
///
/// # Errors
/// What prctl(2) says.
pub fn bound(keep: Capabilities) -> io::Result<()> {
    // SAFETY: numbers only.
    if unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // By number, up to the last one this kernel knows, which may be newer than any list compiled in.
    for capability in 0..64 {
        // SAFETY: numbers only.
        match unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) } {
            1 if keep.0 & (1 << capability) == 0 => {
                // SAFETY: numbers only.
                if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            0.. => {}
            _ => break,
        }
    }
    Ok(())
}

/// Becomes another user with no supplementary groups, and keeps its permitted capabilities for
/// [`restrict`] to reduce.
///
/// # Errors
/// What prctl(2), setgroups(2), setresgid(2) or setresuid(2) say; EINVAL when the user namespace does not have the ID.
pub fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    nix::sys::prctl::set_keepcaps(true)?;
    setgroups(&[])?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    nix::sys::prctl::set_keepcaps(false)?;
    Ok(())
}

/// Makes `keep` the permitted and effective set of the calling thread; nothing is inheritable.
///
/// # Errors
/// What capset(2) says: EPERM when `keep` has what the process has not.
pub fn restrict(keep: Capabilities) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // _LINUX_CAPABILITY_VERSION_3 of linux/capability.h: two words a set.
    let header = Header { version: 0x2008_0522, pid: 0 };
    let data = [keep.0 as u32, (keep.0 >> 32) as u32].map(|word| Data {
        effective: word,
        permitted: word,
        inheritable: 0,
    });
    // SAFETY: both structures have the layout that this version of the call has, and outlive it.
    if unsafe { libc::syscall(libc::SYS_capset, &header, &data) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets a limit, soft and hard: raised where that is allowed, else as high as it may be. Returns what it is.
///
/// # Errors
/// What getrlimit(2) or setrlimit(2) say.
pub fn limit(resource: Resource, wanted: u64) -> io::Result<u64> {
    if setrlimit(resource, wanted, wanted).is_ok() {
        return Ok(wanted);
    }
    let (_, hard) = getrlimit(resource)?;
    let allowed = wanted.min(hard);
    setrlimit(resource, allowed, allowed)?;
    Ok(allowed)
}

/// SIGKILL for this process when the thread that started it ends. Changing the user ID undoes it.
///
/// # Errors
/// What prctl(2) says.
pub fn die_with_parent() -> io::Result<()> {
    Ok(set_pdeathsig(Signal::SIGKILL)?)
}

/// No core dump, and no other process of the same user may look into this one.
///
/// # Errors
/// What prctl(2) says.
pub fn hide_memory() -> io::Result<()> {
    Ok(set_dumpable(false)?)
}
