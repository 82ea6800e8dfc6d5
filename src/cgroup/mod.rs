//! The host's cgroups of a container: `linux.cgroupsPath` holds its monitor and all that the monitor starts.
//!
//! Three steps: [`Plan::new`] names the directories without touching anything, so that the state record can hold them
//! first; [`Plan::enter`] makes them, writes the limits and moves this process in, whose children are then born there;
//! [`remove`] takes them away by name alone, after a crash too. The container's own limits hold in the guest; here
//! are the same ones plus what the virtual machine itself needs, against a guest that breaks out of its own.
//!
//! Files are written directly, as runc's cgroupfs driver does; a path in systemd's form names the directory that
//! systemd would use. A container without cgroupsPath stays where its caller is.

mod hierarchy;
mod limits;

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use hierarchy::Hierarchy;
pub use limits::{Limits, Overhead};

/// How long the processes of a group that is to be removed may take to leave it.
const PATIENCE: Duration = Duration::from_secs(5);

/// What goes wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot find the host's cgroups")]
    Host(#[source] io::Error),
    #[error("linux.cgroupsPath is {0:?}, but has to be SLICE:PREFIX:NAME with --systemd-cgroup")]
    Form(String),
    /// Wording as runc's.
    #[error("container's cgroup unexpectedly frozen: {0}; thaw it, or name another one in linux.cgroupsPath")]
    Frozen(PathBuf),
    #[error("cannot set the limit {file} to {value}")]
    Limit {
        file: PathBuf,
        value: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot {what} {path}")]
    System {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether the host forbids it, rather than something being wrong.
    pub fn is_denied(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        matches!(self, Self::System { source, .. } | Self::Limit { source, .. } if [PermissionDenied, ReadOnlyFilesystem].contains(&source.kind()))
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { what, path: path.into(), source }
}

/// The groups of one container: a directory in each hierarchy of the host.
#[derive(Debug)]
pub struct Plan {
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    hierarchy: Hierarchy,
    path: PathBuf,
}

/// A process in a container's groups that can go back to where it was.
#[derive(Debug)]
pub struct Member {
    home: Vec<PathBuf>,
}

impl Plan {
    /// Names the groups for `linux.cgroupsPath`; `None` where that is the root, which everybody is in.
    ///
    /// # Errors
    /// [`Error::Form`], [`Error::Host`]
    pub fn new(cgroups_path: &Path, systemd: bool) -> Result<Option<Self>, Error> {
        let path = match systemd {
            true => systemd_path(cgroups_path)?,
            false => cgroups_path.into(),
        };
        if clean(&path).as_os_str().is_empty() {
            return Ok(None);
        }
        let hierarchies = Hierarchy::all().map_err(Error::Host)?;
        let groups = hierarchies
            .into_iter()
            .map(|hierarchy| {
                let path = hierarchy.directory(&clean(&path), path.is_absolute());
                Group { hierarchy, path }
            })
            .collect();
        Ok(Some(Self { groups }))
    }

    /// The directories, for the state record and [`remove`].
    pub fn paths(&self) -> Vec<PathBuf> {
        self.groups.iter().map(|group| group.path.clone()).collect()
    }

    /// Makes the groups, sets the limits and moves this process in. What was made stays after an error, for [`remove`].
    ///
    /// # Errors
    /// [`Error::Frozen`]; [`Error::System`]; a limit whose controller the host has not got is none, since the guest's own
    /// holds.
    pub fn enter(&self, limits: &Limits) -> Result<Member, Error> {
        // Before anything moves: a process in a frozen group could not even tell why it does not go on.
        if let Some(frozen) = self.groups.iter().find(|group| is_frozen(&group.path)) {
            return Err(Error::Frozen(frozen.path.clone()));
        }
        if let Some(shared) = self.groups.iter().find(|group| is_populated(&group.path)) {
            tracing::warn!("container's cgroup is not empty: {}", shared.path.display());
        }
        let mut member = Member { home: Vec::new() };
        for group in &self.groups {
            if let Err(error) = group.enter(limits, &mut member) {
                member.leave();
                return Err(error);
            }
        }
        Ok(member)
    }
}

/// Writes limits into groups that exist; what they say of no limit is written, too. After an error some are as they were.
///
/// # Errors
/// [`Error::System`], [`Error::Host`]
pub fn change(paths: &[PathBuf], limits: &Limits) -> Result<(), Error> {
    let hierarchies = Hierarchy::all().map_err(Error::Host)?;
    for path in paths {
        if let Some(hierarchy) = hierarchies.iter().find(|hierarchy| hierarchy.holds(path)) {
            set(hierarchy, path, limits)?;
        }
    }
    Ok(())
}

/// Moves this process into groups that exist; one that is gone is passed over, as its container ends.
///
/// # Errors
/// [`Error::System`]
pub fn join(paths: &[PathBuf]) -> Result<(), Error> {
    admit(paths, own_pid())
}

/// Moves that process into groups, as [`join`] this one.
///
/// # Errors
/// [`Error::System`]
pub fn admit(paths: &[PathBuf], pid: i32) -> Result<(), Error> {
    for path in paths {
        match move_to(path, pid) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(failed("enter the cgroup", path))?,
        }
    }
    Ok(())
}

fn set(hierarchy: &Hierarchy, path: &Path, limits: &Limits) -> Result<(), Error> {
    let files = match hierarchy.is_unified() {
        true => limits.unified(),
        false => limits.legacy(),
    };
    for limit in files.iter().filter(|limit| hierarchy.has(limit.controller)) {
        let file = path.join(limit.file);
        match fs::write(&file, &limit.value) {
            // Version 1 refuses more than the group above has (a pod's has no overhead); so that one's limit holds.
            Err(error) if limit.file == "cpu.cfs_quota_us" && error.raw_os_error() == Some(libc::EINVAL) => {
                tracing::debug!("{} cannot be {}: the group above allows less", file.display(), limit.value);
                fs::write(&file, "-1").map_err(failed("lift the limit", &file))?;
            }
            // A kernel without this file, or a controller that is not delegated down to here.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::warn!("{} is missing: the limit holds in the guest only", file.display());
            }
            Err(error) if limit.is_advice => {
                tracing::warn!("cannot write {:?} to {}: {error}", limit.value, file.display());
            }
            other => other.map_err(|source| Error::Limit { file, value: limit.value.clone(), source })?,
        }
    }
    Ok(())
}

impl Group {
    fn enter(&self, limits: &Limits, member: &mut Member) -> Result<(), Error> {
        self.hierarchy.make(&self.path).map_err(failed("make the cgroup", &self.path))?;
        set(&self.hierarchy, &self.path, limits)?;
        move_to(&self.path, own_pid()).map_err(failed("enter the cgroup", &self.path))?;
        member.home.push(self.hierarchy.own());
        Ok(())
    }
}

impl Member {
    /// Moves this process back to where it was, so that the groups can be removed.
    pub fn leave(self) {
        self.send_home(own_pid());
    }

    /// Moves a process that was born in the groups to where this one was.
    pub fn send_home(&self, pid: i32) {
        for home in &self.home {
            if let Err(error) = move_to(home, pid) {
                tracing::warn!("cannot return to the cgroup {}: {error}", home.display());
            }
        }
    }
}

/// By the file of version 2 or of version 1; a group that has neither, or is not there, is not.
fn is_frozen(group: &Path) -> bool {
    let says =
        |file: &str, word: &str| fs::read_to_string(group.join(file)).is_ok_and(|text| text.trim() == word);
    says("cgroup.freeze", "1") || says("freezer.state", "FROZEN") || says("freezer.state", "FREEZING")
}

fn is_populated(group: &Path) -> bool {
    fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|text| !text.is_empty())
}

