//! The host's client of the agent: one ttRPC connection for calls, and a raw stream for each standard stream.
//!
//! The agent is in the guest, so every reply is an enemy's: its size is bounded by what the call needs, numbers are
//! checked here, and text is made printable before it gets into a message or log.

mod client;
mod wire;

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use protobuf::Message;
pub use rt_proto::messages::{BlockDevice, LogRecord, NetworkDevice, PreservedDescriptor, ProcessInfo};
use rt_proto::messages::{
    ChangeNetworkRequest, ChangeNetworkResponse, ContainerRequest, ContainerStatsResponse,
    CreateContainerRequest, Empty, ExecProcessRequest, ForwardPortRequest, HelloRequest, HelloResponse,
    PlugBlockRequest, PlugBlockResponse, PlugNetworkRequest, PlugNetworkResponse, ProcessRequest,
    ReadLogRequest, ReleaseShareRequest, ResizeTerminalRequest, ServeNamesRequest, SetProcessorsRequest,
    SetProcessorsResponse, SignalProcessRequest, UpdateContainerRequest, WaitProcessResponse,
    WatchOomRequest, WatchOomResponse,
};
use rt_proto::{AGENT_PORT, Beacon, PROTOCOL_VERSION, STREAM_PORT};

use self::client::{Client, Failure, SHORT};
use crate::hypervisor;
use crate::sys::{random, text::printable};

/// What goes wrong between rt and its agent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the guest sent something else than the agent's greeting; is its initramfs rt's?")]
    Beacon,
    #[error("the guest connected, but the agent's greeting did not come in time")]
    NoBeacon,
    #[error(
        "the guest's agent speaks protocol {guest}, this rt speaks {PROTOCOL_VERSION}; \
         rebuild the initramfs with this rt (`make build`) or set hypervisor.initramfs to one that fits"
    )]
    Version { guest: u32 },
    #[error("lost the connection to the guest's agent in {call}: {reason}")]
    Transport { call: &'static str, reason: String },
    #[error("the guest's agent did not answer {call} within {timeout_ms} ms")]
    Timeout { call: &'static str, timeout_ms: u128 },
    /// The agent answered with an error of its own; the text is complete.
    #[error("{0}")]
    Refused(String),
    #[error("the guest's agent gave an impossible answer to {call}: {what}")]
    Impossible { call: &'static str, what: String },
    #[error("cannot open a stream to the guest")]
    Stream(#[source] std::io::Error),
    #[error(transparent)]
    Vm(#[from] crate::hypervisor::Error),
}

/// The files of a cgroup, a few KiB and a line for each device.
const MAX_STATS: usize = 512 << 10;
/// What an agent takes of its log at once is half of it.
const MAX_LOG: usize = 1 << 20;
/// ttRPC's own limit: commands are long.
const MAX_PROCESSES: usize = 4 << 20;
/// Of a list: as many processes as a kernel has by itself.
const MAX_ENTRIES: usize = 32_768;

/// A connection to the agent of one sandbox. Clones share it; calls may be made from several threads.
#[derive(Clone)]
pub struct Agent {
    client: Client,
    vsock: PathBuf,
    timeout: Duration,
}

/// The names of a process's streams, as [`Agent::open_stream`] was given them; 0 where there is none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StreamNames {
    pub stdin: u64,
    pub stdout: u64,
    pub stderr: u64,
    pub terminal: u64,
    /// What the process tells its service manager; only of a container's own.
    pub notify: u64,
    /// Its descriptors from 3 on.
    pub preserved: Vec<PreservedDescriptor>,
    /// What it runs, beside the agent; only of an executed process.
    pub program: u64,
    /// Its end kills the process, and with a container's own all of the container's.
    pub lifeline: u64,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// As the process gave it, or 128 + signal.
    pub code: u8,
    /// Processes of the container that the guest's kernel killed for want of memory.
    pub oom_kills: u64,
}

/// News of the guest's out-of-memory killer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OomWatch {
    /// Processes killed so far.
    pub kills: u64,
    /// The container has ended: no more will come.
    pub ended: bool,
}

/// What the agent said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    pub kernel_release: String,
    /// The guest's CLOCK_MONOTONIC at the agent's first instruction and when it was ready, in nanoseconds.
    pub init_ns: u64,
    pub ready_ns: u64,
}

/// Reads the greeting that the agent sends on the beacon connection. A VMM that leaves a template holds it back until that is written.
///
/// # Errors
/// [`Error::Beacon`], [`Error::NoBeacon`], [`Error::Version`]
pub fn read_beacon(connection: OwnedFd, deadline: Instant) -> Result<(), Error> {
    let mut stream = UnixStream::from(connection);
    let mut bytes = [0; Beacon::SIZE];
    let mut length = 0;
    // Byte by byte, if the guest likes, but by the deadline.
    while length < bytes.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        let _ = stream.set_read_timeout(Some(left.max(Duration::from_millis(1))));
        match stream.read(&mut bytes[length..]) {
            Ok(0) => return Err(Error::Beacon),
            Ok(count) => length += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {
                return Err(Error::NoBeacon);
            }
            Err(_) => return Err(Error::Beacon),
        }
    }
    let beacon = Beacon::from_bytes(&bytes).ok_or(Error::Beacon)?;
    if beacon.version == PROTOCOL_VERSION { Ok(()) } else { Err(Error::Version { guest: beacon.version }) }
}

