//! What a network namespace holds, as plain values, and how it is read ([`scan`]).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::Emitable;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, InfoData, InfoIpVlan, InfoKind, IpVlanMode, LinkAttribute, LinkFlags,
    LinkInfo, LinkLayerType, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHopFlags,
    RouteProtocol, RouteType,
};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use super::Error;
use super::framing::{self, Framing};
use super::netlink::Netlink;

/// Names of rt's own TAP and macvtap devices start so.
pub const TAP_PREFIX: &str = "rttap";
/// The table that routes are in unless they say otherwise, and the one that the kernel fills itself.
const MAIN_TABLE: u32 = 254;
const LOCAL_TABLE: u32 = 255;

/// Of what is there, what a container sees of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    pub interfaces: Vec<Interface>,
    pub routes: Vec<Route>,
    pub neighbours: Vec<Neighbour>,
    pub rules: Vec<Rule>,
}

/// A rule by which a routing table is chosen (ip-rule(8)), in the kernel's own form: it names interfaces, so it holds in the guest as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule(pub Vec<u8>);

/// An interface that is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    /// In the guest; its own where it has one that a guest's can have.
    pub mac: [u8; 6],
    #[serde(default)]
    pub framing: Framing,
    pub mtu: u32,
    /// It resolves addresses; netkit, for one, may not.
    pub arp: bool,
    pub ipv6: bool,
    pub addresses: Vec<Address>,
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    pub local: IpAddr,
    /// Of a point-to-point link.
    pub peer: Option<IpAddr>,
    pub prefix: u8,
    pub broadcast: Option<Ipv4Addr>,
    pub scope: u8,
    /// The kernel is to make no route to its network.
    pub without_route: bool,
}

/// A route that the kernel did not make itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// 0.0.0.0/0 or ::/0 for a default route.
    pub destination: IpAddr,
    pub prefix: u8,
    pub source: Option<IpAddr>,
    /// None for one that refuses (unreachable, blackhole, prohibit).
    pub hops: Vec<Hop>,
    pub metric: Option<u32>,
    pub mtu: Option<u32>,
    pub table: u32,
    pub scope: u8,
    pub kind: u8,
    pub protocol: u8,
}

/// One way that a route leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// Index of an interface.
    pub interface: u32,
    pub gateway: Option<IpAddr>,
    /// The gateway is on the link, whatever the addresses say.
    pub onlink: bool,
    /// Less one.
    pub weight: u8,
}

/// A neighbour that somebody entered by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    pub interface: u32,
    pub address: IpAddr,
    pub mac: [u8; 6],
}

/// What [`scan`] finds.
#[derive(Debug, Default)]
pub struct Found {
    pub layout: Layout,
    /// The index of every interface, those that are down among them.
    pub present: Vec<u32>,
    /// Interfaces that are up and that no virtual machine can have, by index, each with an [`Error::Carry`].
    pub refused: Vec<(u32, Error)>,
}

