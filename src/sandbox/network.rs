//! The network of a sandbox: keeps what the guest has like what is in the network namespace.
//!
//! ```text
//!   namespace --scan--> what there is --+--> tap and redirect, slot of the VM        (attach: the host's half)
//!                                       +--> interface found, named, addressed, ...  (configure: the guest's half)
//! ```
//!
//! Both halves are told by [`Network`], which is part of the state record, what is done already; so they may be repeated at any time by any process
//! that holds the record's lock: when the sandbox starts, when a container starts, and when the namespace changes. An
//! interface is written into the record before anything of it is made. One that has left the namespace is taken down in the guest; its
//! TAP device and the guest's are the next one's.
//!
//! An interface that cannot be given to the VM is an error for as long as the container is being made ([`Misfit`]). Later it is left
//! out, and no reason not to follow the others.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::agent::{self, Agent, NetworkDevice};
use crate::config::{self, NetworkModel};
use crate::hypervisor::{self, GuestDevice, MAX_QUEUE_PAIRS, NETWORK_SLOTS, Nic, VmRecord};
use crate::log;
use crate::net::{self, Found, Interface, Layout, Macvtap, Namespace, Traffic};

/// Requests in one message to the agent: a route takes some hundred bytes, a message at most 4 MiB.
const BATCH: usize = 4096;

/// Why a sandbox has no network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Net(#[from] net::Error),
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
    #[error(transparent)]
    Agent(#[from] agent::Error),
    #[error(
        "cannot give the interface {0} to the virtual machine: it has {NETWORK_SLOTS} network interfaces already, and \
         more are not possible"
    )]
    Full(String),
    #[error("cannot {what}")]
    Refused {
        what: String,
        #[source]
        source: std::io::Error,
    },
    /// The record could not be written.
    #[error(transparent)]
    Record(Box<dyn std::error::Error + Send + Sync>),
}

/// What a sandbox has of its network namespace: part of the state record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The bundle's; `None` where it is one of rt's own, which goes with its monitor.
    pub namespace: Option<PathBuf>,
    /// Where it is found for as long as the monitor lives.
    pub held: PathBuf,
    model: NetworkModel,
    vhost: bool,
    offloads: bool,
    queue_pairs: usize,
    links: Vec<Link>,
    /// Indexes of interfaces that are there and that the VM does not get. They have been told.
    #[serde(default)]
    left_out: Vec<u32>,
    /// As far as the guest has been told.
    layout: Layout,
}

/// An interface of the namespace and the device of the VM that stands for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Link {
    /// In the namespace.
    index: u32,
    name: String,
    slot: usize,
    /// By which it is tied, if not by a TAP device.
    #[serde(default)]
    macvtap: Option<Macvtap>,
    /// Once it is plugged.
    device: Option<GuestDevice>,
    /// Its interface in the guest, once that is known.
    guest_index: Option<u32>,
    /// The namespace has it, and its frames are the VM's.
    #[serde(default = "tied")]
    tied: bool,
    /// The interface whose device it was, until the guest has been told.
    #[serde(default)]
    former: Option<u32>,
}

/// In the records of an rt that never gave a device to another interface.
fn tied() -> bool {
    true
}

impl Link {
    /// Takes away what ties it, from within its namespace.
    fn untie(&self) -> Result<(), net::Error> {
        match &self.macvtap {
            Some(macvtap) => macvtap.remove(),
            None => net::untie(self.index, &self.name),
        }
    }

    /// What it has can be another interface's. A macvtap device is gone with the one on which it lay.
    fn is_free(&self) -> bool {
        !self.tied && self.device.is_some() && self.macvtap.is_none()
    }
}

/// What becomes of an interface that cannot be given to the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misfit<'a> {
    /// It is an error.
    Refuse,
    /// It is left out, with one warning that has this ID.
    LeaveOut(&'a str),
}

/// Writes the record.
pub type Write<'a> = &'a mut dyn FnMut(&Network) -> Result<(), Error>;

impl Network {
    /// That of a sandbox with so many vCPUs, before anything is done.
    pub fn new(namespace: Option<PathBuf>, held: PathBuf, config: &config::Network, vcpus: u8) -> Self {
        let queue_pairs = usize::from(vcpus).clamp(1, MAX_QUEUE_PAIRS);
        let (model, vhost, offloads) = (config.model, config.vhost, config.offloads);
        Self { namespace, held, model, vhost, offloads, queue_pairs, ..Self::default() }
    }

    /// Whether there can be interfaces at all.
    pub fn is_used(&self) -> bool {
        self.queue_pairs > 0 && self.model != NetworkModel::None
    }

