//! From what a guest has to what it is to have: the requests to its kernel, in an order that works. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_packet_core::Parseable;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags, RouteType,
};
use netlink_packet_route::rule::{RuleMessage, RuleMessageBuffer};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::framing::Framing;
use super::layout::{Address, Hop, Interface, Layout, Neighbour, Route, Rule};
use super::netlink::{Existing, encode};

/// One request to a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What it does, for an error message: "cannot " + this.
    pub what: String,
    /// An rtnetlink message that asks for an acknowledgement.
    pub message: Vec<u8>,
    /// It takes away what may be gone already.
    pub removes: bool,
}

/// Numbers of interfaces: in the namespace, and in the guest.
pub type Indexes = BTreeMap<u32, u32>;

/// What turns `old` into `new` in the guest. An interface of `indexes` that `new` lacks is taken down.
///
/// A guest's kernel drops routes, addresses and neighbours by itself when an interface changes ([`Interface::is_kept`]): all that such
/// an interface is to have is given again. What is still there is replaced by the same.
pub fn changes(old: &Layout, new: &Layout, indexes: &Indexes) -> Vec<Change> {
    let mut plan = Plan { indexes, changes: Vec::new() };
    let before = |index| old.interfaces.iter().find(|interface| interface.index == index);
    let is_there = |index| new.interfaces.iter().any(|interface| interface.index == index);
    let is_anew = |now: &&Interface| before(now.index).is_none_or(|before| !before.is_kept(now));
    let anew: BTreeSet<u32> = new.interfaces.iter().filter(is_anew).map(|now| now.index).collect();
    // What depends on others goes first.
    for neighbour in old.neighbours.iter().filter(|one| !new.neighbours.contains(one)) {
        plan.neighbour(neighbour, true);
    }
    for rule in old.rules.iter().filter(|one| !new.rules.contains(one)) {
        plan.rule(rule, true);
    }
    for route in old.routes.iter().filter(|one| !new.routes.contains(one)) {
        plan.route(route, true);
    }
    for interface in &old.interfaces {
        let now = new.interfaces.iter().find(|one| one.index == interface.index);
        for address in &interface.addresses {
            if now.is_none_or(|now| !now.addresses.contains(address)) {
                plan.address(interface, address, true);
            }
        }
        if now.is_none() {
            plan.down(interface);
            plan.rename(interface, true);
        }
    }
    // A name may still be another new interface's, given by the guest's kernel in the order of plugging.
    let renamed =
        |interface: &&Interface| before(interface.index).is_none_or(|before| before.name != interface.name);
    for interface in new.interfaces.iter().filter(renamed) {
        plan.rename(interface, false);
    }
    for interface in &new.interfaces {
        let before = before(interface.index);
        if before.is_none_or(|before| !before.is_like(interface)) {
            plan.set_up(interface);
        }
        for address in &interface.addresses {
            let is_known = before.is_some_and(|before| before.addresses.contains(address));
            if !is_known || anew.contains(&interface.index) {
                plan.address(interface, address, false);
            }
        }
        if before.is_none_or(|before| !before.is_like(interface)) {
            plan.up(interface);
        }
    }
    let leads_anew = |route: &Route| route.hops.iter().any(|hop| anew.contains(&hop.interface));
    let mut routes: Vec<&Route> =
        new.routes.iter().filter(|one| !old.routes.contains(one) || leads_anew(one)).collect();
    // The ways to the gateways before those through them.
    routes.sort_by_key(|route| route.hops.iter().any(|hop| hop.gateway.is_some()));
    for route in routes {
        plan.route(route, false);
    }
    for rule in new.rules.iter().filter(|one| !old.rules.contains(one)) {
        plan.rule(rule, false);
    }
    for neighbour in new.neighbours.iter().filter(|one| is_there(one.interface)) {
        if !old.neighbours.contains(neighbour) || anew.contains(&neighbour.interface) {
            plan.neighbour(neighbour, false);
        }
    }
    plan.changes
}

impl Interface {
    /// But for addresses.
    fn is_like(&self, other: &Self) -> bool {
        let own = |interface: &Self| {
            (interface.name.clone(), interface.mac, interface.framing, interface.mtu, interface.arp)
        };
        own(self) == own(other)
    }

    /// Whether a guest's kernel keeps what depends on it while it becomes `now`. Taken down for another name, it loses its routes, IPv6
    /// addresses and permanent neighbours; the last also when its hardware address is set, even to the same. An IPv4 address
    /// that is removed takes others of its network along, and the last one all IPv4 routes.
    fn is_kept(&self, now: &Self) -> bool {
        let keeps = |address: &Address| address.local.is_ipv6() || now.addresses.contains(address);
        self.is_like(now) && self.addresses.iter().all(keeps)
    }
}

