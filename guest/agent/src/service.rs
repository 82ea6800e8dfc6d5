//! The agent's calls (guest/proto/agent.proto). The caller is the host, which is trusted; its mistakes are errors all
//! the same, never panics.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use rt_proto::messages as wire;
use rt_proto::service::Agent;
use ttrpc::error::get_rpc_status;
use ttrpc::{Code, TtrpcContext};

use crate::containers::Container;
use crate::exec::NOT_RUNNING;
use crate::process::Process;
use crate::runner::STATE_DIR;
use crate::server::{self, Names, Shared};
use crate::{
    block, freezer, kmsg, network, oom, ports, processes, processors, resolver, resources, share, stats, sys,
};

/// Longest container ID: it names directories.
const MAX_ID: usize = 255;

/// The calls of the server that it shares.
pub struct Service(pub Arc<Shared>);

impl Agent for Service {
    fn hello(&self, _: &TtrpcContext, request: wire::HelloRequest) -> ttrpc::Result<wire::HelloResponse> {
        if request.version != rt_proto::PROTOCOL_VERSION {
            return Err(get_rpc_status(Code::FAILED_PRECONDITION, version_mismatch(request.version)));
        }
        // The clock and the name are the better for being there, not needed.
        if request.realtime_ns > 0
            && let Err(error) = sys::set_realtime(request.realtime_ns)
        {
            kmsg::warning!("cannot set the clock: {error}");
        }
        if !request.entropy.is_empty() {
            sys::add_entropy(&request.entropy[..request.entropy.len().min(512)])
                .map_err(|error| internal(format!("cannot seed the random generator: {error}")))?;
        }
        if !request.hostname.is_empty()
            && let Err(error) = nix::unistd::sethostname(&request.hostname)
        {
            kmsg::warning!("cannot set the hostname: {error}");
        }
        let mut greeted = server::lock(&self.0.greeting);
        if !*greeted && !request.share_tag.is_empty() {
            share::mount(&request.share_tag)
                .map_err(|message| get_rpc_status(Code::FAILED_PRECONDITION, message))?;
        }
        *greeted = true;
        drop(greeted);
        let mut response = wire::HelloResponse::new();
        response.version = rt_proto::PROTOCOL_VERSION;
        response.agent_version = env!("CARGO_PKG_VERSION").to_owned();
        response.kernel_release = kernel_release();
        response.init_ns = self.0.started_ns;
        response.ready_ns = self.0.ready_ns;
        Ok(response)
    }

    fn create_container(
        &self,
        _: &TtrpcContext,
        request: wire::CreateContainerRequest,
    ) -> ttrpc::Result<wire::CreateContainerResponse> {
        self.0.greeted()?;
        check_id(&request.container_id).map_err(|message| get_rpc_status(Code::INVALID_ARGUMENT, message))?;
        let container = self.0.add(&request.container_id)?;
        let standard = [request.stdin, request.stdout, request.stderr];
        let preserved = request.preserved;
        let names = Names { terminal: request.terminal, standard, preserved };
        let size = (request.terminal_rows, request.terminal_columns);
        // The lifeline first, so that none is left over when the rest fails.
        let made = self.0.stream(request.lifeline).and_then(|lifeline| {
            let pid = self.0.make(&container, &request.spec, &names, size, request.notify)?;
            let tied = container.clone();
            Shared::tie(lifeline, move || tied.abandoned())?;
            Ok(pid)
        });
        match made {
            Ok(pid) => {
                let mut response = wire::CreateContainerResponse::new();
                response.pid = pid.unsigned_abs();
                Ok(response)
            }
            Err(message) => {
                container.process.created(Err(message.clone()));
                if let Err(left) = self.0.remove(&container) {
                    kmsg::warning!("after a failed creation: {left}");
                }
                Err(get_rpc_status(Code::INVALID_ARGUMENT, message))
            }
        }
    }

