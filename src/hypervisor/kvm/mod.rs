//! rt's own VMM on KVM. (Stand-in until the VMM is merged: what `select` and the dispatch need of it.)

use std::ffi::OsString;
use std::process::ExitCode;

use super::{Error, Hypervisor, Vm, VmFds, VmSpec};

/// The backend.
#[derive(Debug)]
pub struct Kvm;

/// Why this host's KVM cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("rt's own VMM is not built in yet")]
pub struct Unfit;

impl Unfit {
    /// Whether a stock guest's code ran in the probe all the same.
    pub fn runs_stock_guests(&self) -> bool {
        false
    }
}

/// Whether a stock guest runs.
pub fn probe() -> Result<(), Unfit> {
    Err(Unfit)
}

/// The hidden verb.
pub fn vmm_main(_args: &[OsString]) -> ExitCode {
    ExitCode::FAILURE
}

impl Hypervisor for Kvm {
    fn launch(&self, _spec: &VmSpec, _fds: VmFds) -> Result<Box<dyn Vm>, Error> {
        Err(Error::Unusable { backend: "kvm", reason: Unfit.to_string() })
    }
}
