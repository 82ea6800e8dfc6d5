//! `rt update`: changes a running container's limits.

use std::io::Read;
use std::path::PathBuf;

use anyhow::Context;
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::Global;
use crate::config::Config;
use crate::container;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// File with the runtime-spec's resources object, - for standard input; other flags are ignored then
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Weight of block I/O, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// CFS period in microseconds
    #[arg(long, value_name = "US")]
    cpu_period: Option<u64>,
    /// CFS quota in microseconds
    #[arg(long, value_name = "US", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// CFS burst in microseconds
    #[arg(long, value_name = "US")]
    cpu_burst: Option<u64>,
    /// CPU shares
    #[arg(long, value_name = "SHARES")]
    cpu_share: Option<u64>,
    /// Real-time period in microseconds
    #[arg(long, value_name = "US")]
    cpu_rt_period: Option<u64>,
    /// Real-time runtime in microseconds
    #[arg(long, value_name = "US", allow_negative_numbers = true)]
    cpu_rt_runtime: Option<i64>,
    /// 1 for SCHED_IDLE, 0 for the default
    #[arg(long, value_name = "0|1", allow_negative_numbers = true)]
    cpu_idle: Option<i64>,
    /// CPUs to use
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Accepted for runc's sake: cgroup v2 has no such limit
    #[arg(long, value_name = "BYTES", hide = true)]
    kernel_memory: Option<String>,
    /// Accepted for runc's sake: cgroup v2 has no such limit
    #[arg(long, value_name = "BYTES", hide = true)]
    kernel_memory_tcp: Option<String>,
    /// Memory limit in bytes, or with a suffix k, m, g; -1 for none
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, allow_negative_numbers = true)]
    memory: Option<i64>,
    /// Memory reservation
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, allow_negative_numbers = true)]
    memory_reservation: Option<i64>,
    /// Memory and swap; -1 for no limit
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, allow_negative_numbers = true)]
    memory_swap: Option<i64>,
    /// Most processes; -1 for no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// Refused: Intel RDT is the host's
    #[arg(long, value_name = "SCHEMA")]
    l3_cache_schema: Option<String>,
    /// Refused: Intel RDT is the host's
    #[arg(long, value_name = "SCHEMA")]
    mem_bw_schema: Option<String>,
    /// The container's ID
    #[arg(value_name = "ID")]
    id: String,
}

impl Arguments {
    pub fn run(&self, global: &Global, config: &Config) -> anyhow::Result<u8> {
        if self.l3_cache_schema.is_some() || self.mem_bw_schema.is_some() {
            anyhow::bail!("Intel RDT is the host's and cannot be set for a container in a virtual machine");
        }
        container::update(&global.store(), config, &self.id, &self.wanted()?)?;
        Ok(0)
    }

    fn wanted(&self) -> anyhow::Result<LinuxResources> {
        let Some(path) = &self.resources else {
            return Ok(serde_json::from_value(self.flags())?);
        };
        let mut text = Vec::new();
        if path.as_os_str() == "-" {
            std::io::stdin().take(1 << 20).read_to_end(&mut text).context("cannot read standard input")?;
        } else {
            text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        }
        serde_json::from_slice(&text).with_context(|| format!("{} is not a resources object", path.display()))
    }

    fn flags(&self) -> Value {
        json!({
            "blockIO": given([("weight", json!(self.blkio_weight))]),
            "cpu": given([
                ("period", json!(self.cpu_period)),
                ("quota", json!(self.cpu_quota)),
                ("burst", json!(self.cpu_burst)),
                ("shares", json!(self.cpu_share)),
                ("realtimePeriod", json!(self.cpu_rt_period)),
                ("realtimeRuntime", json!(self.cpu_rt_runtime)),
                ("idle", json!(self.cpu_idle)),
                ("cpus", json!(self.cpuset_cpus)),
                ("mems", json!(self.cpuset_mems)),
            ]),
            "memory": given([
                ("limit", json!(self.memory)),
                ("reservation", json!(self.memory_reservation)),
                ("swap", json!(self.memory_swap)),
            ]),
            "pids": given([("limit", json!(self.pids_limit))]),
        })
    }
}

/// An object of what was given; null when nothing was.
fn given<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
    let object: Map<String, Value> = fields.map(|(name, value)| (name.to_owned(), value)).collect();
    if object.is_empty() { Value::Null } else { Value::Object(object) }
}

/// Bytes as docker and runc read them: a number, perhaps with a fraction, and behind it, after a space or none, b, k, m, g, t or
/// p, the latter five also with b, i or ib behind, powers of 1024 all the same. -1 is no limit.
fn parse_bytes(text: &str) -> Result<i64, String> {
    if text == "-1" {
        return Ok(-1);
    }
    let form = || format!("{text:?} is no size; give bytes, or a number with k, m, g, t or p");
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &lower[digits.len()..] {
        "" | "b" => 0,
        unit => {
            let unit = unit.strip_suffix('b').unwrap_or(unit);
            let unit = unit.strip_suffix('i').unwrap_or(unit);
            let power = "kmgtp".find(unit).filter(|_| unit.len() == 1).ok_or_else(form)?;
            10 * (power + 1)
        }
    };
    let digits = digits.strip_suffix(' ').unwrap_or(digits);
    if digits.is_empty()
        || digits.starts_with('.')
        || !digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return Err(form());
    }
    let too_large = || format!("{text:?} is too large");
    match digits.parse::<i64>() {
        Ok(number) => number.checked_mul(1 << shift).ok_or_else(too_large),
        Err(_) => {
            let bytes = digits.parse::<f64>().map_err(|_| form())? * (1_u64 << shift) as f64;
            if bytes < i64::MAX as f64 { Ok(bytes as i64) } else { Err(too_large()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes() {
        assert_eq!(parse_bytes("64m"), Ok(64 << 20));
        assert_eq!(parse_bytes("1GB"), Ok(1 << 30));
        assert_eq!(parse_bytes("-1"), Ok(-1));
        for same in ["64MiB", "64Mi", "64 m", "64MB", "65536k"] {
            assert_eq!(parse_bytes(same), Ok(64 << 20), "{same}");
        }
        assert_eq!(parse_bytes("1.5g"), Ok(3 << 29));
        for bad in [
            "",
            "x",
            "1q",
            "1mm",
            "1bb",
            "1ibi",
            ".5g",
            "1e3",
            "-2",
            "9999999t",
            "1  m",
            "99999999999999999999",
        ] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