/// For a stream to be accepted, at the least. The agent has answered by then, so it is only a matter of how much the guest has to do.
const STREAM_TIMEOUT: Duration = Duration::from_secs(120);

/// A stream that has been asked for.
pub struct OpeningStream(hypervisor::Connecting);

impl OpeningStream {
    /// # Errors
    /// [`Error::Vm`]
    pub fn finish(self) -> Result<UnixStream, Error> {
        Ok(UnixStream::from(self.0.finish()?))
    }
}

impl Agent {
    /// Connects to a guest whose beacon has been seen. `timeout` holds for that, and for each call but the waiting one.
    ///
    /// # Errors
    /// [`Error::Vm`]
    pub fn connect(vsock: &Path, timeout: Duration) -> Result<Self, Error> {
        let client = Client::new(hypervisor::connect(vsock, AGENT_PORT, timeout)?.into());
        Ok(Self { client, vsock: vsock.to_owned(), timeout })
    }

    /// Opens a stream beside the calls: `identifier` is what CreateContainer and others then name it by.
    ///
    /// # Errors
    /// [`Error::Vm`]
    pub fn open_stream(&self, identifier: u64) -> Result<UnixStream, Error> {
        self.begin_stream(identifier)?.finish()
    }

    /// Asks for a stream as [`Self::open_stream`] does, and does not wait for it.
    ///
    /// # Errors
    /// [`Error::Vm`]
    pub fn begin_stream(&self, identifier: u64) -> Result<OpeningStream, Error> {
        let timeout = self.timeout.max(STREAM_TIMEOUT);
        // The agent takes one after another in and waits for each to say its number.
        let number = identifier.to_le_bytes();
        Ok(OpeningStream(hypervisor::begin_connect(&self.vsock, STREAM_PORT, timeout, &number)?))
    }

    /// The first call: versions, clock, entropy and the share.
    ///
    /// # Errors
    /// [`Error`]
    pub fn hello(&self, share_tag: &str, hostname: &str) -> Result<Greeting, Error> {
        let mut entropy = vec![0; 64];
        random::fill(&mut entropy).map_err(Error::Stream)?;
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let request = HelloRequest {
            version: PROTOCOL_VERSION,
            realtime_ns: since_epoch.as_nanos() as i64,
            entropy,
            share_tag: share_tag.into(),
            hostname: hostname.into(),
            ..Default::default()
        };
        let reply: HelloResponse = self.call("Hello", &request)?;
        if reply.version != PROTOCOL_VERSION {
            return Err(Error::Version { guest: reply.version });
        }
        Ok(Greeting {
            kernel_release: printable(&reply.kernel_release, 64),
            init_ns: reply.init_ns,
            ready_ns: reply.ready_ns,
        })
    }

    /// Makes a container, whose process then waits for [`Agent::start_container`].
    ///
    /// # Errors
    /// [`Error`]
    /// `spec` is the guest's config.json; `size` is that of the terminal, rows and columns.
    pub fn create_container(
        &self,
        id: &str,
        spec: Vec<u8>,
        streams: StreamNames,
        size: Option<(u16, u16)>,
    ) -> Result<(), Error> {
        let (rows, columns) = size.unwrap_or_default();
        let request = CreateContainerRequest {
            container_id: id.into(),
            spec,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            terminal: streams.terminal,
            terminal_rows: rows.into(),
            terminal_columns: columns.into(),
            notify: streams.notify,
            preserved: streams.preserved,
            lifeline: streams.lifeline,
            ..Default::default()
        };
        self.tell("CreateContainer", &request)
    }