/// Reads the network namespace of this thread.
///
/// # Errors
/// [`Error::Scan`]
pub fn scan() -> Result<Found, Error> {
    let mut netlink = Netlink::open().map_err(failed("it"))?;
    let mut dump = |what, request| netlink.dump(&request).map_err(failed(what));
    let links = dump("its interfaces", RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let addresses = dump("its addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let neighbours = dump("its neighbours", RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))?;
    let (mut routes, mut rules) = (Vec::new(), Vec::new());
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        routes.extend(dump("its routes", RouteNetlinkMessage::GetRoute(request))?);
        let mut request = RuleMessage::default();
        request.header.family = family;
        rules.extend(dump("its routing rules", RouteNetlinkMessage::GetRule(request))?);
    }
    let mut found = collect(links, addresses, routes, neighbours);
    found.layout.rules = rules.iter().filter_map(rule).collect();
    Ok(found)
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Scan { what, source }
}

/// `None` for the three that every namespace has from its start.
fn rule(message: &RouteNetlinkMessage) -> Option<Rule> {
    let RouteNetlinkMessage::NewRule(rule) = message else { return None };
    if rule.attributes.contains(&RuleAttribute::Protocol(RouteProtocol::Kernel)) {
        return None;
    }
    let mut bytes = vec![0; rule.buffer_len()];
    rule.emit(&mut bytes);
    Some(Rule(bytes))
}

/// From the kernel's answers, but for rules.
fn collect(
    links: Vec<RouteNetlinkMessage>,
    addresses: Vec<RouteNetlinkMessage>,
    routes: Vec<RouteNetlinkMessage>,
    neighbours: Vec<RouteNetlinkMessage>,
) -> Found {
    let Found { mut layout, mut refused, .. } = Found::default();
    let present: Vec<u32> = links.iter().filter_map(|link| Some(as_link(link)?.header.index)).collect();
    for link in links.iter().filter_map(as_link) {
        match interface(link, &present) {
            Ok(interface) => layout.interfaces.extend(interface),
            Err(error) => refused.push((link.header.index, error)),
        }
    }
    for message in &addresses {
        let RouteNetlinkMessage::NewAddress(message) = message else { continue };
        let on = |interface: &&mut Interface| interface.index == message.header.index;
        if let Some(interface) = layout.interfaces.iter_mut().find(on)
            && let Some(address) = address(message)
            && address.local != link_local(interface.mac)
        {
            interface.addresses.push(address);
        }
    }
    let known = |index: &u32| layout.interfaces.iter().any(|interface| interface.index == *index);
    layout.routes = routes
        .iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(message) => route(message),
            _ => None,
        })
        .filter(|route| route.hops.iter().all(|hop| known(&hop.interface)))
        .collect();
    layout.neighbours = neighbours
        .iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewNeighbour(message) => neighbour(message),
            _ => None,
        })
        .filter(|neighbour| known(&neighbour.interface))
        .collect();
    Found { layout, present, refused }
}

fn as_link(message: &RouteNetlinkMessage) -> Option<&LinkMessage> {
    match message {
        RouteNetlinkMessage::NewLink(message) => Some(message),
        _ => None,
    }
}

/// `None` for what a container does not miss: the loopback, what is down, rt's own, and what lies on top of
/// another interface of the same namespace, or is a tunnel through it: those frames the guest gets already.
fn interface(link: &LinkMessage, here: &[u32]) -> Result<Option<Interface>, Error> {
    let flags = link.header.flags;
    let (mut name, mut mac, mut mtu, mut lower, mut abroad) = (String::new(), None, 0, None, false);
    let (mut kind, mut ipv6, mut enslaved, mut l3s) = (None, false, false, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name.clone_from(text),
            LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(&bytes[..]).ok(),
            LinkAttribute::Mtu(value) => mtu = *value,
            LinkAttribute::Link(index) => lower = Some(*index),
            LinkAttribute::LinkNetNsId(_) => abroad = true,
            LinkAttribute::Controller(_) => enslaved = true,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(name) => kind = Some(name.clone()),
                        LinkInfo::Data(InfoData::IpVlan(data)) => {
                            l3s = data.contains(&InfoIpVlan::Mode(IpVlanMode::L3S));
                        }
                        _ => {}
                    }
                }
            }
            LinkAttribute::AfSpecUnspec(families) => ipv6 = families.iter().any(speaks_ipv6),
            _ => {}
        }
    }
    let skipped = flags.contains(LinkFlags::Loopback) || !flags.contains(LinkFlags::Up) || enslaved;
    if skipped || name.starts_with(TAP_PREFIX) {
        return Ok(None);
    }
    let layer = link.header.link_layer_type;
    let on_top = !abroad && (is_tunnel(layer) || lower.is_some_and(|lower| here.contains(&lower)));
    if on_top && kind != Some(InfoKind::Veth) {
        tracing::warn!(
            "{name} lies on another interface of its network namespace and is left to the container to make"
        );
        return Ok(None);
    }
    let index = link.header.index;
    let refuse = |reason: String| Error::Carry { interface: name.clone(), reason };
    if l3s {
        return Err(refuse(
            "it is ipvlan in mode l3s, whose packets come past traffic control; make it with `mode l2` or `mode l3`".into(),
        ));
    }
    let (mac, framing) = as_ethernet(layer, index, mac).map_err(refuse)?;
    let arp = framing == Framing::Ethernet && !flags.contains(LinkFlags::Noarp);
    Ok(Some(Interface { index, name, mac, framing, mtu, arp, ipv6, addresses: Vec::new() }))
}

