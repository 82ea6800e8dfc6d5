//! `rt create`: makes a container whose process waits for `rt start`. Also the flags that `rt run` shares.

use std::path::PathBuf;

use super::Global;
use crate::bundle::Bundle;
use crate::config::Config;
use crate::container::{
    self, Console, FIRST_PRESERVED, MONITORS_PRESERVED, MonitorProcess, PreserveRange, Request, Task,
};

// Flags of `create` and `run`. No documentation: clap would take it for the verb's.
#[derive(Debug, clap::Args)]
pub struct Creation {
    /// The bundle's directory
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Unix socket that receives the upper end of the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Unix socket that receives a pidfd of the monitor
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Write the monitor's PID to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Accepted for runc's sake: inside its own VM a container may always pivot
    #[arg(long)]
    pub no_pivot: bool,
    /// Accepted for runc's sake: the host's keyring never reaches the guest
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Pass this many descriptors beyond the standard streams: pipes and connected stream sockets
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
}

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    creation: Creation,
    /// The container's ID
    #[arg(value_name = "ID")]
    id: String,
}

impl Creation {
    /// The request of `create`; `run` changes what is its own.
    ///
    /// # Errors
    /// A flag asks for what a virtual machine cannot give.
    pub fn request(&self, global: &Global, id: &str) -> anyhow::Result<Request> {
        let listen_fds = listen_fds(|name| std::env::var(name).ok(), std::process::id());
        let count = self.preserve_fds.saturating_add(listen_fds);
        let preserve = PreserveRange { first: FIRST_PRESERVED, count };
        preserve.check()?;
        let notify_socket = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty());
        Ok(Request {
            id: id.into(),
            bundle: std::path::absolute(&self.bundle)?,
            root: global.root(),
            systemd_cgroup: global.systemd_cgroup,
            rootless: global.rootless(),
            console_socket: self.console_socket.as_deref().map(std::path::absolute).transpose()?,
            notify_socket: notify_socket.map(PathBuf::from),
            preserve,
            listen_fds,
            start: false,
            keep: true,
            trace: None,
            shared_monitor: false,
        })
    }

    /// Starts the container's monitor in a process of its own and tells its PID to whom asked for it.
    ///
    /// # Errors
    /// The container did not come up, or its PID cannot be told; nothing of it is left then.
    pub fn detach(&self, global: &Global, config: &Config, mut request: Request) -> anyhow::Result<()> {
        self.check_terminal(&request, true)?;
        request.preserve.first = MONITORS_PRESERVED;
        let id = request.id.clone();
        let monitor = container::start_monitor(
            Task::Container { request: Box::new(request), config: Box::new(config.clone()) },
            global.log(),
        )?;
        if let Err(error) = self.tell(&monitor) {
            container::delete(&global.store(), config, &id, true)?;
            return Err(error.into());
        }
        Ok(())
    }

    /// Tells the monitor's PID to whom asked for it.
    ///
    /// # Errors
    /// The file cannot be written, or nobody listens on the socket.
    pub fn tell(&self, monitor: &MonitorProcess) -> Result<(), container::Error> {
        monitor.tell(self.pid_file.as_deref(), self.pidfd_socket.as_deref())
    }

    /// Refuses a terminal that nobody would hold.
    ///
    /// # Errors
    /// See [`Console::check`]; a bundle that cannot be read.
    pub fn check_terminal(&self, request: &Request, detached: bool) -> anyhow::Result<()> {
        let terminal = Bundle::load(&request.bundle)?.terminal();
        Ok(Console::check(terminal, detached, request.console_socket.as_deref())?)
    }
}

/// How many descriptors systemd passed to this process, sd_listen_fds(3).
fn listen_fds(variable: impl Fn(&str) -> Option<String>, pid: u32) -> u32 {
    let is_ours = variable("LISTEN_PID").is_none_or(|listener| listener == pid.to_string());
    let count = variable("LISTEN_FDS").filter(|_| is_ours).and_then(|count| count.parse().ok());
    count.unwrap_or(0)
}

impl Arguments {
    pub fn run(&self, global: &Global, config: &Config) -> anyhow::Result<u8> {
        let request = self.creation.request(global, &self.id)?;
        self.creation.detach(global, config, request)?;
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_another_process_are_not_ours() {
        let count = |fds: &str, pid: Option<&str>| {
            let variable = |name: &str| match name {
                "LISTEN_FDS" => Some(fds.to_owned()),
                _ => pid.map(str::to_owned),
            };
            listen_fds(variable, 7)
        };
        assert_eq!(count("2", Some("7")), 2);
        assert_eq!(count("2", None), 2);
        assert_eq!(count("2", Some("8")), 0);
        assert_eq!(count("0", None), 0);
        assert_eq!(count("many", None), 0);
        assert_eq!(listen_fds(|_| None, 7), 0);
    }
}
