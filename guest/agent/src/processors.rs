//! How many of the machine's processors the guest uses. The kernel was started with some of them (`maxcpus=`), the others
//! are there for the host to ask for later. Kernel: Documentation/core-api/cpu_hotplug.rst.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/devices/system/cpu";

/// Uses the first `count` processors and no other: how many are in use then. What cannot be taken out of use stays.
///
/// # Errors
/// Of a processor that cannot be used.
pub fn set(count: u32) -> Result<u32, String> {
    let failed = |what: &str, error: io::Error| format!("cannot {what} of {ROOT}: {error}");
    let list = |name: &str| -> Result<Vec<u32>, String> {
        let text =
            fs::read_to_string(Path::new(ROOT).join(name)).map_err(|error| failed("read the list", error))?;
        Ok(numbers(&text))
    };
    let online = list("online")?;
    for number in list("present")? {
        let wanted = number < count.max(1);
        if wanted == online.contains(&number) {
            continue;
        }
        let file = switch(number);
        match fs::write(&file, if wanted { "1" } else { "0" }) {
            Err(error) if wanted => return Err(failed(&format!("use processor {number}"), error)),
            Err(error) => crate::kmsg::debug!("processor {number} stays in use: {error}"),
            Ok(()) => {}
        }
    }
    Ok(list("online")?.len() as u32)
}

/// The first processor has none: it is always in use.
fn switch(number: u32) -> PathBuf {
    Path::new(ROOT).join(format!("cpu{number}/online"))
}

/// The numbers of a list such as `0-2,5`, as the kernel writes it.
fn numbers(list: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u32>().ok()?..=last.parse().ok()?)
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_the_kernels() {
        assert_eq!(numbers("0\n"), [0]);
        assert_eq!(numbers("0-2,5\n"), [0, 1, 2, 5]);
        assert!(numbers("\n").is_empty());
    }
}
