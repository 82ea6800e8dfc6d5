//! A TAP device beside an interface, and what ties the two: whatever arrives at one leaves by the other.
//!
//! At each of the two an ingress qdisc with one filter: u32 that matches every frame, whose action is mirred's redirect
//! (tc-mirred(8)), or, where the interface's frames are no guest's, a program that makes them so ([`framing`]). The namespace's
//! own stack then sees no frame: the guest has the addresses. The TAP device and all that is tied to it are gone with its descriptors; the
//! interface's qdisc is not, and has to be removed ([`untie`]).
//!
//! A TAP device has its interface's number in its name. One whose interface is gone can be tied to another ([`tie_again`]).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType,
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcFilterU32, TcFilterU32Option, TcHandle,
    TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::net::if_::if_nametoindex;

use super::framing::{self, Framing};
use super::layout::{Interface, TAP_PREFIX};
use super::netlink::{Existing, Netlink};
use super::{Error, macvtap};
use crate::sys::tun;

const INGRESS: &str = "ingress";
/// The ingress qdisc's handle.
const HANDLE: TcHandle = TcHandle { major: 0xffff, minor: 0 };
/// ETH_P_ALL in network byte order: filters see every protocol.
const ALL_PROTOCOLS: u32 = 0x0300;

/// Whether an interface can be tied: nobody else has put an ingress qdisc there, or a macvtap device of rt's on top.
///
/// # Errors
/// [`Error::Carry`] when somebody has; [`Error::Scan`].
pub fn check(interface: &Interface) -> Result<(), Error> {
    let scan = |source| Error::Scan { what: "its queueing disciplines", source };
    let mut netlink = Netlink::open().map_err(scan)?;
    let qdiscs =
        netlink.dump(&RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default())).map_err(scan)?;
    let taken = qdiscs.iter().any(|message| match message {
        RouteNetlinkMessage::NewQueueDiscipline(qdisc) => {
            qdisc.header.index == interface.index as i32 && qdisc.header.parent == TcHandle::INGRESS
        }
        _ => false,
    });
    let carry = |reason: String| Err(Error::Carry { interface: interface.name.clone(), reason });
    if taken {
        return carry(
            "it has an ingress qdisc already, so another program or another virtual machine works on it; see \
             `tc qdisc show`, and delete the container that has it, or the qdisc"
                .into(),
        );
    }
    match macvtap::on(&mut netlink, interface.index).map_err(scan)? {
        None => Ok(()),
        Some(name) => carry(format!(
            "it is another virtual machine's by the macvtap device {name}; delete the container that has it, or the device"
        )),
    }
}

/// Makes the TAP device, ties it to the interface, and gives its queues.
///
/// # Errors
/// [`Error::Tie`]; nothing of it is left then.
pub fn tie(interface: &Interface, queues: usize) -> Result<Vec<OwnedFd>, Error> {
    let name = tap_name(interface.index);
    let taps =
        tun::make(&name, queues).map_err(failed(interface, "make a TAP device (kernel module tun)"))?;
    let tap = find(&name).map_err(failed(interface, "find its TAP device"))?;
    let mut netlink = Netlink::open().map_err(failed(interface, "speak to the kernel"))?;
    bring_up(&mut netlink, tap, interface.mtu, LinkFlags::Up)
        .map_err(failed(interface, "bring its TAP device up"))?;
    couple(&mut netlink, interface, tap)?;
    Ok(taps)
}

/// Ties the TAP device of the interface that had the number `former`, and is gone, to this one. It has this one's name when all is done.
///
/// # Errors
/// [`Error::Tie`]; it is tied to nothing then.
pub fn tie_again(interface: &Interface, former: u32) -> Result<(), Error> {
    let name = tap_name(interface.index);
    let tap = find(&tap_name(former)).or_else(|_| find(&name));
    let tap = tap.map_err(failed(interface, "find the TAP device of one that is gone"))?;
    let mut netlink = Netlink::open().map_err(failed(interface, "speak to the kernel"))?;
    match remove_ingress(&mut netlink, tap) {
        Err(error) if !is_missing(&error) => {
            return Err(failed(interface, "remove the redirection of one that is gone")(error));
        }
        _ => {}
    }
    couple(&mut netlink, interface, tap)?;
    rename(&mut netlink, tap, name)
        .and_then(|()| bring_up(&mut netlink, tap, interface.mtu, LinkFlags::Up))
        .map_err(failed(interface, "give it the TAP device of one that is gone"))
        .inspect_err(|_| drop(remove_ingress(&mut netlink, interface.index)))
}

fn failed(interface: &Interface, what: &'static str) -> impl FnOnce(io::Error) -> Error {
    let interface = interface.name.clone();
    move |source| Error::Tie { interface, what, source }
}

fn find(name: &str) -> io::Result<u32> {
    Ok(if_nametoindex(name)?)
}

/// It is down then: not every kernel renames what is up.
fn rename(netlink: &mut Netlink, index: u32, name: String) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.change_mask = LinkFlags::Up;
    netlink.request(RouteNetlinkMessage::SetLink(link.clone()), Existing::Change)?;
    link.header.change_mask = LinkFlags::empty();
    link.attributes = vec![LinkAttribute::IfName(name)];
    netlink.request(RouteNetlinkMessage::SetLink(link), Existing::Change)
}

