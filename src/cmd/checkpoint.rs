//! `rt checkpoint` and `rt restore`: refused. Their flags parse, so that a caller gets the reason and not a usage error.

use std::path::PathBuf;

// Flags of runc that both have. No documentation: clap would take it for the verb's.
#[derive(Debug, clap::Args)]
struct Common {
    #[arg(long, value_name = "DIR")]
    image_path: Option<PathBuf>,
    #[arg(long, value_name = "DIR")]
    work_path: Option<PathBuf>,
    #[arg(long)]
    tcp_established: bool,
    #[arg(long)]
    ext_unix_sk: bool,
    #[arg(long)]
    shell_job: bool,
    #[arg(long)]
    lazy_pages: bool,
    #[arg(long)]
    file_locks: bool,
    #[arg(long, value_name = "MODE")]
    manage_cgroups_mode: Option<String>,
    #[arg(long, value_name = "NAMESPACE")]
    empty_ns: Vec<String>,
    #[arg(long)]
    auto_dedup: bool,
    /// The container's ID
    #[arg(value_name = "ID")]
    id: String,
}

#[derive(Debug, clap::Args)]
pub struct Checkpoint {
    #[command(flatten)]
    common: Common,
    #[arg(long, value_name = "DIR")]
    parent_path: Option<PathBuf>,
    #[arg(long)]
    leave_running: bool,
    #[arg(long)]
    tcp_skip_in_flight: bool,
    #[arg(long)]
    link_remap: bool,
    #[arg(long, value_name = "FD")]
    status_fd: Option<i32>,
    #[arg(long, value_name = "ADDRESS:PORT")]
    page_server: Option<String>,
    #[arg(long)]
    pre_dump: bool,
}

#[derive(Debug, clap::Args)]
pub struct Restore {
    #[command(flatten)]
    common: Common,
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    #[arg(short, long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    #[arg(short, long)]
    detach: bool,
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    #[arg(long)]
    no_subreaper: bool,
    #[arg(long)]
    no_pivot: bool,
    #[arg(long, value_name = "VALUE")]
    lsm_profile: Option<String>,
    #[arg(long, value_name = "VALUE")]
    lsm_mount_context: Option<String>,
}

impl Checkpoint {
    pub fn run(&self) -> anyhow::Result<u8> {
        refuse("checkpoint", &self.common)
    }
}

impl Restore {
    pub fn run(&self) -> anyhow::Result<u8> {
        refuse("restore", &self.common)
    }
}

fn refuse(verb: &str, common: &Common) -> anyhow::Result<u8> {
    anyhow::bail!(
        "cannot {verb} {}: CRIU sees no process of a container in a virtual machine; \
         use `rt pause` and `rt resume` to suspend it, or run it under runc",
        common.id
    )
}