    /// The same connection, for calls that may take for ever: what the guest does for them is the container's.
    pub fn patient(&self) -> Self {
        Self { timeout: Duration::MAX, ..self.clone() }
    }

    /// Lets a container's process run; where it has hooks to run first, that takes as long as it takes.
    ///
    /// # Errors
    /// [`Error`]
    pub fn start_container(&self, id: &str) -> Result<(), Error> {
        let request = ContainerRequest { container_id: id.into(), ..Default::default() };
        self.tell("StartContainer", &request)
    }

    /// Runs another process in a container, or beside the agent when it brings its program along. `process` is the runtime-spec's object as JSON, `exec_id` the caller's choice,
    /// `cgroup` one below the container's, or empty.
    ///
    /// # Errors
    /// [`Error`]
    pub fn exec_process(
        &self,
        id: &str,
        exec_id: &str,
        process: Vec<u8>,
        streams: StreamNames,
        size: Option<(u16, u16)>,
        cgroup: &str,
    ) -> Result<(), Error> {
        let (rows, columns) = size.unwrap_or_default();
        let request = ExecProcessRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            process,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            terminal: streams.terminal,
            terminal_rows: rows.into(),
            terminal_columns: columns.into(),
            cgroup: cgroup.into(),
            preserved: streams.preserved,
            program: streams.program,
            lifeline: streams.lifeline,
            ..Default::default()
        };
        self.tell(if request.program != 0 { "DebugProcess" } else { "ExecProcess" }, &request)
    }

    /// Blocks until the process has ended, the container's own where `exec_id` is empty.
    ///
    /// # Errors
    /// [`Error`]
    pub fn wait_process(&self, id: &str, exec_id: &str) -> Result<Exit, Error> {
        let request =
            ProcessRequest { container_id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        let call = "WaitProcess";
        let reply: WaitProcessResponse = parse(call, &self.ask(call, &request, None, SHORT)?)?;
        let code = u8::try_from(reply.exit_code)
            .map_err(|_| Error::Impossible { call, what: format!("exit code {}", reply.exit_code) })?;
        Ok(Exit { code, oom_kills: reply.oom_kills })
    }

    /// Sends a signal to a process, or with `all` to each of the container's.
    ///
    /// # Errors
    /// [`Error`]
    pub fn signal_process(&self, id: &str, exec_id: &str, signal: i32, all: bool) -> Result<(), Error> {
        let request = SignalProcessRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            signal: signal as u32,
            all,
            ..Default::default()
        };
        self.tell("SignalProcess", &request)
    }

    /// # Errors
    /// [`Error`]
    pub fn resize_terminal(&self, id: &str, exec_id: &str, rows: u16, columns: u16) -> Result<(), Error> {
        let request = ResizeTerminalRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            rows: rows.into(),
            columns: columns.into(),
            ..Default::default()
        };
        self.tell("ResizeTerminal", &request)
    }

    /// Freezes the container's processes.
    ///
    /// # Errors
    /// [`Error`]
    pub fn pause_container(&self, id: &str) -> Result<(), Error> {
        let request = ContainerRequest { container_id: id.into(), ..Default::default() };
        self.tell("PauseContainer", &request)
    }

    /// # Errors
    /// [`Error`]
    pub fn resume_container(&self, id: &str) -> Result<(), Error> {
        let request = ContainerRequest { container_id: id.into(), ..Default::default() };
        self.tell("ResumeContainer", &request)
    }

    /// Changes limits; `resources` is the runtime-spec's object as JSON.
    ///
    /// # Errors
    /// [`Error`]
    pub fn update_container(&self, id: &str, resources: Vec<u8>) -> Result<(), Error> {
        let request = UpdateContainerRequest { container_id: id.into(), resources, ..Default::default() };
        self.tell("UpdateContainer", &request)
    }

    /// The container's processes; their text is printable.
    ///
    /// # Errors
    /// [`Error`]
    pub fn list_processes(&self, id: &str) -> Result<Vec<ProcessInfo>, Error> {
        let request = ContainerRequest { container_id: id.into(), ..Default::default() };
        let mut processes: Vec<ProcessInfo> = self.list("ListProcesses", &request, MAX_PROCESSES)?;
        for process in &mut processes {
            process.command = printable(&process.command, 4096);
            process.terminal = printable(&process.terminal, 32);
            process.name = printable(&process.name, 64);
            process.state = printable(&process.state, 16);
        }
        Ok(processes)
    }

    /// The files of the container's cgroup v2, by name, as the guest has them.
    ///
    /// # Errors
    /// [`Error`]
    pub fn container_stats(&self, id: &str) -> Result<HashMap<String, String>, Error> {
        let request = ContainerRequest { container_id: id.into(), ..Default::default() };
        let call = "ContainerStats";
        let reply = self.ask(call, &request, Some(self.timeout), MAX_STATS)?;
        Ok(parse::<ContainerStatsResponse>(call, &reply)?.cgroup)
    }

    /// Blocks until more than `seen` processes of the container were killed for want of memory, or it has ended.
    ///
    /// # Errors
    /// [`Error`]
    pub fn watch_oom(&self, id: &str, seen: u64) -> Result<OomWatch, Error> {
        let request = WatchOomRequest { container_id: id.into(), seen, ..Default::default() };
        let call = "WatchOom";
        let reply: WatchOomResponse = parse(call, &self.ask(call, &request, None, SHORT)?)?;
        Ok(OomWatch { kills: reply.oom_kills, ended: reply.ended })
    }

    /// Finds the interfaces of plugged devices: the number of each.
    ///
    /// # Errors
    /// [`Error`]
    pub fn plug_network(&self, devices: Vec<NetworkDevice>) -> Result<Vec<u32>, Error> {
        let wanted = devices.len();
        let request = PlugNetworkRequest { devices, ..Default::default() };
        let call = "PlugNetwork";
        let reply: PlugNetworkResponse = self.call(call, &request)?;
        if reply.indexes.len() == wanted && !reply.indexes.contains(&0) {
            return Ok(reply.indexes);
        }
        Err(Error::Impossible {
            call,
            what: format!("{} interfaces of {wanted} devices", reply.indexes.len()),
        })
    }

    /// Finds the disks of plugged block devices: the guest's device number of each.
    ///
    /// # Errors
    /// [`Error`]
    pub fn plug_block(&self, devices: Vec<BlockDevice>) -> Result<Vec<(i64, i64)>, Error> {
        let wanted = devices.len();
        let request = PlugBlockRequest { devices, ..Default::default() };
        let call = "PlugBlock";
        let reply: PlugBlockResponse = self.call(call, &request)?;
        let numbers = reply.numbers.iter().map(|number| (number.major.into(), number.minor.into()));
        let numbers: Vec<(i64, i64)> = numbers.collect();
        if numbers.len() == wanted {
            return Ok(numbers);
        }
        Err(Error::Impossible { call, what: format!("{} disks of {wanted} devices", numbers.len()) })
    }

    /// Hands rtnetlink requests to the guest's kernel: an errno, or 0, for each.
    ///
    /// # Errors
    /// [`Error`]
    pub fn change_network(&self, requests: Vec<Vec<u8>>) -> Result<Vec<i32>, Error> {
        let wanted = requests.len();
        let request = ChangeNetworkRequest { requests, ..Default::default() };
        let call = "ChangeNetwork";
        let reply: ChangeNetworkResponse = self.call(call, &request)?;
        let errors: Vec<i32> = reply.errors.iter().filter_map(|errno| i32::try_from(*errno).ok()).collect();
        if errors.len() == wanted {
            return Ok(errors);
        }
        Err(Error::Impossible { call, what: format!("{} answers to {wanted} requests", errors.len()) })
    }

    /// Has the guest use so many of its processors: how many it uses then.
    ///
    /// # Errors
    /// [`Error`]
    pub fn set_processors(&self, count: u8) -> Result<u8, Error> {
        let request = SetProcessorsRequest { count: count.into(), ..Default::default() };
        let call = "SetProcessors";
        let reply: SetProcessorsResponse = self.call(call, &request)?;
        u8::try_from(reply.count)
            .map_err(|_| Error::Impossible { call, what: format!("{} processors", reply.count) })
    }

    /// Has the guest listen where docker's resolver does; questions come on the stream of this number ([`Agent::open_stream`]).
    ///
    /// # Errors
    /// [`Error`]
    pub fn serve_names(&self, stream: u64) -> Result<(), Error> {
        let request = ServeNamesRequest { stream, ..Default::default() };
        self.tell("ServeNames", &request)
    }

    /// Connects to a port of the guest's loopback; the stream of this number ([`open_stream`]) carries its bytes.
    ///
    /// # Errors
    /// [`Error`]
    pub fn forward_port(&self, stream: u64, port: u16) -> Result<(), Error> {
        let request = ForwardPortRequest { stream, port: port.into(), ..Default::default() };
        self.tell("ForwardPort", &request)
    }

    /// Ends what is left of a container and forgets it.
    ///
    /// # Errors
    /// [`Error`]
    pub fn delete_container(&self, id: &str) -> Result<(), Error> {
        let request = ContainerRequest { container_id: id.into(), ..Default::default() };
        self.tell("DeleteContainer", &request)
    }

    /// Has the guest let go of what the share has at these names.
    ///
    /// # Errors
    /// [`Error`]
    pub fn release_share(&self, names: &[PathBuf]) -> Result<(), Error> {
        let names = names.iter().map(|name| name.to_string_lossy().into_owned()).collect();
        let request = ReleaseShareRequest { names, ..Default::default() };
        self.tell("ReleaseShare", &request)
    }

    /// Records of the guest's log, the kernel's and the agent's own, from this sequence number on; their text is printable.
    ///
    /// # Errors
    /// [`Error`]
    pub fn read_log(&self, from: u64) -> Result<Vec<LogRecord>, Error> {
        let request = ReadLogRequest { from, ..Default::default() };
        let mut records: Vec<LogRecord> = self.list("ReadLog", &request, MAX_LOG)?;
        for record in &mut records {
            record.text = printable(&record.text, 4096);
        }
        Ok(records)
    }

    /// Writes dirty data of the share back, so that the VM may be killed.
    ///
    /// # Errors
    /// [`Error`]
    pub fn shutdown(&self) -> Result<(), Error> {
        self.tell("Shutdown", &Empty::new())
    }

    /// A call whose answer says nothing.
    fn tell(&self, name: &'static str, request: &impl Message) -> Result<(), Error> {
        self.call::<Empty>(name, request).map(drop)
    }

    /// Ends the connection, and with it each call that waits.
    pub fn close(&self) {
        self.client.close();
    }

    fn call<T: Message>(&self, call: &'static str, request: &impl Message) -> Result<T, Error> {
        parse(call, &self.ask(call, request, Some(self.timeout), SHORT)?)
    }

    /// A call whose answer is a list and may have so many bytes.
    fn list<T: Message>(
        &self,
        call: &'static str,
        request: &impl Message,
        most: usize,
    ) -> Result<Vec<T>, Error> {
        let reply = self.ask(call, request, Some(self.timeout), most)?;
        wire::entries(&reply, MAX_ENTRIES).map_err(|what| Error::Impossible { call, what })
    }

    fn ask(
        &self,
        call: &'static str,
        request: &impl Message,
        timeout: Option<Duration>,
        most: usize,
    ) -> Result<Vec<u8>, Error> {
        self.client.call(call, request, timeout, most).map_err(|failure| match failure {
            Failure::Refused(text) => Error::Refused(printable(&text, 4096)),
            Failure::Late => Error::Timeout { call, timeout_ms: timeout.unwrap_or_default().as_millis() },
            Failure::Lost(reason) => Error::Transport { call, reason: printable(&reason, 512) },
        })
    }
}