    fn start_container(
        &self,
        _: &TtrpcContext,
        request: wire::ContainerRequest,
    ) -> ttrpc::Result<wire::Empty> {
        let container = self.0.container(&request.container_id)?;
        let refused = |why: &dyn std::fmt::Display| {
            let message = format!("cannot start container {}: {why}", container.id);
            get_rpc_status(Code::FAILED_PRECONDITION, message)
        };
        container.process.claim_start().map_err(|why| refused(&why))?;
        release(&container.id).map_err(|error| refused(&error))?;
        if let Some(started) = server::lock(&container.started).take() {
            started.wait().map_err(|why| refused(&why))?;
        }
        Ok(wire::Empty::new())
    }

    fn wait_process(
        &self,
        _: &TtrpcContext,
        request: wire::ProcessRequest,
    ) -> ttrpc::Result<wire::WaitProcessResponse> {
        let (container, process) = self.0.process(&request.container_id, &request.exec_id)?;
        let mut response = wire::WaitProcessResponse::new();
        response.exit_code = process.ended();
        response.oom_kills = oom::kills(&container.id);
        container.forget(&request.exec_id);
        Ok(response)
    }

    fn signal_process(
        &self,
        _: &TtrpcContext,
        request: wire::SignalProcessRequest,
    ) -> ttrpc::Result<wire::Empty> {
        let (container, process) = self.0.process(&request.container_id, &request.exec_id)?;
        // 0 asks whether the process is there; the last real-time signal is 64.
        let signal = i32::try_from(request.signal).ok().filter(|signal| (0..=64).contains(signal));
        let signal = signal.ok_or_else(|| {
            get_rpc_status(Code::INVALID_ARGUMENT, format!("{} is not a signal", request.signal))
        })?;
        let sent = if request.all {
            freezer::signal_all(&container, signal)
        } else {
            process.signal(signal).map_err(Into::into)
        };
        sent.map(|()| wire::Empty::new()).map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) if request.exec_id.is_empty() => get_rpc_status(Code::NOT_FOUND, NOT_RUNNING),
            Some(libc::ESRCH) => get_rpc_status(Code::NOT_FOUND, "os: process already finished"),
            _ => get_rpc_status(Code::INTERNAL, format!("cannot signal container {}: {error}", container.id)),
        })
    }

    fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: wire::ResizeTerminalRequest,
    ) -> ttrpc::Result<wire::Empty> {
        let (container, process) = self.0.process(&request.container_id, &request.exec_id)?;
        process.resize(request.rows, request.columns).map_err(|error| {
            let message =
                format!("cannot resize the terminal of container {}: {}", container.id, error.desc());
            get_rpc_status(Code::FAILED_PRECONDITION, message)
        })?;
        Ok(wire::Empty::new())
    }

    fn exec_process(
        &self,
        _: &TtrpcContext,
        request: wire::ExecProcessRequest,
    ) -> ttrpc::Result<wire::ExecProcessResponse> {
        self.execute(&request, Shared::exec)
    }

    fn debug_process(
        &self,
        _: &TtrpcContext,
        request: wire::ExecProcessRequest,
    ) -> ttrpc::Result<wire::ExecProcessResponse> {
        self.execute(&request, Shared::debug)
    }

    fn pause_container(
        &self,
        _: &TtrpcContext,
        request: wire::ContainerRequest,
    ) -> ttrpc::Result<wire::Empty> {
        let container = self.0.running(&request.container_id)?;
        freezer::pause(&container)
            .map_err(|error| internal(format!("cannot pause container {}: {error}", container.id)))?;
        Ok(wire::Empty::new())
    }

    fn resume_container(
        &self,
        _: &TtrpcContext,
        request: wire::ContainerRequest,
    ) -> ttrpc::Result<wire::Empty> {
        let container = self.0.running(&request.container_id)?;
        freezer::resume(&container)
            .map_err(|error| internal(format!("cannot resume container {}: {error}", container.id)))?;
        Ok(wire::Empty::new())
    }

    fn update_container(
        &self,
        _: &TtrpcContext,
        request: wire::UpdateContainerRequest,
    ) -> ttrpc::Result<wire::Empty> {
        let container = self.0.running(&request.container_id)?;
        resources::update(&container.id, &request.resources)
            .map_err(|message| get_rpc_status(Code::INVALID_ARGUMENT, message))?;
        Ok(wire::Empty::new())
    }

    fn list_processes(
        &self,
        _: &TtrpcContext,
        request: wire::ContainerRequest,
    ) -> ttrpc::Result<wire::ListProcessesResponse> {
        let container = self.0.running(&request.container_id)?;
        let mut response = wire::ListProcessesResponse::new();
        let common = container.common().map_err(internal)?;
        let in_namespace = common.namespaces & libc::CLONE_NEWPID != 0;
        response.processes = processes::list(&container.id, in_namespace)
            .map_err(|error| internal(format!("cannot list the processes of {}: {error}", container.id)))?;
        Ok(response)
    }

    fn container_stats(
        &self,
        _: &TtrpcContext,
        request: wire::ContainerRequest,
    ) -> ttrpc::Result<wire::ContainerStatsResponse> {
        let container = self.0.running(&request.container_id)?;
        let mut response = wire::ContainerStatsResponse::new();
        response.cgroup = stats::files(&container.id)
            .map_err(|error| internal(format!("cannot read the cgroup of {}: {error}", container.id)))?;
        Ok(response)
    }

    fn watch_oom(
        &self,
        _: &TtrpcContext,
        request: wire::WatchOomRequest,
    ) -> ttrpc::Result<wire::WatchOomResponse> {
        let container = self.0.container(&request.container_id)?;
        let (oom_kills, ended) = oom::watch(&container.id, &container.process, request.seen)
            .map_err(|error| internal(format!("cannot watch the memory of {}: {error}", container.id)))?;
        let mut response = wire::WatchOomResponse::new();
        response.oom_kills = oom_kills;
        response.ended = ended;
        Ok(response)
    }

    fn read_log(
        &self,
        _: &TtrpcContext,
        request: wire::ReadLogRequest,
    ) -> ttrpc::Result<wire::ReadLogResponse> {
        let records = kmsg::records(request.from);
        let records = records.map_err(|error| internal(format!("cannot read the guest's log: {error}")))?;
        let mut response = wire::ReadLogResponse::new();
        response.records = records;
        Ok(response)
    }

    fn delete_container(
        &self,
        _: &TtrpcContext,
        request: wire::ContainerRequest,
    ) -> ttrpc::Result<wire::Empty> {
        let container = self.0.container(&request.container_id)?;
        self.0.remove(&container).map_err(|message| get_rpc_status(Code::INTERNAL, message))?;
        Ok(wire::Empty::new())
    }

    fn plug_network(
        &self,
        _: &TtrpcContext,
        request: wire::PlugNetworkRequest,
    ) -> ttrpc::Result<wire::PlugNetworkResponse> {
        let mut response = wire::PlugNetworkResponse::new();
        for device in &request.devices {
            response.indexes.push(network::plug(device).map_err(internal)?);
        }
        Ok(response)
    }

    fn plug_block(
        &self,
        _: &TtrpcContext,
        request: wire::PlugBlockRequest,
    ) -> ttrpc::Result<wire::PlugBlockResponse> {
        let mut response = wire::PlugBlockResponse::new();
        for device in &request.devices {
            response.numbers.push(block::plug(device).map_err(internal)?);
        }
        Ok(response)
    }

    fn change_network(
        &self,
        _: &TtrpcContext,
        request: wire::ChangeNetworkRequest,
    ) -> ttrpc::Result<wire::ChangeNetworkResponse> {
        let mut response = wire::ChangeNetworkResponse::new();
        response.errors = network::change(&request.requests)
            .map_err(|error| internal(format!("cannot speak to the guest's kernel: {error}")))?;
        Ok(response)
    }

    fn set_processors(
        &self,
        _: &TtrpcContext,
        request: wire::SetProcessorsRequest,
    ) -> ttrpc::Result<wire::SetProcessorsResponse> {
        let mut response = wire::SetProcessorsResponse::new();
        response.count = processors::set(request.count).map_err(internal)?;
        Ok(response)
    }

    fn serve_names(&self, _: &TtrpcContext, request: wire::ServeNamesRequest) -> ttrpc::Result<wire::Empty> {
        let stream = self.0.streams.take(request.stream).map_err(|error| internal(error.to_string()))?;
        resolver::serve(stream)
            .map_err(|error| internal(format!("cannot listen where docker's resolver does: {error}")))?;
        Ok(wire::Empty::new())
    }

    fn forward_port(
        &self,
        _: &TtrpcContext,
        request: wire::ForwardPortRequest,
    ) -> ttrpc::Result<wire::Empty> {
        let stream = self.0.streams.take(request.stream).map_err(|error| internal(error.to_string()))?;
        let port = u16::try_from(request.port).map_err(|_| internal("no such port".to_owned()))?;
        ports::forward(port, stream)
            .map_err(|error| internal(format!("cannot connect to port {port} of the pod: {error}")))?;
        Ok(wire::Empty::new())
    }

    fn release_share(
        &self,
        _: &TtrpcContext,
        request: wire::ReleaseShareRequest,
    ) -> ttrpc::Result<wire::Empty> {
        self.0.greeted()?;
        share::release(request.names).map_err(|message| get_rpc_status(Code::INVALID_ARGUMENT, message))?;
        Ok(wire::Empty::new())
    }

    fn shutdown(&self, _: &TtrpcContext, _: wire::Empty) -> ttrpc::Result<wire::Empty> {
        for container in self.0.all() {
            if let Err(left) = self.0.remove(&container) {
                kmsg::warning!("at shutdown: {left}");
            }
        }
        share::unmount().map_err(|message| get_rpc_status(Code::INTERNAL, message))?;
        Ok(wire::Empty::new())
    }
}

