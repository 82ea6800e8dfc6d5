//! Which backend carries the VM on this host.
//!
//! In this order: rt's own VMM, where KVM runs a stock guest and has all that the VMM needs; QEMU with KVM, where KVM runs
//! a stock guest but lacks something that only rt's VMM needs; QEMU's software emulation, slower, and with a
//! warning that says why. A KVM that cannot run a stock guest (para-virtual KVM, see [`kvm::probe`]) is no better for QEMU than for rt, however
//! willing its device file looks: so QEMU gets KVM by the same probe only.

use super::qemu::{self, Accelerator, Qemu};
use super::{Error, Hypervisor, Kind, kvm};
use crate::config::{self, Config};

/// Why rt's own VMM cannot use this host's KVM.
#[derive(Debug, Clone, PartialEq, Eq)]
struct KvmTrouble {
    reason: String,
    /// A stock guest's code ran in the probe all the same.
    runs_stock_guests: bool,
}

/// What was chosen, before it is made.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Kvm,
    Qemu(Qemu),
}

/// The backend to use and, when that is a slow one, a line for the user that says so and why. A configured kind is forced;
/// QEMU then still gets KVM where KVM works.
///
/// # Errors
/// [`Error::Unusable`] when the wanted kind cannot be used on this host, or none can.
pub fn select(config: &Config) -> Result<(Box<dyn Hypervisor>, Option<String>), Error> {
    let find_qemu = || qemu::find(config.hypervisor.qemu.as_deref());
    // A guest that has run here says what the probe would.
    let kvm = if kvm::has_carried_guests() { Ok(()) } else { probe() };
    let (choice, warning) = choose(config.hypervisor.kind, kvm, find_qemu)?;
    let hypervisor: Box<dyn Hypervisor> = match choice {
        Choice::Kvm => Box::new(kvm::Kvm { snapshot: config.snapshot.clone() }),
        Choice::Qemu(qemu) => Box::new(qemu),
    };
    Ok((hypervisor, warning))
}

/// What [`select`] would use, for those who want to know: backend, accelerator, and the warning.
///
/// # Errors
/// As [`select`].
pub fn preview(
    wanted: Option<Kind>,
    config: &config::Hypervisor,
) -> Result<(Kind, &'static str, Option<String>), Error> {
    let (choice, warning) = choose(wanted, probe(), || qemu::find(config.qemu.as_deref()))?;
    let (kind, accelerator) = match choice {
        Choice::Kvm => (Kind::Kvm, "kvm"),
        Choice::Qemu(Qemu { accelerator: Accelerator::Kvm, .. }) => (Kind::Qemu, "kvm"),
        Choice::Qemu(Qemu { accelerator: Accelerator::Tcg, .. }) => (Kind::Qemu, "tcg"),
    };
    Ok((kind, accelerator, warning))
}

fn probe() -> Result<(), KvmTrouble> {
    kvm::probe().map_err(|error| KvmTrouble {
        reason: error.to_string(),
        runs_stock_guests: error.runs_stock_guests(),
    })
}

fn choose(
    wanted: Option<Kind>,
    kvm: Result<(), KvmTrouble>,
    find_qemu: impl FnOnce() -> Result<std::path::PathBuf, Error>,
) -> Result<(Choice, Option<String>), Error> {
    let trouble = match (wanted, kvm) {
        (None | Some(Kind::Kvm), Ok(())) => return Ok((Choice::Kvm, None)),
        (Some(Kind::Kvm), Err(trouble)) => {
            let reason = format!("{}; --hypervisor auto or qemu does without", trouble.reason);
            return Err(Error::Unusable { backend: "kvm", reason });
        }
        (Some(Kind::Qemu), Ok(())) => None,
        (None | Some(Kind::Qemu), Err(trouble)) => Some(trouble),
    };
    let binary = find_qemu().map_err(|error| match (wanted, error, &trouble) {
        (None, Error::Unusable { backend, reason }, Some(trouble)) => Error::Unusable {
            backend,
            reason: format!("{reason}; nor is there a usable KVM: {}", trouble.reason),
        },
        (_, error, _) => error,
    })?;
    let (accelerator, warning) = match trouble {
        None => (Accelerator::Kvm, None),
        Some(trouble) if trouble.runs_stock_guests => (Accelerator::Kvm, None),
        Some(trouble) => (
            Accelerator::Tcg,
            Some(format!(
                "software emulation (QEMU) carries the guest, which is slower than KVM: {}",
                trouble.reason
            )),
        ),
    };
    Ok((Choice::Qemu(Qemu { binary, accelerator }), warning))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn trouble(runs_stock_guests: bool) -> Result<(), KvmTrouble> {
        Err(KvmTrouble { reason: "REASON".into(), runs_stock_guests })
    }

    fn found() -> Result<PathBuf, Error> {
        Ok("/usr/bin/qemu".into())
    }

    fn missing() -> Result<PathBuf, Error> {
        Err(Error::Unusable { backend: "qemu", reason: "MISSING".into() })
    }

    fn qemu(accelerator: Accelerator) -> Choice {
        Choice::Qemu(Qemu { binary: "/usr/bin/qemu".into(), accelerator })
    }

    #[test]
    fn a_working_kvm_is_used_without_looking_for_qemu() {
        for wanted in [None, Some(Kind::Kvm)] {
            let chosen = choose(wanted, Ok(()), || unreachable!("QEMU is not needed")).unwrap();
            assert_eq!(chosen, (Choice::Kvm, None));
        }
    }

    #[test]
    fn qemu_gets_kvm_only_where_stock_guests_run() {
        let chosen = |wanted, kvm| choose(wanted, kvm, found).unwrap();
        assert_eq!(chosen(Some(Kind::Qemu), Ok(())), (qemu(Accelerator::Kvm), None));
        for wanted in [None, Some(Kind::Qemu)] {
            assert_eq!(chosen(wanted, trouble(true)), (qemu(Accelerator::Kvm), None));
            let (choice, warning) = chosen(wanted, trouble(false));
            assert_eq!(choice, qemu(Accelerator::Tcg));
            let warning = warning.expect("emulation is never silent");
            assert!(warning.contains("slower") && warning.contains("REASON"), "{warning}");
            assert!(!warning.contains('\n'));
        }
    }

    #[test]
    fn an_unusable_one_is_an_error_with_every_reason() {
        let error = |wanted, kvm| choose(wanted, kvm, missing).unwrap_err().to_string();
        assert_eq!(
            choose(Some(Kind::Kvm), trouble(true), found).unwrap_err().to_string(),
            "cannot use the kvm hypervisor: REASON; --hypervisor auto or qemu does without"
        );
        assert_eq!(error(Some(Kind::Qemu), Ok(())), "cannot use the qemu hypervisor: MISSING");
        assert_eq!(
            error(None, trouble(false)),
            "cannot use the qemu hypervisor: MISSING; nor is there a usable KVM: REASON"
        );
    }
}
