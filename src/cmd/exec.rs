//! `rt exec`: runs another process in a running container.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context;
use oci_spec::runtime::{Capability, LinuxCapabilities, Process};
use serde_json::{Value, json};

use super::usage::is_kata;
use super::{Global, debug};
use crate::config::Config;
use crate::container::{
    self, Console, ExecRequest, FIRST_PRESERVED, MONITORS_PRESERVED, MonitorProcess, PreserveRange, Task,
};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Unix socket that receives the upper end of the process's terminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Unix socket that receives a pidfd of the monitor
    #[arg(long, value_name = "SOCKET")]
    pidfd_socket: Option<PathBuf>,
    /// Working directory in the container
    #[arg(long, value_name = "DIR")]
    cwd: Option<OsString>,
    /// Set an environment variable, NAME=VALUE; may be given again
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// UID or UID:GID
    #[arg(short, long, value_name = "UID[:GID]", value_parser = parse_user)]
    user: Option<(u32, Option<u32>)>,
    /// Another group; may be given again
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// File with the runtime-spec's process object
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Return once the process runs
    #[arg(short, long)]
    detach: bool,
    /// Write the monitor's PID to this file
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Accepted for runc's sake: the guest has no SELinux
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// Accepted for runc's sake: the guest has no AppArmor
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// Set no_new_privs
    #[arg(long)]
    no_new_privs: bool,
    /// Add a capability; may be given again
    #[arg(short, long, value_name = "CAPABILITY", value_parser = parse_capability)]
    cap: Vec<Capability>,
    /// Pass this many descriptors beyond the standard streams: pipes and connected stream sockets
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// Run it in this cgroup below the container's
    #[arg(long, value_name = "PATH", default_value = "")]
    cgroup: String,
    /// Also in a paused container
    #[arg(long)]
    ignore_paused: bool,
    /// The container's ID
    #[arg(value_name = "ID")]
    id: String,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Arguments {
    pub fn run(&self, global: &Global, config: &Config) -> anyhow::Result<u8> {
        if self.command.is_empty() && self.process.is_none() && is_kata(std::env::args_os().next().as_ref()) {
            return debug::Arguments { id: self.id.clone(), command: Vec::new() }.run(global, config);
        }
        let request = self.request(global)?;
        let terminal = request.process.terminal().unwrap_or(false);
        Console::check(terminal, self.detach, self.console_socket.as_deref())?;
        let tell =
            |monitor: &MonitorProcess| monitor.tell(self.pid_file.as_deref(), self.pidfd_socket.as_deref());
        if !self.detach {
            let monitor = MonitorProcess::own()?;
            return Ok(container::exec(&request, config, &mut || tell(&monitor))?);
        }
        let task = Task::Exec { request: Box::new(request), config: Box::new(config.clone()) };
        let monitor = container::start_monitor(task, global.log())?;
        tell(&monitor).inspect_err(|_| monitor.kill())?;
        Ok(0)
    }

    fn request(&self, global: &Global) -> anyhow::Result<ExecRequest> {
        let first = if self.detach { MONITORS_PRESERVED } else { FIRST_PRESERVED };
        let preserve = PreserveRange { first, count: self.preserve_fds };
        PreserveRange { first: FIRST_PRESERVED, ..preserve }.check()?;
        let store = global.store();
        let process = match &self.process {
            Some(path) => {
                let text = std::fs::read(path);
                let text = text.with_context(|| format!("cannot read {}", path.display()))?;
                parse_process(&text).with_context(|| format!("{} is not a process object", path.display()))?
            }
            None => self.change(store.read(&self.id)?.process)?,
        };
        Ok(ExecRequest {
            id: self.id.clone(),
            root: global.root(),
            process,
            program: None,
            console_socket: self.console_socket.as_deref().map(std::path::absolute).transpose()?,
            cgroup: self.cgroup.clone(),
            ignore_paused: self.ignore_paused,
            detached: self.detach,
            preserve,
        })
    }

    /// The container's own process object, changed by the flags, as runc does it.
    fn change(&self, mut process: Process) -> anyhow::Result<Process> {
        if self.command.is_empty() {
            anyhow::bail!("exec needs a command, or a process object by --process");
        }
        process.set_args(Some(self.command.clone()));
        process.set_terminal(Some(self.tty));
        process.set_console_size(None);
        if let Some(cwd) = self.cwd.as_ref().filter(|cwd| !cwd.is_empty()) {
            process.set_cwd(cwd.into());
        }
        process.env_mut().get_or_insert_default().extend(self.env.iter().cloned());
        if let Some((uid, gid)) = self.user {
            // The container's groups stay, as with runc.
            let gid = gid.unwrap_or(process.user().gid());
            process.user_mut().set_uid(uid).set_gid(gid);
        }
        if !self.additional_gids.is_empty() {
            let mut gids = process.user().additional_gids().clone().unwrap_or_default();
            gids.extend(&self.additional_gids);
            process.user_mut().set_additional_gids(Some(gids));
        }
        if self.no_new_privs {
            process.set_no_new_privileges(Some(true));
        }
        if !self.cap.is_empty() {
            let mut capabilities = process.capabilities().clone().unwrap_or_else(no_capabilities);
            let extend = |set: &Option<std::collections::HashSet<Capability>>| {
                Some(set.iter().flatten().copied().chain(self.cap.iter().copied()).collect())
            };
            let bounding = extend(capabilities.bounding());
            let effective = extend(capabilities.effective());
            let permitted = extend(capabilities.permitted());
            // As runc: without an inheritable set none of the flags' can be ambient.
            let ambient = capabilities.inheritable().as_ref().map(|_| extend(capabilities.ambient()));
            capabilities.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
            if let Some(ambient) = ambient {
                capabilities.set_ambient(ambient);
            }
            process.set_capabilities(Some(capabilities));
        }
        Ok(process)
    }
}

