//! A macvtap device on top of an interface: frames for the interface are the virtual machine's, by its own MAC. What is for
//! everybody still reaches the namespace's stack, too, which then says of its addresses what the guest says of them.
//!
//! Unlike a TAP device it does not go with its descriptors but with the interface, the namespace, or when it is removed
//! ([`Macvtap::remove`]). So its name is chosen before it is made, and is no other's: whoever is to remove it can write it down.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoMacVtap, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, MacVtapMode,
};
use nix::fcntl::{OFlag, openat};
use nix::net::if_::if_nametoindex;
use nix::sys::stat::{Mode, SFlag, makedev, mknodat};
use serde::{Deserialize, Serialize};

use super::Error;
use super::framing::Framing;
use super::layout::{Interface, TAP_PREFIX};
use super::netlink::{Existing, Netlink};
use super::redirect::bring_up;
use crate::sys::{mount, random, tun};

/// The name of a macvtap device, which may not be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Macvtap(String);

impl Macvtap {
    /// One that is not there yet.
    ///
    /// # Errors
    /// [`Error::Tie`]: the kernel gives no random number.
    pub fn new(interface: &Interface) -> Result<Self, Error> {
        let mut number = [0; 5];
        random::fill(&mut number).map_err(failed(&interface.name, "choose a name for its macvtap device"))?;
        let number: String = number.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self(format!("{TAP_PREFIX}{number}")))
    }

    /// Makes it on top of the interface, and gives its queues.
    ///
    /// # Errors
    /// [`Error::Tie`], [`Error::Carry`]; it is not left then.
    pub fn make(&self, interface: &Interface, queues: usize) -> Result<Vec<OwnedFd>, Error> {
        if interface.framing != Framing::Ethernet {
            return Err(Error::Carry {
                interface: interface.name.clone(),
                reason:
                    "its packets have no Ethernet header of their own, and no macvtap device can lie on it: \
                         network.model = \"tcfilter\" takes it"
                        .into(),
            });
        }
        let failed = |what| failed(&interface.name, what);
        let mut netlink = Netlink::open().map_err(failed("speak to the kernel"))?;
        netlink
            .request(RouteNetlinkMessage::NewLink(self.message(interface.index)), Existing::Refuse)
            .map_err(failed(
                "make a macvtap device on it (kernel module macvtap; on macvlan and ipvlan none can lie: \
                 network.model = \"tcfilter\" takes them)",
            ))?;
        self.open(&mut netlink, interface, queues).inspect_err(|_| drop(self.remove()))
    }

    fn open(
        &self,
        netlink: &mut Netlink,
        interface: &Interface,
        queues: usize,
    ) -> Result<Vec<OwnedFd>, Error> {
        let failed = |what| failed(&interface.name, what);
        let index =
            if_nametoindex(&self.0[..]).map_err(|errno| failed("find its macvtap device")(errno.into()))?;
        // The guest's groups are not known here: it gets what is for any.
        let flags = LinkFlags::Up | LinkFlags::Allmulti;
        bring_up(netlink, index, interface.mtu, flags).map_err(failed("bring its macvtap device up"))?;
        let open = || -> io::Result<Vec<OwnedFd>> {
            let node = self.node(index)?;
            (0..queues).map(|_| tun::set_up(node.open()?, &self.0, queues > 1)).collect()
        };
        open().map_err(failed("open its macvtap device"))
    }

    /// /dev/tapINDEX is that of whichever namespace came first, and may not be there at all: a node of one's own is made by what sysfs
    /// says, and sysfs tells of the namespace in which it was mounted.
    fn node(&self, index: u32) -> io::Result<Node> {
        let sysfs = mount::sysfs()?;
        let path = format!("/proc/self/fd/{}/class/net/{}/tap{index}/dev", sysfs.as_raw_fd(), self.0);
        let text = fs::read_to_string(path)?;
        let (major, minor) = text.trim().split_once(':').ok_or(io::ErrorKind::InvalidData)?;
        let number = |text: &str| text.parse().map_err(io::Error::other);
        let node = Node(mount::tmpfs(&[(c"mode", c"700")], mount::NOEXEC)?);
        mknodat(
            &node.0,
            Node::NAME,
            SFlag::S_IFCHR,
            Mode::S_IRUSR | Mode::S_IWUSR,
            makedev(number(major)?, number(minor)?),
        )?;
        Ok(node)
    }

    /// Removes it, if it is there.
    ///
    /// # Errors
    /// [`Error::Tie`]
    pub fn remove(&self) -> Result<(), Error> {
        let Ok(index) = if_nametoindex(&self.0[..]) else { return Ok(()) };
        let mut link = LinkMessage::default();
        link.header.index = index;
        let removed = Netlink::open()
            .and_then(|mut netlink| netlink.request(RouteNetlinkMessage::DelLink(link), Existing::Change));
        match removed {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other.map_err(failed(&self.0, "remove the macvtap device")),
        }
    }

    fn message(&self, lower: u32) -> LinkMessage {
        let mode = InfoData::MacVtap(vec![InfoMacVtap::Mode(MacVtapMode::Passthrough)]);
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(self.0.clone()),
            LinkAttribute::Link(lower),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::MacVtap), LinkInfo::Data(mode)]),
        ];
        link
    }
}

fn failed(interface: &str, what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Tie { interface: interface.into(), what, source }
}

/// The macvtap device of rt's that lies on an interface.
pub fn on(netlink: &mut Netlink, lower: u32) -> io::Result<Option<String>> {
    let links = netlink.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(links.iter().find_map(|message| {
        let RouteNetlinkMessage::NewLink(link) = message else { return None };
        let is_on_it = link.attributes.contains(&LinkAttribute::Link(lower));
        link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) if is_on_it && name.starts_with(TAP_PREFIX) => Some(name.clone()),
            _ => None,
        })
    }))
}

/// A file system of one device node, mounted nowhere.
struct Node(OwnedFd);

impl Node {
    const NAME: &str = "tap";

    fn open(&self) -> io::Result<File> {
        Ok(openat(&self.0, Self::NAME, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?.into())
    }
}
