//! The network of a sandbox, as far as the host goes: its network namespace ([`Namespace`]), what is in it ([`scan`]), and how
//! frames get from an interface there to a TAP device and back ([`tie`], [`tie_again`], [`untie`]), or to a macvtap device ([`Macvtap`]). Also what a guest's kernel is to be asked so
//! that it looks like the namespace ([`changes`]).
//!
//! Knows neither virtual machines nor the agent: the sandbox hands the TAP devices to the one and the requests to the other.
//! Everything here speaks of the network namespace of the calling thread.

mod changes;
mod framing;
mod layout;
mod macvtap;
mod namespace;
mod netlink;
mod redirect;
mod traffic;
mod vhost;
mod watch;

use std::io;
use std::path::PathBuf;

pub use changes::{Change, Indexes, changes};
pub use layout::{Found, Interface, Layout, scan};
pub use macvtap::Macvtap;
pub use namespace::{Namespace, Wanted, is_same, make};
pub use redirect::{check, tie, tie_again, untie};
pub use traffic::{Traffic, traffic};
pub use vhost::open_vhost;
pub use watch::Events;

/// What goes wrong with a network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use the network namespace {path}")]
    Namespace {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot make a network namespace")]
    NewNamespace(#[source] io::Error),
    #[error(
        "cannot give the container the host's network: it runs in a virtual machine, which has a network of its own. Run it \
         in a network namespace (`--network bridge` or `none` with docker and podman, without `--net-host` with ctr, \
         `hostNetwork: false` in Kubernetes), or set network.host = \"empty\" in the configuration to give such containers \
         one with nothing in it"
    )]
    Host,
    #[error("cannot read the container's network namespace: {what}")]
    Scan {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot take connections to the loopback")]
    Loopback(#[source] io::Error),
    #[error("cannot give the interface {interface} to the virtual machine: {reason}")]
    Carry { interface: String, reason: String },
    #[error("cannot give the interface {interface} to the virtual machine: cannot {what}")]
    Tie {
        interface: String,
        what: &'static str,
        #[source]
        source: io::Error,
    },
}