fn is_tunnel(layer: LinkLayerType) -> bool {
    matches!(
        layer,
        LinkLayerType::Tunnel
            | LinkLayerType::Tunnel6
            | LinkLayerType::Sit
            | LinkLayerType::Ipgre
            | LinkLayerType::Ip6gre
    )
}

/// The address of the guest's interface, and what makes frames for it; or why it can have none.
fn as_ethernet(layer: LinkLayerType, index: u32, mac: Option<[u8; 6]>) -> Result<([u8; 6], Framing), String> {
    match (layer, mac) {
        (LinkLayerType::Ether, None) => Err("it has no Ethernet address".into()),
        (LinkLayerType::Ether, Some([0, 0, 0, 0, 0, 0])) => Ok((framing::address(index), Framing::Blank)),
        (LinkLayerType::Ether, Some(mac)) => Ok((mac, Framing::Ethernet)),
        (LinkLayerType::None | LinkLayerType::Rawip, _) => Ok((framing::address(index), Framing::Bare)),
        (layer, _) if is_tunnel(layer) => Ok((framing::address(index), Framing::Bare)),
        (other, _) => Err(format!(
            "its link layer is {other}, and a virtual machine has Ethernet interfaces; of others rt takes those that carry IP packets alone"
        )),
    }
}

fn speaks_ipv6(family: &AfSpecUnspec) -> bool {
    let enabled = |part: &AfSpecInet6| matches!(part, AfSpecInet6::DevConf(conf) if conf.disable_ipv6 == 0);
    matches!(family, AfSpecUnspec::Inet6(parts) if parts.iter().any(enabled))
}

/// The address that the kernel gives an interface by its hardware address: a guest's kernel does so, too.
fn link_local(mac: [u8; 6]) -> IpAddr {
    let [a, b, c, d, e, f] = mac;
    let pair = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f)).into()
}

/// `None` for one that another node was found to have.
fn address(message: &AddressMessage) -> Option<Address> {
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    let (mut address, mut local, mut broadcast) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Broadcast(ip) => broadcast = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    if flags.contains(AddressFlags::Dadfailed) {
        return None;
    }
    let local_or_only = local.or(address)?;
    Some(Address {
        local: local_or_only,
        peer: address.filter(|address| *address != local_or_only),
        prefix: message.header.prefix_len,
        broadcast,
        scope: scope(message.header.scope),
        without_route: flags.contains(AddressFlags::Noprefixroute),
    })
}

fn scope(scope: AddressScope) -> u8 {
    scope.into()
}

/// `None` for one that the kernel makes by itself when addresses and interfaces are as here.
fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let v6 = header.address_family == AddressFamily::Inet6;
    let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let kinds = [RouteType::Unicast, RouteType::BlackHole, RouteType::Unreachable, RouteType::Prohibit];
    let made_by_the_kernel = matches!(header.protocol, RouteProtocol::Kernel | RouteProtocol::Ra);
    if made_by_the_kernel || !kinds.contains(&header.kind) || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let mut route = Route {
        destination: any,
        prefix: header.destination_prefix_length,
        source: None,
        hops: Vec::new(),
        metric: None,
        mtu: None,
        table: header.table.into(),
        scope: header.scope.into(),
        kind: header.kind.into(),
        protocol: header.protocol.into(),
    };
    let (mut interface, mut gateway) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.destination = ip(address)?,
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            RouteAttribute::MultiPath(hops) => {
                route.hops.extend(hops.iter().map(|hop| Hop {
                    interface: hop.interface_index,
                    gateway: hop.attributes.iter().find_map(|attribute| match attribute {
                        RouteAttribute::Gateway(address) => ip(address),
                        _ => None,
                    }),
                    onlink: hop.flags.contains(RouteNextHopFlags::Onlink),
                    weight: hop.hops,
                }));
            }
            _ => {}
        }
    }
    if let Some(interface) = interface {
        let onlink = header.flags.contains(RouteFlags::Onlink);
        route.hops.push(Hop { interface, gateway, onlink, weight: 0 });
    }
    let refuses = header.kind != RouteType::Unicast;
    if refuses {
        route.hops.clear();
    }
    let usable = refuses || !route.hops.is_empty();
    (usable && route.table != LOCAL_TABLE).then_some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some((*ip).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some((*ip).into()),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = <[u8; 6]>::try_from(&bytes[..]).ok(),
            _ => {}
        }
    }
    Some(Neighbour { interface: message.header.ifindex, address: address?, mac: mac? })
}

