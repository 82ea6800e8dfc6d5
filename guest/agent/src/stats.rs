//! What a container uses: the files of its cgroup v2, as they stand.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};

use crate::cgroup;

/// Longest file that is passed on.
const LIMIT: u64 = 64 * 1024;

/// All files of the container's group that tell something, by name.
///
/// # Errors
/// The group cannot be listed.
pub fn files(container: &str) -> io::Result<HashMap<String, String>> {
    let group = cgroup::directory(container);
    let mut files = HashMap::new();
    for entry in fs::read_dir(&group)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !tells(&name) {
            continue;
        }
        // What a kernel does not count it refuses to be read.
        let mut text = String::new();
        let read = File::open(entry.path()).and_then(|file| file.take(LIMIT).read_to_string(&mut text));
        if read.is_ok() {
            files.insert(name, text);
        }
    }
    Ok(files)
}

/// Not those of the group's own management, nor the one that is long and that nobody asks for.
fn tells(name: &str) -> bool {
    let controllers = ["cpu.", "cpuset.", "memory.", "pids.", "io.", "hugetlb.", "misc.", "rdma."];
    controllers.iter().any(|controller| name.starts_with(controller))
        && !["memory.reclaim", "memory.numa_stat"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_limits_tell_something() {
        for name in ["memory.current", "cpu.stat", "hugetlb.2MB.current", "io.stat", "pids.max"] {
            assert!(tells(name), "{name}");
        }
        for name in ["cgroup.procs", "memory.reclaim", "cgroup.kill"] {
            assert!(!tells(name), "{name}");
        }
    }
}
