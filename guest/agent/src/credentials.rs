//! Who an executed process is and what it may use: limits, user and groups, capabilities. Applied by the process to itself,
//! in the order in which each step still has the privilege it needs (runc's finalizeNamespace).

use std::collections::HashSet;
use std::fs;

use nix::errno::Errno;
use nix::unistd::{Gid, setgroups};
use oci_spec::runtime::{Capability, LinuxCapabilities, PosixRlimit, PosixRlimitType, User};

use crate::lookup::words;
use crate::sys::{self, control};

/// The kernel's numbers (linux/capability.h): a name's place.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The five sets as bit masks; what is absent is empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    bounding: u64,
    effective: u64,
    permitted: u64,
    inheritable: u64,
    ambient: u64,
}

impl From<Option<&LinuxCapabilities>> for Capabilities {
    fn from(sets: Option<&LinuxCapabilities>) -> Self {
        let mask = |set: Option<&Option<HashSet<Capability>>>| {
            set.and_then(Option::as_ref)
                .into_iter()
                .flatten()
                .fold(0, |mask, capability| mask | bit(*capability))
        };
        Self {
            bounding: mask(sets.map(LinuxCapabilities::bounding)),
            effective: mask(sets.map(LinuxCapabilities::effective)),
            permitted: mask(sets.map(LinuxCapabilities::permitted)),
            inheritable: mask(sets.map(LinuxCapabilities::inheritable)),
            ambient: mask(sets.map(LinuxCapabilities::ambient)),
        }
    }
}

impl Capabilities {
    /// Makes these the process's own, but for the bounding and the ambient set; of the latter nothing stays that is not permitted.
    ///
    /// # Errors
    /// For the user.
    pub fn apply(&self) -> Result<(), String> {
        sys::set_capabilities(self.effective, self.permitted, self.inheritable)
            .map_err(|error| format!("unable to apply caps: {}", words(error)))
    }
}

fn bit(capability: Capability) -> u64 {
    let name = format!("CAP_{capability}");
    NAMES.iter().position(|other| *other == name).map_or(0, |number| 1 << number)
}

/// Sets the resource limits.
///
/// # Errors
/// For the user.
pub fn set_limits(limits: &[PosixRlimit]) -> Result<(), String> {
    for limit in limits {
        sys::set_limit(resource(limit.typ()), limit.soft(), limit.hard())
            .map_err(|error| format!("error setting rlimit type {:?}: {}", limit.typ(), words(error)))?;
    }
    Ok(())
}

fn resource(kind: PosixRlimitType) -> libc::__rlimit_resource_t {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

/// Becomes `user` with these capabilities. Between the two, `between` runs with the user's rights and the old
/// capabilities being only permitted.
///
/// # Errors
/// For the user.
pub fn assume(
    user: &User,
    capabilities: &Capabilities,
    between: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: Errno| format!("{what}: {}", words(error))
    };
    limit_bounding(capabilities.bounding).map_err(failed("unable to apply bounding set"))?;
    control(libc::PR_SET_KEEPCAPS, 1, 0).map_err(failed("unable to set keep caps"))?;
    set_groups(user.additional_gids().as_deref().unwrap_or_default()).map_err(failed("setgroups"))?;
    let gid = Gid::from_raw(user.gid());
    nix::unistd::setresgid(gid, gid, gid).map_err(failed("setgid"))?;
    let uid = nix::unistd::Uid::from_raw(user.uid());
    nix::unistd::setresuid(uid, uid, uid).map_err(failed("setuid"))?;
    control(libc::PR_SET_KEEPCAPS, 0, 0).map_err(failed("unable to clear keep caps"))?;
    between()?;
    capabilities.apply()?;
    set_ambient(capabilities.ambient);
    Ok(())
}

fn set_groups(gids: &[u32]) -> nix::Result<()> {
    let gids: Vec<Gid> = gids.iter().copied().map(Gid::from_raw).collect();
    match setgroups(&gids) {
        // A user namespace without the right to it has none to drop either.
        Err(Errno::EPERM)
            if gids.is_empty()
                && fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny") =>
        {
            Ok(())
        }
        other => other,
    }
}

fn limit_bounding(mask: u64) -> nix::Result<()> {
    for number in 0..64 {
        if mask & (1 << number) != 0 {
            continue;
        }
        match control(libc::PR_CAPBSET_DROP, number, 0) {
            Ok(()) => {}
            // Beyond the kernel's last.
            Err(Errno::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// As runc: what is not both permitted and inheritable cannot be ambient, and is passed over.
fn set_ambient(mask: u64) {
    let _ = control(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0);
    for number in (0..64).filter(|number| mask & (1u64 << number) != 0) {
        let _ = control(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, number);
    }
}

/// Forbids privilege by execve, for ever.
///
/// # Errors
/// prctl(2)'s.
pub fn set_no_new_privileges() -> nix::Result<()> {
    control(libc::PR_SET_NO_NEW_PRIVS, 1, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_kernels_numbers() {
        let sets: LinuxCapabilities = serde_json::from_str(
            r#"{"bounding":["CAP_CHOWN","CAP_CHECKPOINT_RESTORE"],"effective":["CAP_SYS_ADMIN"],"ambient":["CAP_KILL"]}"#,
        )
        .expect("sets");
        let masks = Capabilities::from(Some(&sets));
        assert_eq!(masks.bounding, 1 | 1 << 40);
        assert_eq!(masks.effective, 1 << 21);
        assert_eq!(masks.ambient, 1 << 5);
        assert_eq!(masks.permitted, 0);
        assert_eq!(Capabilities::from(None), Capabilities::default());
    }

    #[test]
    fn every_name_is_known_to_the_configuration() {
        for (number, name) in NAMES.iter().enumerate() {
            let capability: Capability =
                serde_json::from_value(serde_json::Value::from(*name)).unwrap_or_else(|_| panic!("{name}"));
            assert_eq!(bit(capability), 1 << number, "{name}");
        }
    }
}