impl Service {
    /// Makes room for a process and has it made.
    fn execute(
        &self,
        request: &wire::ExecProcessRequest,
        make: impl FnOnce(&Shared, &Container, &Arc<Process>, &wire::ExecProcessRequest) -> Result<i32, String>,
    ) -> ttrpc::Result<wire::ExecProcessResponse> {
        let container = self.0.container(&request.container_id)?;
        let process = self.0.add_exec(&container, &request.exec_id)?;
        let made = self.0.stream(request.lifeline).and_then(|lifeline| {
            let pid = make(&self.0, &container, &process, request)?;
            let tied = process.clone();
            // It may have ended; nothing else has its number then.
            Shared::tie(lifeline, move || {
                let _ = tied.signal(libc::SIGKILL);
            })?;
            Ok(pid)
        });
        match made {
            Ok(pid) => {
                let mut response = wire::ExecProcessResponse::new();
                response.pid = pid.unsigned_abs();
                Ok(response)
            }
            Err(message) => {
                // It may run, when a stream of it could not be had; then nobody else could end it.
                let _ = process.signal(libc::SIGKILL);
                container.forget(&request.exec_id);
                Err(get_rpc_status(Code::INVALID_ARGUMENT, message))
            }
        }
    }
}

fn internal(message: String) -> ttrpc::Error {
    get_rpc_status(Code::INTERNAL, message)
}