/// Each one's frames leave by the other.
fn couple(netlink: &mut Netlink, interface: &Interface, tap: u32) -> Result<(), Error> {
    let tied = match interface.framing {
        Framing::Ethernet => redirect(netlink, tap, filter(tap, interface.index))
            .and_then(|()| redirect(netlink, interface.index, filter(interface.index, tap)))
            .map_err(failed(interface, "redirect its frames (kernel modules sch_ingress, cls_u32, act_mirred)")),
        framing => reframe(netlink, interface, framing, tap).map_err(failed(
            interface,
            "redirect its packets, which have no Ethernet header of their own (bpf(2) of Linux 5.8; kernel modules sch_ingress, cls_bpf, \
             cls_u32, act_mirred)",
        )),
    };
    tied.inspect_err(|_| drop(remove_ingress(netlink, interface.index)))
}

fn reframe(netlink: &mut Netlink, interface: &Interface, framing: Framing, tap: u32) -> io::Result<()> {
    let index = interface.index;
    match framing {
        // mirred takes the header away in front of what sends none (Linux 5.5).
        Framing::Ethernet | Framing::Bare => redirect(netlink, tap, filter(tap, index))?,
        Framing::Blank => redirect(netlink, tap, program_filter(tap, &framing::from_guest(index)?))?,
    }
    redirect(netlink, index, program_filter(index, &framing::to_guest(framing, interface.mac, tap)?))
}

/// Unties an interface whose TAP device is gone. One that is gone itself, or tied anew by somebody else, is left alone.
///
/// # Errors
/// [`Error::Tie`]
pub fn untie(index: u32, name: &str) -> Result<(), Error> {
    let is_alive = if_nametoindex(&tap_name(index)[..]).is_ok();
    if is_alive || if_nametoindex(name) != Ok(index) {
        return Ok(());
    }
    let removed = Netlink::open().and_then(|mut netlink| remove_ingress(&mut netlink, index));
    match removed {
        Err(error) if is_missing(&error) => Ok(()),
        other => other.map_err(|source| Error::Tie {
            interface: name.into(),
            what: "remove the redirection of its frames",
            source,
        }),
    }
}

fn tap_name(index: u32) -> String {
    format!("{TAP_PREFIX}{index}")
}

/// With these flags, and without addresses of its own: what the namespace's stack would send on it would reach the guest.
pub fn bring_up(netlink: &mut Netlink, tap: u32, mtu: u32, flags: LinkFlags) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = tap;
    link.attributes =
        vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
            In6AddrGenMode::None,
        )])])];
    // Refused where the kernel has no IPv6, and then there is nothing to keep silent.
    let _ = netlink.request(RouteNetlinkMessage::SetLink(link.clone()), Existing::Change);
    link.header.flags = flags;
    link.header.change_mask = flags;
    link.attributes = vec![LinkAttribute::Mtu(mtu)];
    netlink.request(RouteNetlinkMessage::SetLink(link), Existing::Change)
}

/// All that arrives at an interface meets the filter.
fn redirect(netlink: &mut Netlink, from: u32, filter: TcMessage) -> io::Result<()> {
    netlink.request(RouteNetlinkMessage::NewQueueDiscipline(ingress(from)), Existing::Refuse)?;
    netlink.request(RouteNetlinkMessage::NewTrafficFilter(filter), Existing::Refuse)
}

fn remove_ingress(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    netlink.request(RouteNetlinkMessage::DelQueueDiscipline(ingress(index)), Existing::Change)
}

/// No such qdisc, or no such interface.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV))
}

fn ingress(index: u32) -> TcMessage {
    let mut message = TcMessage::with_index(index as i32);
    message.header.family = AddressFamily::Unspec;
    message.header.handle = HANDLE;
    message.header.parent = TcHandle::INGRESS;
    message.attributes = vec![TcAttribute::Kind(INGRESS.into())];
    message
}

fn filter(from: u32, to: u32) -> TcMessage {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];

    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    let options = vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))];
    action.attributes =
        vec![TcActionAttribute::Kind(TcActionMirror::KIND.into()), TcActionAttribute::Options(options)];

    any_frame(
        from,
        TcFilterU32::KIND,
        vec![
            TcOption::U32(TcFilterU32Option::Selector(selector)),
            TcOption::U32(TcFilterU32Option::Action(vec![action])),
        ],
    )
}

/// The program, open for as long as the kernel is asked, says what becomes of a frame.
fn program_filter(from: u32, program: &OwnedFd) -> TcMessage {
    any_frame(
        from,
        TcFilterBpf::KIND,
        vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd() as u32)),
            TcOption::Bpf(TcFilterBpfOption::ProgName("rt_framing".into())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ],
    )
}

fn any_frame(from: u32, kind: &str, options: Vec<TcOption>) -> TcMessage {
    let mut message = TcMessage::with_index(from as i32);
    message.header.parent = HANDLE;
    message.header.info = ALL_PROTOCOLS;
    message.attributes = vec![TcAttribute::Kind(kind.into()), TcAttribute::Options(options)];
    message
}