    /// The host's half: looks into the namespace and plugs what is new there. Gives what of it the guest is to have.
    ///
    /// An interface that was left out is not tried again before it has been down or away: what trying makes and removes is news of
    /// the namespace, upon which it would be tried again at once.
    ///
    /// # Errors
    /// [`Error`]; of an interface that could not be plugged nothing is left then.
    pub fn attach(
        &mut self,
        namespace: &Namespace,
        vm: &VmRecord,
        misfit: Misfit<'_>,
        write: Write<'_>,
    ) -> Result<Layout, Error> {
        if !self.is_used() {
            return Ok(Layout::default());
        }
        let Found { layout: mut wanted, present, refused } = namespace.within(net::scan)?;
        for link in &mut self.links {
            link.tied &= present.contains(&link.index);
        }
        let is_up = |index: &u32| {
            wanted.interfaces.iter().any(|interface| interface.index == *index)
                || refused.iter().any(|(refused, _)| refused == index)
        };
        self.left_out.retain(|index| misfit != Misfit::Refuse && is_up(index));
        for (index, error) in refused {
            self.leave_out(index, error.into(), misfit, write)?;
        }
        for interface in &wanted.interfaces {
            match self.links.iter_mut().find(|link| link.tied && link.index == interface.index) {
                // By its name it is untied, and its traffic is counted.
                Some(link) => link.name.clone_from(&interface.name),
                None if self.left_out.contains(&interface.index) => {}
                None => {
                    if let Err(error) = self.plug(namespace, interface, vm, write) {
                        self.leave_out(interface.index, error, misfit, write)?;
                    }
                }
            }
        }
        for index in &self.left_out {
            wanted.leave_out(*index);
        }
        Ok(wanted)
    }

    /// # Errors
    /// The same one, where it is to be refused, or of the record.
    fn leave_out(
        &mut self,
        index: u32,
        error: Error,
        misfit: Misfit<'_>,
        write: Write<'_>,
    ) -> Result<(), Error> {
        let id = match (misfit, &error) {
            (Misfit::Refuse, _) | (_, Error::Record(_)) => return Err(error),
            (Misfit::LeaveOut(id), _) => id,
        };
        if self.left_out.contains(&index) {
            return Ok(());
        }
        tracing::warn!(
            "the network of {id}: {}. It is left out, and all else is followed. Remove it, or mend the cause, set it down, and a second \
             later up",
            log::chain(&error)
        );
        self.left_out.push(index);
        write(self)
    }

    /// The guest's half: makes it look like `wanted`.
    ///
    /// # Errors
    /// [`Error`], with what the guest's kernel refused.
    pub fn configure(&mut self, wanted: Layout, agent: &Agent) -> Result<(), Error> {
        self.find_interfaces(&wanted, agent)?;
        let former = self.links.iter().filter_map(|link| Some((link.former?, link.guest_index?)));
        let indexes = self.links.iter().filter_map(|link| Some((link.index, link.guest_index?)));
        let indexes: BTreeMap<u32, u32> = former.chain(indexes).collect();
        let changes = net::changes(&self.layout, &wanted, &indexes);
        for batch in changes.chunks(BATCH) {
            let requests = batch.iter().map(|change| change.message.clone()).collect();
            let errors = agent.change_network(requests)?;
            for (change, errno) in batch.iter().zip(errors) {
                match errno {
                    0 => {}
                    _ if change.removes => {
                        tracing::debug!("the guest could not {}: errno {errno}", change.what)
                    }
                    _ => {
                        let source = std::io::Error::from_raw_os_error(errno);
                        return Err(Error::Refused { what: change.what.clone(), source });
                    }
                }
            }
        }
        self.layout = wanted;
        for link in &mut self.links {
            link.former = None;
        }
        Ok(())
    }

    /// Takes away what remains in the namespace when the VM is gone. TAP devices went with it.
    ///
    /// # Errors
    /// [`Error::Net`]
    pub fn remove(&self, namespace: &Namespace) -> Result<(), Error> {
        if self.links.is_empty() {
            return Ok(());
        }
        Ok(namespace.within(|| self.links.iter().try_for_each(Link::untie))?)
    }

    /// What has gone through its interfaces; nothing where there are none.
    ///
    /// # Errors
    /// [`Error::Net`]
    pub fn traffic(&self) -> Result<Traffic, Error> {
        let names: Vec<&str> = self.links.iter().map(|link| link.name.as_str()).collect();
        if names.is_empty() {
            return Ok(Traffic::default());
        }
        Ok(Namespace::open(&self.held)?.within(|| net::traffic(&names))?)
    }

