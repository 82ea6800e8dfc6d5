//! The kernel command line, as far as it concerns the agent.

/// What the kernel command line asks of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// `rt.beacon=PORT`: the host port to announce readiness on.
    pub beacon_port: u32,
    /// `rt.log=debug`: everything goes to the kernel log, not only warnings.
    pub debug: bool,
    /// The machine ends by reset: it has no ACPI, or a reset is to be a triple fault.
    pub end_by_reset: bool,
}

impl Parameters {
    /// Reads /proc/cmdline's contents. Unknown parameters are the kernel's; of a repeated one the last counts. An unusable
    /// value is ignored: nobody can be told yet.
    pub fn parse(text: &str) -> Self {
        let mut parameters = Self { beacon_port: rt_proto::BEACON_PORT, debug: false, end_by_reset: false };
        for word in text.split_ascii_whitespace() {
            // What follows is for an init's arguments.
            if word == "--" {
                break;
            }
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            match name {
                "rt.beacon" => parameters.beacon_port = value.parse().unwrap_or(parameters.beacon_port),
                "rt.log" => parameters.debug = value == "debug",
                "acpi" => parameters.end_by_reset |= value == "off",
                "reboot" => parameters.end_by_reset |= value.starts_with('t'),
                _ => {}
            }
        }
        parameters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_without_parameters() {
        let parameters = Parameters::parse("console=ttyS0 quiet\n");
        assert_eq!(
            parameters,
            Parameters { beacon_port: rt_proto::BEACON_PORT, debug: false, end_by_reset: false }
        );
    }

    #[test]
    fn last_value_counts() {
        let parameters = Parameters::parse("rt.beacon=7 rt.beacon=70000 rt.log=debug reboot=a reboot=t");
        assert_eq!(parameters, Parameters { beacon_port: 70000, debug: true, end_by_reset: true });
    }

    #[test]
    fn a_machine_that_can_be_switched_off_is() {
        assert!(!Parameters::parse("reboot=a panic=-1").end_by_reset);
        assert!(Parameters::parse("acpi=off").end_by_reset);
    }

    #[test]
    fn nonsense_is_ignored() {
        let parameters = Parameters::parse("rt.beacon= rt.beacon=-1 rt.log rt.= = -- rt.log=debug");
        assert_eq!(parameters.beacon_port, rt_proto::BEACON_PORT);
        assert!(!parameters.debug);
    }
}
