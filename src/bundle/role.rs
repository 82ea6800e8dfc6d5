//! Which virtual machine a container belongs into, as the annotations of its caller say. Pure.
//!
//! | caller | what a container is | its sandbox |
//! |---|---|---|
//! | containerd's CRI | `io.kubernetes.cri.container-type` | `io.kubernetes.cri.sandbox-id` |
//! | CRI-O, podman | `io.kubernetes.cri-o.ContainerType` | `io.kubernetes.cri-o.SandboxID` |
//! | dockershim | `io.kubernetes.docker.type` | `io.kubernetes.sandbox.id` |
//!
//! The values are `sandbox` (dockershim: `podsandbox`) and `container`. podman calls no container a sandbox: the first of a
//! pod has no annotation and so a machine of its own, which the others then name.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use crate::sys::text::printable;

/// A container's place among others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A machine of its own.
    Alone,
    /// A machine that others are going to join.
    Sandbox,
    /// In the machine of that container.
    Member(String),
}

/// Why annotations make no sense. Each names the annotation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("annotation {name} is {value:?}, but has to be {expected}")]
    Type { name: &'static str, value: String, expected: String },
    #[error("annotation {name} says that this is a container of a pod, but {missing} does not say of which")]
    NoSandbox { name: &'static str, missing: &'static str },
    #[error(
        "annotations {one} and {other} say different things of the container's pod: one of them is not the engine's"
    )]
    Contradiction { one: &'static str, other: &'static str },
}

struct Caller {
    kind: &'static str,
    sandbox: &'static str,
    /// What a sandbox is called.
    value: &'static str,
}

const CALLERS: [Caller; 3] = [
    Caller {
        kind: "io.kubernetes.cri.container-type",
        sandbox: "io.kubernetes.cri.sandbox-id",
        value: "sandbox",
    },
    Caller {
        kind: "io.kubernetes.cri-o.ContainerType",
        sandbox: "io.kubernetes.cri-o.SandboxID",
        value: "sandbox",
    },
    Caller { kind: "io.kubernetes.docker.type", sandbox: "io.kubernetes.sandbox.id", value: "podsandbox" },
];

impl Role {
    /// The role of a container with these annotations. Engines pass those of the pod's author on beside their own, who may name
    /// another's pod in another engine's words: so all that are there have to agree.
    ///
    /// # Errors
    /// [`Error`]
    pub fn of(annotations: &HashMap<String, String>) -> Result<Self, Error> {
        let mut said: Option<(&Caller, Self)> = None;
        for caller in &CALLERS {
            let Some(role) = caller.says(annotations)? else { continue };
            match &said {
                Some((first, other)) if *other != role => {
                    return Err(Error::Contradiction { one: first.kind, other: caller.kind });
                }
                _ => said = Some((caller, role)),
            }
        }
        Ok(said.map_or(Self::Alone, |(_, role)| role))
    }
}

impl Caller {
    fn says(&self, annotations: &HashMap<String, String>) -> Result<Option<Role>, Error> {
        let Some(value) = annotations.get(self.kind) else { return Ok(None) };
        match value.as_str() {
            value if value == self.value => Ok(Some(Role::Sandbox)),
            "container" => match annotations.get(self.sandbox).filter(|id| !id.is_empty()) {
                Some(id) => Ok(Some(Role::Member(id.clone()))),
                None => Err(Error::NoSandbox { name: self.kind, missing: self.sandbox }),
            },
            other => Err(Error::Type {
                name: self.kind,
                value: printable(other, 64),
                expected: format!("{:?} or \"container\"", self.value),
            }),
        }
    }
}