impl Layout {
    /// Takes out an interface, and what leads through it.
    pub fn leave_out(&mut self, index: u32) {
        self.interfaces.retain(|interface| interface.index != index);
        self.routes.retain(|route| route.hops.iter().all(|hop| hop.interface != index));
        self.neighbours.retain(|neighbour| neighbour.interface != index);
    }
}

impl Route {
    /// The routing table in the form of a header, and as an attribute where it does not fit there.
    pub fn table(&self) -> (u8, Option<u32>) {
        match u8::try_from(self.table) {
            Ok(table) => (table, None),
            Err(_) => (RouteHeader::RT_TABLE_UNSPEC, Some(self.table)),
        }
    }
}

impl std::fmt::Display for Route {
    /// As ip(8) shows it, the interfaces' names aside.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.prefix {
            0 => f.write_str("default")?,
            prefix => write!(f, "{}/{prefix}", self.destination)?,
        }
        for gateway in self.hops.iter().filter_map(|hop| hop.gateway) {
            write!(f, " via {gateway}")?;
        }
        match self.table {
            MAIN_TABLE => Ok(()),
            table => write!(f, " table {table}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::RouteNextHop;

    use super::*;

    #[test]
    fn link_local_addresses_are_made_from_hardware_addresses() {
        let address = link_local([0x02, 0x42, 0xac, 0x11, 0x00, 0x02]);
        assert_eq!(address.to_string(), "fe80::42:acff:fe11:2");
    }

    fn link(index: u32, name: &str, flags: LinkFlags, more: Vec<LinkAttribute>) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = flags;
        link.header.link_layer_type = LinkLayerType::Ether;
        link.attributes =
            vec![LinkAttribute::IfName(name.into()), LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1])];
        link.attributes.extend(more);
        link
    }

    #[test]
    fn what_a_container_does_not_miss_is_left_out() {
        let up = LinkFlags::Up;
        let vlan =
            vec![LinkAttribute::Link(2), LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan)])];
        for left_out in [
            link(1, "lo", up | LinkFlags::Loopback, vec![]),
            link(3, "eth1", LinkFlags::empty(), vec![]),
            link(3, "rttap2", up, vec![]),
            link(3, "eth0.7", up, vlan.clone()),
            link(3, "port", up, vec![LinkAttribute::Controller(2)]),
        ] {
            assert_eq!(interface(&left_out, &[1, 2, 3]).expect("no error"), None);
        }
        // A macvlan lies on an interface of another namespace, of whatever number.
        let abroad = [vlan, vec![LinkAttribute::LinkNetNsId(0)]].concat();
        assert!(interface(&link(3, "eth0", up, abroad), &[1, 2, 3]).expect("no error").is_some());
    }

    #[test]
    fn what_no_machine_can_have_is_refused() {
        let mut infiniband = link(3, "ib0", LinkFlags::Up, vec![]);
        infiniband.header.link_layer_type = LinkLayerType::Infiniband;
        let error = interface(&infiniband, &[]).expect_err("refused").to_string();
        assert!(error.contains("ib0") && error.contains("INFINIBAND"), "{error}");
    }

    #[test]
    fn what_carries_ip_alone_is_given_an_ethernet_address() {
        let found = |link: &LinkMessage| interface(link, &[1, 3]).expect("no error");
        let seen = |link: &LinkMessage| found(link).map(|one| (one.mac, one.framing, one.arp));
        let mac = [0x02, b'r', 0, 0, 0, 3];
        let mut netkit = link(3, "nk0", LinkFlags::Up, vec![]);
        netkit.attributes[1] = LinkAttribute::Address(vec![0; 6]);
        assert_eq!(seen(&netkit), Some((mac, Framing::Blank, false)));
        let mut tun = link(3, "tun0", LinkFlags::Up, vec![]);
        tun.header.link_layer_type = LinkLayerType::None;
        assert_eq!(seen(&tun), Some((mac, Framing::Bare, false)));
        // Of tunnels those whose other end is not behind an interface of the guest's.
        let mut tunnel = link(3, "sit1", LinkFlags::Up, vec![]);
        tunnel.header.link_layer_type = LinkLayerType::Sit;
        assert_eq!(seen(&tunnel), None);
        tunnel.attributes.push(LinkAttribute::LinkNetNsId(0));
        assert_eq!(seen(&tunnel), Some((mac, Framing::Bare, false)));
    }

    /// A route to 192.0.2.0/24 through these interfaces.
    fn through(indexes: &[u32]) -> RouteNetlinkMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = 24;
        message.header.kind = RouteType::Unicast;
        message.header.protocol = RouteProtocol::Static;
        let destination = RouteAddress::Inet([192, 0, 2, 0].into());
        let hops = indexes.iter().map(|index| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = *index;
            hop
        });
        message.attributes =
            vec![RouteAttribute::Destination(destination), RouteAttribute::MultiPath(hops.collect())];
        RouteNetlinkMessage::NewRoute(message)
    }

    /// One interface that no machine can have is no reason to see nothing of the others.
    #[test]
    fn what_is_refused_stands_beside_the_rest() {
        let mut infiniband = link(3, "ib0", LinkFlags::Up, vec![]);
        infiniband.header.link_layer_type = LinkLayerType::Infiniband;
        let ethernet = [2, 4].map(|index| link(index, &format!("eth{index}"), LinkFlags::Up, vec![]));
        let links = [infiniband].into_iter().chain(ethernet).map(RouteNetlinkMessage::NewLink);
        let routes = [&[2][..], &[3], &[2, 3], &[2, 4], &[4]].map(through);
        let Found { mut layout, refused, present } =
            collect(links.collect(), Vec::new(), routes.into(), Vec::new());
        let [(3, error)] = &refused[..] else { panic!("{refused:?}") };
        assert!(error.to_string().contains("ib0"), "{error}");
        assert_eq!(present, [3, 2, 4]);
        let ways = |layout: &Layout| -> Vec<Vec<u32>> {
            let hops = |route: &Route| route.hops.iter().map(|hop| hop.interface).collect();
            layout.routes.iter().map(hops).collect()
        };
        assert_eq!(ways(&layout), [vec![2], vec![2, 4], vec![4]]);
        let mac = [2; 6];
        layout.neighbours.push(Neighbour { interface: 4, address: Ipv4Addr::LOCALHOST.into(), mac });
        layout.leave_out(4);
        assert_eq!(layout.interfaces.iter().map(|interface| interface.index).collect::<Vec<_>>(), [2]);
        assert_eq!(ways(&layout), [[2]]);
        assert!(layout.neighbours.is_empty());
    }

    #[test]
    fn routes_of_the_kernels_own_making_are_left_to_it() {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.kind = RouteType::Unicast;
        message.header.table = 254;
        message.header.protocol = RouteProtocol::Boot;
        message.attributes =
            vec![RouteAttribute::Oif(2), RouteAttribute::Gateway(RouteAddress::Inet([10, 0, 0, 1].into()))];
        let found = route(&message).expect("a route");
        assert_eq!(found.to_string(), "default via 10.0.0.1");
        assert_eq!(found.hops[0].interface, 2);
        message.header.protocol = RouteProtocol::Kernel;
        assert_eq!(route(&message), None);
    }
}