fn parse<T: Message>(call: &'static str, reply: &[u8]) -> Result<T, Error> {
    T::parse_from_bytes(reply)
        .map_err(|error| Error::Transport { call, reason: format!("the answer is damaged: {error}") })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_greeting_is_waited_for_until_the_deadline() {
        let read = |bytes: &[u8], wait: Duration| {
            let (ours, mut theirs) = UnixStream::pair().expect("a pair");
            theirs.write_all(bytes).expect("written");
            let result = read_beacon(ours.into(), Instant::now() + wait);
            drop(theirs);
            result
        };
        let long = Duration::from_secs(60);
        let greeting = Beacon { version: PROTOCOL_VERSION }.to_bytes();
        assert!(read(&greeting, long).is_ok());
        assert!(matches!(read(&greeting[..9], Duration::from_millis(20)), Err(Error::NoBeacon)));
        assert!(matches!(read(&[0; Beacon::SIZE], long), Err(Error::Beacon)));
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let slow = std::thread::spawn(move || {
            while theirs.write_all(&[0]).is_ok() {
                std::thread::sleep(Duration::from_millis(30));
            }
        });
        let begin = Instant::now();
        // Each byte is in time, and all together are not.
        assert!(matches!(read_beacon(ours.into(), begin + Duration::from_millis(60)), Err(Error::NoBeacon)));
        slow.join().expect("no panic");
        let other = Beacon { version: PROTOCOL_VERSION + 1 }.to_bytes();
        assert!(matches!(read(&other, long), Err(Error::Version { .. })));
    }
}
