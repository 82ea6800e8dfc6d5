//! Events to containerd, in order, from a thread of their own: no call waits for containerd to take one.
//!
//! So many wait and no more: a guest makes some of them.
//!
//! They go over containerd's ttRPC socket (`TTRPC_ADDRESS`), or through its binary where there is none. While containerd
//! is away an event is tried again for some seconds, then dropped: a containerd that comes back asks for the state anyway.

use std::io::Write;
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::{EventsClient, ttrpc};

use super::flags::Flags;
use super::process::timestamp;

const TRIES: u32 = 6;
/// Events that wait for a containerd that is away: hours of them, of a pod that behaves.
const WAITING: usize = 1024;
/// A connection is let go when nothing has been told for this long: ttRPC's client costs a wake-up each 10 ms.
const IDLE: Duration = Duration::from_secs(2);
const TIMEOUT_NS: i64 = 5_000_000_000;
/// The protobuf package of the events, by which containerd knows their types.
const PACKAGE: &str = "containerd.events";

struct Event {
    topic: &'static str,
    at: SystemTime,
    any: Any,
}

/// Where to tell events.
pub struct Publisher {
    // Gone once the shim has said its last word.
    sender: Mutex<Option<SyncSender<Event>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Publisher {
    /// # Errors
    /// No thread is to be had.
    pub fn start(flags: &Flags) -> std::io::Result<Self> {
        let (sender, events) = mpsc::sync_channel(WAITING);
        let mut link = Link {
            namespace: flags.namespace.clone(),
            address: flags.address.clone(),
            binary: flags.publish_binary.clone(),
            socket: std::env::var("TTRPC_ADDRESS").unwrap_or_default(),
            client: None,
        };
        let thread =
            std::thread::Builder::new().name("events".into()).spawn(move || link.forward_all(&events))?;
        Ok(Self { sender: Mutex::new(Some(sender)), thread: Mutex::new(Some(thread)) })
    }

    /// Tells an event after all that were told before.
    pub fn publish<M: Message>(&self, topic: &'static str, event: &M) {
        let value = event.write_to_bytes().expect("an event has no required fields");
        let any = Any { type_url: format!("{PACKAGE}.{}", M::NAME), value, ..Default::default() };
        let sender = self.sender.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(sender) = &*sender {
            // The thread ends with the sender only, so it is that too many wait.
            if sender.try_send(Event { topic, at: SystemTime::now(), any }).is_err() {
                tracing::debug!("containerd is not told of {topic}: too much waits to be told");
            }
        }
    }

    /// Waits until all events have been told, or dropped; later ones are nobody's.
    pub fn finish(&self) {
        drop(self.sender.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take());
        let thread = self.thread.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// containerd, as the shim knows it.
struct Link {
    namespace: String,
    address: String,
    binary: String,
    socket: String,
    client: Option<EventsClient>,
}

impl Link {
    fn forward_all(&mut self, events: &Receiver<Event>) {
        loop {
            match events.recv_timeout(IDLE) {
                Ok(event) => self.forward(&event),
                Err(RecvTimeoutError::Timeout) if self.client.is_none() => match events.recv() {
                    Ok(event) => self.forward(&event),
                    Err(_) => return,
                },
                Err(RecvTimeoutError::Timeout) => self.client = None,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn forward(&mut self, event: &Event) {
        for attempt in 1..=TRIES {
            let result = match self.socket.is_empty() {
                true => self.publish(event),
                false => self.send(event),
            };
            match result {
                Ok(()) => return,
                Err(error) if attempt == TRIES => {
                    tracing::warn!("containerd was not told of {}: {error}", event.topic);
                }
                Err(error) => {
                    tracing::debug!("{} is told again: {error}", event.topic);
                    self.client = None;
                    std::thread::sleep(Duration::from_secs(1));
                }
            }
        }
    }

    fn send(&mut self, event: &Event) -> Result<(), String> {
        if self.client.is_none() {
            let socket = self.socket.strip_prefix("unix://").unwrap_or(&self.socket);
            let stream = UnixStream::connect(socket).map_err(|error| format!("{socket}: {error}"))?;
            let client = ttrpc::Client::new(stream.into_raw_fd()).map_err(|error| error.to_string())?;
            self.client = Some(EventsClient::new(client));
        }
        let client = self.client.as_ref().expect("made above");
        let envelope = Envelope {
            timestamp: Some(timestamp(event.at)).into(),
            namespace: self.namespace.clone(),
            topic: event.topic.into(),
            event: Some(event.any.clone()).into(),
            ..Default::default()
        };
        let request = ForwardRequest { envelope: Some(envelope).into(), ..Default::default() };
        let context = ttrpc::context::with_timeout(TIMEOUT_NS);
        client.forward(context, &request).map(drop).map_err(|error| error.to_string())
    }

    fn publish(&self, event: &Event) -> Result<(), String> {
        let run = || -> std::io::Result<bool> {
            let mut publisher = Command::new(&self.binary)
                .args(["--address", &self.address, "publish", "--topic", event.topic])
                .args(["--namespace", &self.namespace])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            let text = event.any.write_to_bytes().expect("an Any has no required fields");
            let written = publisher.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(&text));
            let status = publisher.wait()?;
            written.map(|()| status.success())
        };
        match run() {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("{} publish failed", self.binary)),
            Err(error) => Err(format!("cannot run {} publish: {error}", self.binary)),
        }
    }
}
