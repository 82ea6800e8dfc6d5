//! `rt checkpoint` and `rt restore`: refused. Their flags parse, so that a caller gets the reason and not a usage error.

/// Not supported: the state of a container in a virtual machine is that of its machine
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// runc's flags, and the container's ID
    #[arg(value_name = "ARGUMENT", trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

impl Arguments {
    pub fn run(&self, verb: &str) -> anyhow::Result<u8> {
        anyhow::bail!(
            "cannot {verb} {}: CRIU sees no process of a container in a virtual machine; \
             use `rt pause` and `rt resume` to suspend it, or run it under runc",
            self.rest.last().map_or("the container", String::as_str)
        )
    }
}