struct Plan<'a> {
    indexes: &'a Indexes,
    changes: Vec<Change>,
}

impl Plan<'_> {
    fn add(&mut self, what: String, message: RouteNetlinkMessage, existing: Existing) {
        let message = encode(message, existing, self.changes.len() as u32 + 1);
        self.changes.push(Change { what, message, removes: false });
    }

    fn remove(&mut self, what: String, message: RouteNetlinkMessage) {
        self.add(what, message, Existing::Change);
        if let Some(change) = self.changes.last_mut() {
            change.removes = true;
        }
    }

    fn link(&self, interface: &Interface) -> Option<LinkMessage> {
        let mut link = LinkMessage::default();
        link.header.index = *self.indexes.get(&interface.index)?;
        Some(link)
    }

    /// Gives it a name that is nobody's.
    fn rename(&mut self, interface: &Interface, gone: bool) {
        let Some(mut link) = self.link(interface) else { return };
        link.header.change_mask = LinkFlags::Up;
        link.attributes = vec![LinkAttribute::IfName(format!("rt{}", link.header.index))];
        let message = RouteNetlinkMessage::SetLink(link);
        if gone {
            self.remove(format!("take the guest's interface {} its name", interface.name), message);
        } else {
            self.add(format!("name the guest's interface {}", interface.name), message, Existing::Change);
        }
    }

    fn set_up(&mut self, interface: &Interface) {
        let Some(mut link) = self.link(interface) else { return };
        link.header.change_mask = LinkFlags::Noarp;
        link.header.flags = if interface.arp { LinkFlags::empty() } else { LinkFlags::Noarp };
        link.attributes = vec![
            LinkAttribute::IfName(interface.name.clone()),
            LinkAttribute::Address(interface.mac.to_vec()),
            LinkAttribute::Mtu(interface.mtu),
        ];
        if interface.ipv6 {
            // Of an address of rt's making no other is made.
            let own = interface.framing == Framing::Ethernet;
            let mode = if own { In6AddrGenMode::Eui64 } else { In6AddrGenMode::None };
            let inet6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)]);
            link.attributes.push(LinkAttribute::AfSpecUnspec(vec![inet6]));
        }
        self.add(
            format!("set name, address and MTU of the guest's interface {}", interface.name),
            RouteNetlinkMessage::SetLink(link),
            Existing::Change,
        );
    }

    fn up(&mut self, interface: &Interface) {
        let Some(mut link) = self.link(interface) else { return };
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.add(
            format!("bring the guest's interface {} up", interface.name),
            RouteNetlinkMessage::SetLink(link),
            Existing::Change,
        );
    }

    fn down(&mut self, interface: &Interface) {
        let Some(mut link) = self.link(interface) else { return };
        link.header.change_mask = LinkFlags::Up;
        self.remove(
            format!("bring the guest's interface {} down", interface.name),
            RouteNetlinkMessage::SetLink(link),
        );
    }

    fn address(&mut self, interface: &Interface, address: &Address, remove: bool) {
        let Some(index) = self.indexes.get(&interface.index) else { return };
        let mut message = AddressMessage::default();
        message.header.family = family(address.local);
        message.header.prefix_len = address.prefix;
        message.header.scope = AddressScope::from(address.scope);
        message.header.index = *index;
        // The namespace has found out already that nobody else has it.
        let mut flags = AddressFlags::Permanent;
        if address.local.is_ipv6() {
            flags |= AddressFlags::Nodad;
        }
        if address.without_route {
            flags |= AddressFlags::Noprefixroute;
        }
        message.header.flags = AddressHeaderFlags::from_bits_retain(flags.bits() as u8);
        message.attributes = vec![
            AddressAttribute::Local(address.local),
            AddressAttribute::Address(address.peer.unwrap_or(address.local)),
            AddressAttribute::Flags(flags),
        ];
        message.attributes.extend(address.broadcast.map(AddressAttribute::Broadcast));
        let name =
            format!("{}/{} on the guest's interface {}", address.local, address.prefix, interface.name);
        if remove {
            self.remove(format!("remove the address {name}"), RouteNetlinkMessage::DelAddress(message));
        } else {
            let message = RouteNetlinkMessage::NewAddress(message);
            self.add(format!("set the address {name}"), message, Existing::Replace);
        }
    }

    fn route(&mut self, route: &Route, remove: bool) {
        let hops: Option<Vec<(u32, &Hop)>> =
            route.hops.iter().map(|hop| Some((*self.indexes.get(&hop.interface)?, hop))).collect();
        let Some(hops) = hops else { return };
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = family(route.destination);
        header.destination_prefix_length = route.prefix;
        header.protocol = route.protocol.into();
        header.scope = route.scope.into();
        header.kind = RouteType::from(route.kind);
        let attributes = &mut message.attributes;
        let (table, long_table) = route.table();
        header.table = table;
        attributes.extend(long_table.map(RouteAttribute::Table));
        if route.prefix > 0 {
            attributes.push(RouteAttribute::Destination(route.destination.into()));
        }
        attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
        attributes.extend(route.metric.map(RouteAttribute::Priority));
        attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        match &hops[..] {
            [] => {}
            [(index, hop)] => {
                attributes.push(RouteAttribute::Oif(*index));
                attributes.extend(hop.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
                if hop.onlink {
                    header.flags |= RouteFlags::Onlink;
                }
            }
            several => {
                let hops = several.iter().map(|(index, hop)| next_hop(*index, hop)).collect();
                attributes.push(RouteAttribute::MultiPath(hops));
            }
        }
        if remove {
            self.remove(format!("remove the guest's route {route}"), RouteNetlinkMessage::DelRoute(message));
        } else {
            let message = RouteNetlinkMessage::NewRoute(message);
            self.add(format!("add the route {route} to the guest"), message, Existing::Replace);
        }
    }

    fn rule(&mut self, Rule(bytes): &Rule, remove: bool) {
        let parsed = RuleMessageBuffer::new_checked(bytes).and_then(|buffer| RuleMessage::parse(&buffer));
        let Ok(message) = parsed else { return };
        if remove {
            self.remove("remove a routing rule from the guest".into(), RouteNetlinkMessage::DelRule(message));
        } else {
            let message = RouteNetlinkMessage::NewRule(message);
            self.add("add a routing rule to the guest".into(), message, Existing::Refuse);
        }
    }

    fn neighbour(&mut self, neighbour: &Neighbour, remove: bool) {
        let Some(index) = self.indexes.get(&neighbour.interface) else { return };
        let mut message = NeighbourMessage::default();
        message.header.family = family(neighbour.address);
        message.header.ifindex = *index;
        message.header.state = NeighbourState::Permanent;
        let address = match neighbour.address {
            IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
            IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
        };
        message.attributes = vec![
            NeighbourAttribute::Destination(address),
            NeighbourAttribute::LinkLayerAddress(neighbour.mac.to_vec()),
        ];
        let what = format!("the neighbour {}", neighbour.address);
        if remove {
            self.remove(format!("remove {what} from the guest"), RouteNetlinkMessage::DelNeighbour(message));
        } else {
            let message = RouteNetlinkMessage::NewNeighbour(message);
            self.add(format!("add {what} to the guest"), message, Existing::Replace);
        }
    }
}

