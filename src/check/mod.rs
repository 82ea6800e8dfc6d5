//! What can this host do? `rt kata-check` and `rt kata-env`.
//!
//! Two kinds of sources, both replaceable by tests: files below a root directory ([`Host`]), and what only shows when it is
//! tried ([`Live`]). From them [`check`] makes a [`Report`], a list of findings; `print` writes it in the form that was asked for.
//!
//! The report begins with the checks of `kata-runtime kata-check` 1.0 in its words and order, since people and programs read
//! those. What it lacked comes after, and unless asked for is told only where something is wrong. Capable means
//! capable of hardware virtualisation: a host that is not may still run containers in software emulation, and the
//! report says so.

mod classic;
pub mod doctor;
pub mod environment;
mod further;
mod host;
mod live;
mod print;

use std::collections::BTreeMap;

use serde::Serialize;

pub use host::Host;
pub use live::{Backend, GuestFacts, Live, QemuFacts};
pub use print::{Colours, json, lines, table};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Info,
    Warning,
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    pub message: &'static str,
    #[serde(flatten)]
    pub fields: BTreeMap<&'static str, String>,
    /// Kata 1.0 told it, too.
    #[serde(skip)]
    pub classic: bool,
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether this host has what hardware virtualisation takes.
    pub capable: bool,
    pub findings: Vec<Finding>,
}

/// In whose name rt speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Voice {
    Rt,
    Kata,
}

impl Voice {
    /// The program's name, in each line that has no other.
    pub fn program(self) -> &'static str {
        match self {
            Self::Rt => "rt",
            Self::Kata => "kata-runtime",
        }
    }

    /// Both forms, for it is a part of fixed messages.
    fn pick(self, rt: &'static str, kata: &'static str) -> &'static str {
        match self {
            Self::Rt => rt,
            Self::Kata => kata,
        }
    }

    /// The last line of a check that failed.
    pub fn failure(self) -> &'static str {
        self.pick(
            "ERROR: System is not capable of running rt",
            "ERROR: System is not capable of running Kata Containers",
        )
    }
}

impl Finding {
    fn new(level: Level, message: &'static str, fields: &[(&'static str, &str)]) -> Self {
        let fields = fields.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self { level, message, fields, classic: false }
    }

    fn classic(self) -> Self {
        Self { classic: true, ..self }
    }
}

/// Looks at everything. `strict` takes warnings for errors.
pub fn check(host: &Host, live: &Live, voice: Voice, strict: bool) -> Report {
    let mut findings = classic::host(host);
    let is_bad = |findings: &[Finding]| {
        let limit = if strict { Level::Warning } else { Level::Error };
        findings.iter().any(|finding| finding.level >= limit)
    };
    if !is_bad(&findings) {
        let message =
            voice.pick("System is capable of running rt", "System is capable of running Kata Containers");
        findings.push(Finding::new(Level::Info, message, &[]).classic());
    }
    let theoretically = !is_bad(&findings);
    if host.is_root {
        let full = classic::full(&live.kvm);
        findings.extend(full);
        findings.extend(further::kvm(live));
        if theoretically && !is_bad(&findings) {
            let message = voice.pick(
                "System can currently create rt containers",
                "System can currently create Kata Containers",
            );
            findings.push(Finding::new(Level::Info, message, &[]).classic());
        }
    }
    findings.extend(further::host(host, live));
    findings.push(further::backend(live));
    for finding in &mut findings {
        finding.fields.entry("name").or_insert_with(|| voice.program().into());
        finding.fields.insert("source", "runtime".into());
    }
    Report { capable: !is_bad(&findings), findings }
}

#[cfg(test)]
mod tests;
