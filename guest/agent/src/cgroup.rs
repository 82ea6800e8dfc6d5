//! The guest's cgroup tree, version 2: `/rt/ID` per container, every controller enabled down to it.
//!
//! The agent makes and removes the groups; limits inside them are libcontainer's to write. The host's `cgroupsPath`
//! names a group of the host and has no meaning here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the tree is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";
/// Parent of the containers' groups.
const PARENT: &str = "/sys/fs/cgroup/rt";

/// Enables every controller for the containers' groups, once.
pub fn prepare() -> io::Result<()> {
    fs::create_dir(PARENT)?;
    let controllers = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"))?;
    let all: String = controllers.split_ascii_whitespace().map(|name| format!("+{name} ")).collect();
    for group in [ROOT, PARENT] {
        let file = Path::new(group).join("cgroup.subtree_control");
        // All at once is one pass in the kernel; one that cannot be had must not keep the others away.
        if fs::write(&file, &all).is_err() {
            for one in all.split_ascii_whitespace() {
                let _ = fs::write(&file, one);
            }
        }
    }
    Ok(())
}

/// What `linux.cgroupsPath` is for libcontainer.
pub fn path_in_tree(container: &str) -> PathBuf {
    Path::new("/rt").join(container)
}

/// The container's group in the file system.
pub fn directory(container: &str) -> PathBuf {
    Path::new(PARENT).join(container)
}

/// Makes the container's group.
pub fn create(container: &str) -> io::Result<()> {
    fs::create_dir(directory(container))
}

/// Kills every process in the group and those below.
pub fn kill(container: &str) -> io::Result<()> {
    match fs::write(directory(container).join("cgroup.kill"), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The processes of the group and those below.
pub fn processes(container: &str) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    collect(&directory(container), &mut found)?;
    Ok(found)
}

fn collect(group: &Path, found: &mut Vec<i32>) -> io::Result<()> {
    let text = fs::read_to_string(group.join("cgroup.procs"))?;
    found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), found)?;
        }
    }
    Ok(())
}

/// Stops or continues every process of the group. The kernel does it some time later.
pub fn freeze(container: &str, frozen: bool) -> io::Result<()> {
    fs::write(directory(container).join("cgroup.freeze"), if frozen { "1" } else { "0" })
}

/// Kills what is left in the group and removes it with those below.
///
/// # Errors
/// The last refusal, when processes have not gone within ten seconds.
pub fn remove(container: &str) -> io::Result<()> {
    let group = directory(container);
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut pause = Duration::from_micros(200);
    loop {
        match remove_tree(&group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => {}
        }
        // Killed processes leave the group a little after the kill.
        kill(container)?;
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn remove_tree(group: &Path) -> io::Result<()> {
    match fs::remove_dir(group) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
        other => return other,
    }
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}