    fn plug(
        &mut self,
        namespace: &Namespace,
        interface: &Interface,
        vm: &VmRecord,
        write: Write<'_>,
    ) -> Result<(), Error> {
        // One that was here before, or whose plugging did not come to its end.
        let before = self.links.iter().position(|link| link.index == interface.index);
        if let Some(link) = before.map(|place| &self.links[place]) {
            namespace.within(|| link.untie())?;
        }
        namespace.within(|| net::check(interface))?;
        if let Some(place) = before
            .filter(|place| self.links[*place].is_free())
            .or_else(|| self.links.iter().position(Link::is_free))
        {
            return self.plug_again(namespace, interface, place, write);
        }
        self.links.retain(|link| link.device.is_some() || link.index != interface.index);
        let is_taken = |slot: &usize| self.links.iter().any(|link| link.slot == *slot);
        let slot = (0..NETWORK_SLOTS).find(|slot| !is_taken(slot));
        let slot = slot.ok_or_else(|| Error::Full(interface.name.clone()))?;
        let macvtap = match self.model {
            NetworkModel::MacVtap => Some(Macvtap::new(interface)?),
            NetworkModel::TcFilter | NetworkModel::None => None,
        };
        let (index, name) = (interface.index, interface.name.clone());
        let link =
            Link { index, name, slot, macvtap, device: None, guest_index: None, tied: false, former: None };
        self.links.push(link.clone());
        write(self)?;
        match self.plug_into(namespace, interface, &link, vm) {
            Ok(device) => {
                if let Some(link) = self.links.last_mut() {
                    link.device = Some(device);
                    link.tied = true;
                }
                write(self)
            }
            Err(error) => {
                self.links.pop();
                // Whatever was tied: its queues are closed by now.
                if let Err(left) = namespace.within(|| link.untie()) {
                    tracing::warn!("{left}");
                }
                write(self)?;
                Err(error)
            }
        }
    }

    /// Gives an interface the device of one that is gone.
    fn plug_again(
        &mut self,
        namespace: &Namespace,
        interface: &Interface,
        place: usize,
        write: Write<'_>,
    ) -> Result<(), Error> {
        let free = self.links[place].clone();
        self.links[place] = Link {
            index: interface.index,
            name: interface.name.clone(),
            // What the guest's kernel is told of a device depends on the interface.
            guest_index: None,
            former: free.former.or(Some(free.index)),
            ..free.clone()
        };
        write(self)?;
        let result = namespace.within(|| net::tie_again(interface, free.index));
        match &result {
            Ok(()) => self.links[place].tied = true,
            Err(_) => self.links[place] = free,
        }
        write(self)?;
        Ok(result?)
    }

    fn plug_into(
        &self,
        namespace: &Namespace,
        interface: &Interface,
        link: &Link,
        vm: &VmRecord,
    ) -> Result<GuestDevice, Error> {
        let taps = namespace.within(|| match &link.macvtap {
            Some(macvtap) => macvtap.make(interface, self.queue_pairs),
            None => net::tie(interface, self.queue_pairs),
        })?;
        let vhost = if self.vhost { net::open_vhost(self.queue_pairs) } else { Vec::new() };
        let slot = link.slot;
        Ok(hypervisor::plug(vm, Nic { slot, mac: interface.mac, taps, vhost, offloads: self.offloads })?)
    }

    fn find_interfaces(&mut self, wanted: &Layout, agent: &Agent) -> Result<(), Error> {
        let speaks_ipv6 =
            |index: u32| wanted.interfaces.iter().any(|interface| interface.index == index && interface.ipv6);
        let mut unknown: Vec<&mut Link> = self
            .links
            .iter_mut()
            .filter(|link| link.device.is_some() && link.guest_index.is_none())
            .collect();
        let devices: Vec<NetworkDevice> = unknown
            .iter()
            .filter_map(|link| Some((link.device.as_ref()?, speaks_ipv6(link.index))))
            .map(|(device, ipv6)| NetworkDevice {
                address: device.address.clone(),
                ipv6,
                ..NetworkDevice::default()
            })
            .collect();
        if devices.is_empty() {
            return Ok(());
        }
        let indexes = agent.plug_network(devices)?;
        for (link, index) in unknown.iter_mut().zip(indexes) {
            link.guest_index = Some(index);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misfit_is_an_error_or_left_out_once() {
        let (mut network, mut written) = (Network::default(), Vec::new());
        let full = || Error::Full("eth8".into());
        let mut leave_out = |network: &mut Network, error, misfit| {
            network.leave_out(9, error, misfit, &mut |network| {
                written.push(network.left_out.clone());
                Ok(())
            })
        };
        leave_out(&mut network, full(), Misfit::Refuse).expect_err("refused");
        let record = Error::Record("no space left".into());
        leave_out(&mut network, record, Misfit::LeaveOut("pod")).expect_err("not of the interface");
        for _ in 0..2 {
            leave_out(&mut network, full(), Misfit::LeaveOut("pod")).expect("left out");
        }
        assert_eq!(written, [[9]]);
    }

    /// As rt wrote it before interfaces were left out, and before one's device became another's.
    #[test]
    fn an_older_record_is_understood() {
        let (index, name, device) = (7, "eth0".into(), None);
        let link = Link {
            index,
            name,
            slot: 0,
            macvtap: None,
            device,
            guest_index: Some(2),
            tied: true,
            former: None,
        };
        let network = Network { links: vec![link], ..Network::default() };
        let mut record = serde_json::to_value(&network).expect("a record");
        record.as_object_mut().expect("an object").remove("left_out");
        let link = record["links"][0].as_object_mut().expect("an object");
        for newer in ["macvtap", "tied", "former"] {
            link.remove(newer);
        }
        assert_eq!(serde_json::from_value::<Network>(record).expect("a record"), network);
    }
}