fn move_to(group: &Path, pid: i32) -> io::Result<()> {
    fs::write(group.join("cgroup.procs"), pid.to_string())
}

fn own_pid() -> i32 {
    nix::unistd::getpid().as_raw()
}

/// Removes groups with those below them, once what was in them has ended. Ones that are gone are no error; ones that other processes use, those of
/// another container with the same path, stay.
///
/// # Errors
/// [`Error::System`] after trying all.
pub fn remove(paths: &[PathBuf]) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    let mut result = Ok(());
    for path in paths {
        if let Err(source) = remove_by(path, deadline) {
            result = Err(Error::System { what: "remove the cgroup", path: path.clone(), source });
        }
    }
    result
}

fn remove_by(path: &Path, deadline: Instant) -> io::Result<()> {
    loop {
        remove_below(path);
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && is_populated(path) => {
                tracing::warn!("the cgroup {} is still used by others", path.display());
                return Ok(());
            }
            other => return other,
        }
    }
}

/// Those that somebody has made below a group and left empty; one that is in use keeps its parent, which says so.
fn remove_below(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path());
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Where systemd puts the scope of `SLICE:PREFIX:NAME`: `a-b.slice` lies in `a.slice`, an empty slice is `system.slice`.
fn systemd_path(path: &Path) -> Result<PathBuf, Error> {
    let text = path.to_string_lossy();
    let form = || Error::Form(text.clone().into_owned());
    let parts: Vec<&str> = text.split(':').collect();
    let [slice, prefix, name] = parts[..] else { return Err(form()) };
    let mut directory = PathBuf::from("/");
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    if slice != "-.slice" {
        let stem = slice.strip_suffix(".slice").ok_or_else(form)?;
        if stem.is_empty() || stem.contains('/') || stem.split('-').any(str::is_empty) {
            return Err(form());
        }
        let ends = stem.match_indices('-').map(|(index, _)| index).chain([stem.len()]);
        directory.extend(ends.map(|end| format!("{}.slice", &stem[..end])));
    }
    if name.is_empty() || prefix.contains('/') || name.contains('/') {
        return Err(form());
    }
    directory.push(match (prefix, name.ends_with(".slice")) {
        (_, true) => name.to_owned(),
        ("", _) => format!("{name}.scope"),
        _ => format!("{prefix}-{name}.scope"),
    });
    Ok(directory)
}

/// The path without leading slash, `.` and `..`: it cannot lead out of the hierarchy.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemds_form_names_a_scope_in_nested_slices() {
        for (form, path) in [
            ("system.slice:docker:abc", "/system.slice/docker-abc.scope"),
            (":rt:abc", "/system.slice/rt-abc.scope"),
            ("a-b-c.slice::x", "/a.slice/a-b.slice/a-b-c.slice/x.scope"),
            ("-.slice:p:n", "/p-n.scope"),
            ("user.slice:p:pod.slice", "/user.slice/pod.slice"),
        ] {
            assert_eq!(systemd_path(Path::new(form)).unwrap(), Path::new(path), "{form}");
        }
        for bad in [
            "/a/b",
            "a:b",
            "a:b:c:d",
            "x:b:c",
            ".slice:b:c",
            "a--b.slice:p:n",
            "a.slice:p:",
            "a.slice:../p:n",
        ] {
            assert!(systemd_path(Path::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_path_stays_inside() {
        assert_eq!(clean(Path::new("/../../a/./b/../c")), Path::new("a/c"));
        assert_eq!(clean(Path::new("/")), Path::new(""));
        assert_eq!(clean(Path::new("system.slice:p:n")), Path::new("system.slice:p:n"));
        assert!(Plan::new(Path::new("/a/.."), false).unwrap().is_none());
    }
}
