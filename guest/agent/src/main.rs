//! rt's agent: `/init`, PID 1 of the guest.
//!
//! Two processes, no exec. PID 1 stays single-threaded for ever: it boots the guest ([`boot`]), reaps, and forks a
//! runner per container ([`supervisor`], [`runner`]), since libcontainer forks and changes process-wide state. Its
//! first child serves rt's calls with threads ([`server`]). Between the two runs a packet socket ([`link`]).
//! When either cannot go on, PID 1 says so on the console and powers the machine off: the host never waits in vain.
//!
//! `main` is C's: the standard library's own start-up aborts where standard descriptors are closed and /dev/null is
//! missing, which is how a kernel without console starts an `/init` that is alone in its initramfs.

#![cfg_attr(not(test), no_main)]
#![cfg_attr(test, allow(dead_code))]

mod block;
mod boot;
mod cgroup;
mod cmdline;
mod containers;
mod credentials;
mod devices;
mod environment;
mod exec;
mod executor;
mod freezer;
mod hooks;
mod kmsg;
mod limits;
mod link;
mod lookup;
mod network;
mod notify;
mod oom;
mod ports;
mod process;
mod processes;
mod processors;
mod report;
mod resolver;
mod resources;
mod rootfs;
mod runner;
mod schedule;
mod seccomp;
mod server;
mod service;
mod share;
mod spec;
mod stats;
mod stdio;
mod streams;
mod supervisor;
mod sys;

#[cfg(not(test))]
#[unsafe(no_mangle)]
extern "C" fn main(_argc: libc::c_int, _argv: *const *const libc::c_char) -> libc::c_int {
    let started_ns = sys::monotonic_ns();
    if std::process::id() != 1 {
        eprintln!("rt-agent is PID 1 of rt's virtual machines and of no use elsewhere");
        return 1;
    }
    supervisor::install_panic_hook();
    supervisor::run(started_ns)
}