/// What all containers of a sandbox may use together, where its annotations tell it in advance: containerd's CRI passes on
/// what the kubelet has added up. A value that is not a number, or no limit, counts as none.
pub fn sandbox_resources(annotations: &HashMap<String, String>) -> Option<LinuxResources> {
    let number = |name: &str| {
        let value = annotations.get(&format!("io.kubernetes.cri.sandbox-{name}"))?;
        value.parse::<i64>().ok().filter(|value| *value > 0)
    };
    let (quota, memory) = (number("cpu-quota"), number("memory"));
    if quota.is_none() && memory.is_none() {
        return None;
    }
    let mut cpu = LinuxCpu::default();
    cpu.set_quota(quota).set_period(number("cpu-period").map(i64::unsigned_abs));
    let mut limit = LinuxMemory::default();
    limit.set_limit(memory);
    let mut resources = LinuxResources::default();
    resources.set_cpu(Some(cpu)).set_memory(Some(limit));
    Some(resources)
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Spec;

    use super::*;

    const POD: &str = "11f44eee1621da6ba314d1ef5d310e83197169e66fbc77bcc0a04cfa6677c9d2";
    const CRIO_POD: &str = "cf705171b6754883e206beb95d9111a06385b6b3a3419db59b80406a91943a9f";

    fn annotations(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn recorded_bundles_have_their_roles() {
        let member = |id: &str| Role::Member(id.into());
        macro_rules! role {
            ($file:literal) => {{
                let text = include_str!(concat!("../../tests/integration/fixtures/", $file));
                let spec: Spec = serde_json::from_str(text).unwrap();
                Role::of(&spec.annotations().clone().unwrap_or_default()).unwrap()
            }};
        }
        assert_eq!(role!("containerd-1.6-cri-sandbox.json"), Role::Sandbox);
        assert_eq!(role!("containerd-1.6-cri-container.json"), member(POD));
        assert_eq!(role!("crio-1.13-sandbox.json"), Role::Sandbox);
        assert_eq!(role!("crio-1.13-container.json"), member(CRIO_POD));
        assert_eq!(role!("ctr-1.6.json"), Role::Alone);
        assert_eq!(role!("docker-20.10.json"), Role::Alone);
        assert_eq!(role!("podman-4.3.json"), Role::Alone);
    }

    #[test]
    fn each_caller_is_understood() {
        for (pairs, role) in [
            (&[][..], Role::Alone),
            (&[("io.kubernetes.cri.sandbox-id", "p")], Role::Alone),
            (&[("io.kubernetes.docker.type", "podsandbox")], Role::Sandbox),
            (
                &[("io.kubernetes.docker.type", "container"), ("io.kubernetes.sandbox.id", "p")],
                Role::Member("p".into()),
            ),
            (
                &[
                    ("io.kubernetes.cri-o.ContainerType", "container"),
                    ("io.kubernetes.cri-o.SandboxID", "infra"),
                ],
                Role::Member("infra".into()),
            ),
        ] {
            assert_eq!(Role::of(&annotations(pairs)), Ok(role), "{pairs:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (pairs, words) in [
            (
                &[("io.kubernetes.cri.container-type", "container")][..],
                "io.kubernetes.cri.sandbox-id does not say of which",
            ),
            (
                &[("io.kubernetes.cri-o.ContainerType", "container"), ("io.kubernetes.cri-o.SandboxID", "")],
                "io.kubernetes.cri-o.SandboxID does not say",
            ),
            (
                &[("io.kubernetes.cri.container-type", "pod")],
                "container-type is \"pod\", but has to be \"sandbox\" or \"container\"",
            ),
            (&[("io.kubernetes.docker.type", "sandbox")], "has to be \"podsandbox\" or \"container\""),
            (
                &[
                    ("io.kubernetes.cri-o.ContainerType", "sandbox"),
                    ("io.kubernetes.cri.container-type", "container"),
                    ("io.kubernetes.cri.sandbox-id", "another's"),
                ],
                "cri.container-type and io.kubernetes.cri-o.ContainerType say different things",
            ),
        ] {
            let error = Role::of(&annotations(pairs)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_sandboxs_size_is_what_the_kubelet_added_up() {
        let of = |pairs: &[(&str, &str)]| sandbox_resources(&annotations(pairs));
        let name = |name: &str| format!("io.kubernetes.cri.sandbox-{name}");
        let (quota, period, memory) = (name("cpu-quota"), name("cpu-period"), name("memory"));
        let all = of(&[(&quota, "250000"), (&period, "100000"), (&memory, "1073741824")]).unwrap();
        let cpu = all.cpu().as_ref().unwrap();
        assert_eq!((cpu.quota(), cpu.period()), (Some(250_000), Some(100_000)));
        assert_eq!(all.memory().as_ref().unwrap().limit(), Some(1 << 30));
        for none in [&[][..], &[(&*quota, "0"), (&*memory, "0")], &[(&*quota, "-1")], &[(&*memory, "much")]] {
            assert_eq!(of(none), None, "{none:?}");
        }
    }
}