/// As runc, for which a missing user is root.
fn parse_process(text: &[u8]) -> serde_json::Result<Process> {
    let mut process: Value = serde_json::from_slice(text)?;
    if let Some(fields) = process.as_object_mut() {
        let user = fields.entry("user").or_insert_with(|| json!({}));
        if let Some(user) = user.as_object_mut() {
            user.entry("uid").or_insert(json!(0));
            user.entry("gid").or_insert(json!(0));
        }
    }
    serde_json::from_value(process)
}

fn no_capabilities() -> LinuxCapabilities {
    let mut none = LinuxCapabilities::default();
    none.set_bounding(None).set_effective(None).set_permitted(None).set_inheritable(None).set_ambient(None);
    none
}

fn parse_user(text: &str) -> Result<(u32, Option<u32>), String> {
    let number = |part: &str| part.parse().map_err(|_| format!("{part:?} is no number; give UID or UID:GID"));
    Ok(match text.split_once(':') {
        Some((uid, gid)) => (number(uid)?, Some(number(gid)?)),
        None => (number(text)?, None),
    })
}

fn parse_capability(text: &str) -> Result<Capability, String> {
    // As config.json has them: the parser of the type itself knows no prefix.
    serde_json::from_value(text.into())
        .map_err(|_| format!("unknown capability {text:?}; give a name as CAP_KILL"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_a_user_is_roots() {
        let process = parse_process(br#"{"args": ["true"], "cwd": "/"}"#).unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
        let process = parse_process(br#"{"args": ["true"], "cwd": "/", "user": {"uid": 7}}"#).unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (7, 0));
        assert!(parse_process(b"[]").is_err() && parse_process(br#"{"user": 1}"#).is_err());
    }

    #[test]
    fn users_are_numbers() {
        assert_eq!(parse_user("5"), Ok((5, None)));
        assert_eq!(parse_user("5:6"), Ok((5, Some(6))));
        assert!(parse_user("root").is_err() && parse_user("1:").is_err());
    }

    #[test]
    fn capabilities_have_their_kernels_names() {
        assert_eq!(parse_capability("CAP_NET_ADMIN"), Ok(Capability::NetAdmin));
        assert!(parse_capability("CAP_FLY").is_err() && parse_capability("").is_err());
    }
}
