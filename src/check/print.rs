//! A report in the form of logrus, as a table, as JSON.

use std::fmt::Write as _;
use std::time::SystemTime;

use super::{Finding, Level, Report, Voice};

/// The lines of the log: on a terminal logrus' short form, elsewhere its long one. `all` includes what Kata 1.0 did not look at and
/// is fine.
pub fn lines(report: &Report, terminal: Option<Colours>, all: bool) -> String {
    let pid = std::process::id().to_string();
    let told = report.findings.iter().filter(|finding| all || finding.classic || finding.level > Level::Info);
    told.fold(String::new(), |text, finding| text + &line(finding, terminal, &pid) + "\n")
}

/// Whether a terminal is to show colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colours {
    No,
    Yes,
}

fn line(finding: &Finding, terminal: Option<Colours>, pid: &str) -> String {
    let mut fields = finding.fields.clone();
    fields.insert("pid", pid.into());
    match terminal {
        Some(colours) => {
            let (name, colour) = match finding.level {
                Level::Info => ("INFO", 36),
                Level::Warning => ("WARN", 33),
                Level::Error => ("ERRO", 31),
            };
            let paint = |text: &str| match colours {
                Colours::Yes => format!("\x1b[{colour}m{text}\x1b[0m"),
                Colours::No => text.to_owned(),
            };
            let mut line = format!("{}[0000] {:<44} ", paint(name), finding.message);
            for (name, value) in &fields {
                let _ = write!(line, " {}={}", paint(name), quoted(value));
            }
            line
        }
        None => {
            let time = humantime::format_rfc3339_seconds(SystemTime::now());
            let level = match finding.level {
                Level::Info => "info",
                Level::Warning => "warning",
                Level::Error => "error",
            };
            let mut line = format!("time=\"{time}\" level={level} msg={}", quoted(finding.message));
            for (name, value) in &fields {
                let _ = write!(line, " {name}={}", quoted(value));
            }
            line
        }
    }
}

/// As logrus quotes values.
fn quoted(value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if value.chars().all(is_plain) { value.into() } else { format!("{value:?}") }
}

/// For people: how bad, what, and the rest.
pub fn table(report: &Report, voice: Voice) -> String {
    let mut text = format!("{:<8} {:<45} DETAIL\n", "STATUS", "CHECK");
    for finding in &report.findings {
        let status = match finding.level {
            Level::Info => "ok",
            Level::Warning => "warning",
            Level::Error => "error",
        };
        let hidden = ["source", "type", "check-type"];
        let detail: Vec<String> = finding
            .fields
            .iter()
            .filter(|(name, value)| !hidden.contains(name) && value.as_str() != voice.program())
            .map(|(name, value)| match *name {
                "name" | "feature" | "device" => value.clone(),
                "description" | "reason" => format!("({value})"),
                _ => format!("{name}={value}"),
            })
            .collect();
        let line = format!("{status:<8} {:<45} {}", finding.message, detail.join(" "));
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// For machines.
pub fn json(report: &Report) -> String {
    serde_json::to_string_pretty(report).expect("a report has only string keys") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding() -> Finding {
        let fields = [("name", "kvm"), ("description", "a \"b\" c"), ("empty", "")];
        Finding::new(Level::Warning, "found", &fields)
    }

    #[test]
    fn on_a_terminal_the_message_is_padded_and_keys_are_sorted() {
        assert_eq!(
            line(&finding(), Some(Colours::No), "7"),
            format!(
                "WARN[0000] found{}  description=\"a \\\"b\\\" c\" empty= name=kvm pid=7",
                " ".repeat(39)
            )
        );
        assert!(line(&finding(), Some(Colours::Yes), "7").starts_with("\x1b[33mWARN\x1b[0m[0000] found "));
        assert!(line(&finding(), Some(Colours::Yes), "7").ends_with(" \x1b[33mpid\x1b[0m=7"));
    }

    #[test]
    fn elsewhere_time_level_and_message_come_first() {
        let line = line(&finding(), None, "7");
        assert!(
            line.starts_with("time=\"20") && line.contains("Z\" level=warning msg=found description="),
            "{line}"
        );
    }
}
