//! What has gone through the interfaces of a network namespace.

use std::fs;

use super::Error;

/// Bytes since an interface was made; the interface's own view, which is its container's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub received: u64,
    pub sent: u64,
}

/// The traffic of the named interfaces of the calling thread's network namespace together; one that is gone counts as nothing.
///
/// # Errors
/// [`Error::Scan`]
pub fn traffic(names: &[&str]) -> Result<Traffic, Error> {
    let table = fs::read_to_string("/proc/thread-self/net/dev");
    let table = table.map_err(|source| Error::Scan { what: "/proc/thread-self/net/dev", source })?;
    Ok(sum(&table, names))
}

/// A line an interface, after two of headings: its name, a colon, eight numbers of what it received, eight of what it sent, the
/// bytes first (proc_pid_net(5)).
fn sum(table: &str, names: &[&str]) -> Traffic {
    let mut traffic = Traffic::default();
    for line in table.lines().skip(2) {
        let Some((_, numbers)) = line.split_once(':').filter(|(name, _)| names.contains(&name.trim())) else {
            continue;
        };
        let mut numbers = numbers.split_whitespace().map(|number| number.parse().unwrap_or(0));
        traffic.received = traffic.received.saturating_add(numbers.next().unwrap_or(0));
        traffic.sent = traffic.sent.saturating_add(numbers.nth(7).unwrap_or(0));
    }
    traffic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_the_named_interfaces_are_added() {
        let table = "Inter-|   Receive                |  Transmit\n face |bytes    packets errs drop fifo frame\n\
                     \x20   lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  eth0:1000 2 0 0 0 0 0 0 30 4 0 0 0 0 0 0\n\
                     \x20 eth1: 5 1 0 0 0 0 0 0 x\n";
        assert_eq!(sum(table, &["eth0", "eth1", "gone"]), Traffic { received: 1005, sent: 30 });
        assert_eq!(sum(table, &[]), Traffic::default());
        assert_eq!(sum("", &["eth0"]), Traffic::default());
    }
}