fn next_hop(index: u32, hop: &Hop) -> RouteNextHop {
    let mut next = RouteNextHop::default();
    next.interface_index = index;
    next.hops = hop.weight;
    if hop.onlink {
        next.flags |= RouteNextHopFlags::Onlink;
    }
    next.attributes.extend(hop.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    next
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;

    use super::*;

    fn layout() -> Layout {
        let address = |text: &str, prefix| Address {
            local: text.parse().expect("an address"),
            peer: None,
            prefix,
            broadcast: None,
            scope: 0,
            without_route: false,
        };
        let hop = |gateway: Option<&str>| Hop {
            interface: 7,
            gateway: gateway.map(|text| text.parse().expect("an address")),
            onlink: false,
            weight: 0,
        };
        let route = |destination: &str, prefix, hop| Route {
            destination: destination.parse().expect("an address"),
            prefix,
            source: None,
            hops: vec![hop],
            metric: None,
            mtu: None,
            table: 254,
            scope: 0,
            kind: 1,
            protocol: 3,
        };
        Layout {
            interfaces: vec![Interface {
                index: 7,
                name: "eth0".into(),
                mac: [2, 0, 0, 0, 0, 7],
                framing: Framing::Ethernet,
                mtu: 9000,
                arp: true,
                ipv6: true,
                addresses: vec![address("10.1.0.2", 24), address("fd00::2", 64)],
            }],
            routes: vec![
                route("0.0.0.0", 0, hop(Some("169.254.1.1"))),
                route("169.254.1.1", 32, hop(None)),
                route("::", 0, hop(Some("fd00::1"))),
            ],
            neighbours: vec![Neighbour {
                interface: 7,
                address: "169.254.1.1".parse().expect("an address"),
                mac: [0xee; 6],
            }],
            rules: Vec::new(),
        }
    }

    fn words(old: &Layout, new: &Layout) -> Vec<String> {
        changes(old, new, &[(7, 2), (8, 3)].into()).into_iter().map(|change| change.what).collect()
    }

    #[test]
    fn a_new_interface_is_named_addressed_brought_up_and_routed_through() {
        assert_eq!(
            words(&Layout::default(), &layout()),
            [
                "name the guest's interface eth0",
                "set name, address and MTU of the guest's interface eth0",
                "set the address 10.1.0.2/24 on the guest's interface eth0",
                "set the address fd00::2/64 on the guest's interface eth0",
                "bring the guest's interface eth0 up",
                "add the route 169.254.1.1/32 to the guest",
                "add the route default via 169.254.1.1 to the guest",
                "add the route default via fd00::1 to the guest",
                "add the neighbour 169.254.1.1 to the guest",
            ]
        );
        assert!(words(&layout(), &layout()).is_empty());
    }

    #[test]
    fn what_changed_is_changed_and_no_more() {
        let mut new = layout();
        new.interfaces[0].addresses.remove(1);
        new.routes.remove(2);
        assert_eq!(
            words(&layout(), &new),
            [
                "remove the guest's route default via fd00::1",
                "remove the address fd00::2/64 on the guest's interface eth0",
            ]
        );
        let mut new = layout();
        let more = Address { prefix: 28, ..new.interfaces[0].addresses[0].clone() };
        new.interfaces[0].addresses.push(more);
        assert_eq!(words(&layout(), &new), ["set the address 10.1.0.2/28 on the guest's interface eth0"]);
    }

    /// Else the guest has no routes after a rename that left the namespace's in place.
    #[test]
    fn what_goes_with_a_link_that_is_taken_down_is_given_again() {
        let mut old = layout();
        old.interfaces.push(Interface {
            index: 8,
            name: "eth1".into(),
            addresses: Vec::new(),
            ..old.interfaces[0].clone()
        });
        let mut unreachable = old.routes[0].clone();
        unreachable.hops.clear();
        let mut others = old.routes[1].clone();
        others.hops[0].interface = 8;
        old.routes.extend([unreachable, others]);
        old.neighbours.push(Neighbour { interface: 8, ..old.neighbours[0].clone() });
        let mut new = old.clone();
        new.interfaces[0].name = "net1".into();
        let expected = [
            "name the guest's interface net1",
            "set name, address and MTU of the guest's interface net1",
            "set the address 10.1.0.2/24 on the guest's interface net1",
            "set the address fd00::2/64 on the guest's interface net1",
            "bring the guest's interface net1 up",
            "add the route 169.254.1.1/32 to the guest",
            "add the route default via 169.254.1.1 to the guest",
            "add the route default via fd00::1 to the guest",
            "add the neighbour 169.254.1.1 to the guest",
        ];
        assert_eq!(words(&old, &new), expected);
        // Where it is one of several ways, too.
        new.routes[0].hops.push(Hop { interface: 8, gateway: None, onlink: false, weight: 0 });
        let old = Layout { interfaces: old.interfaces, ..new.clone() };
        assert_eq!(words(&old, &new), expected);
    }

    #[test]
    fn what_goes_with_a_hardware_address_or_an_ipv4_address_is_given_again() {
        let mut new = layout();
        new.interfaces[0].mtu = 1500;
        let given = words(&layout(), &new);
        assert_eq!(given.last().expect("changes"), "add the neighbour 169.254.1.1 to the guest");
        let mut new = layout();
        new.interfaces[0].addresses[0].prefix = 16;
        assert_eq!(
            words(&layout(), &new),
            [
                "remove the address 10.1.0.2/24 on the guest's interface eth0",
                "set the address 10.1.0.2/16 on the guest's interface eth0",
                "set the address fd00::2/64 on the guest's interface eth0",
                "add the route 169.254.1.1/32 to the guest",
                "add the route default via 169.254.1.1 to the guest",
                "add the route default via fd00::1 to the guest",
                "add the neighbour 169.254.1.1 to the guest",
            ]
        );
    }

    #[test]
    fn rules_come_and_go() {
        let mut rule = RuleMessage::default();
        rule.header.family = AddressFamily::Inet;
        let mut bytes = vec![0; rule.buffer_len()];
        rule.emit(&mut bytes);
        let with = Layout { rules: vec![Rule(bytes)], ..Layout::default() };
        assert_eq!(words(&Layout::default(), &with), ["add a routing rule to the guest"]);
        assert_eq!(words(&with, &Layout::default()), ["remove a routing rule from the guest"]);
    }

    #[test]
    fn an_interface_that_is_gone_is_taken_down() {
        let words = words(&layout(), &Layout::default());
        let last = ["bring the guest's interface eth0 down", "take the guest's interface eth0 its name"];
        assert_eq!(words[6..], last);
    }

    #[test]
    fn an_interface_that_the_guest_does_not_have_is_passed_over() {
        assert!(changes(&Layout::default(), &layout(), &Indexes::new()).is_empty());
    }
}