fn version_mismatch(host: u32) -> String {
    format!(
        "the host speaks version {host} of the agent's protocol, this agent (rt {}) version {}: use a guest image built \
         together with rt",
        env!("CARGO_PKG_VERSION"),
        rt_proto::PROTOCOL_VERSION
    )
}

/// An ID names directories and a cgroup.
fn check_id(id: &str) -> Result<(), String> {
    let is_name = !id.is_empty() && id.len() <= MAX_ID && id != "." && id != "..";
    if is_name && !id.bytes().any(|byte| byte == b'/' || byte == 0 || byte == b'\n') {
        return Ok(());
    }
    Err(format!("{id:?} is not a usable container ID"))
}

fn kernel_release() -> String {
    nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}

/// Lets a created container run: its first process waits for a connection to libcontainer's socket.
fn release(id: &str) -> std::io::Result<()> {
    // By the directory's descriptor, since a socket's path holds no more than 107 bytes.
    let directory = File::open(Path::new(STATE_DIR).join(id))?;
    let path =
        format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), libcontainer::notify_socket::NOTIFY_FILE);
    UnixStream::connect(path)?.write_all(b"start container")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_file_name() {
        for good in ["a", "a.b-c_d", "...", &"x".repeat(255)] {
            assert_eq!(check_id(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a\nb", "a\0b", &"x".repeat(256)] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mismatch_names_both_versions() {
        let text = version_mismatch(99);
        let own = format!("version {}", rt_proto::PROTOCOL_VERSION);
        assert!(text.contains("version 99") && text.contains(&own) && text.contains("use a guest image"));
    }
}
