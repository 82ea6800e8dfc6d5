//! Telling engines of rt: what is to be written where, shown as a difference, written, and taken away again.
//!
//! CRI-O and podman read drop-ins: rt's is a file of its own. containerd merges imported files plugin by plugin, so that
//! a drop-in would replace the operator's settings of the CRI plugin; there it is a marked block at the end of
//! config.toml, and a link by which containerd finds the shim. docker has one JSON file, in which rt is one key. Nothing else of a
//! file is touched, what exists already is never overwritten, and undoing needs no memory of what was done.

mod containerd;
mod docker;

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::shim;

pub use containerd::folder as containerd_programs;

/// The programs that can be told of rt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    Crio,
    Containerd,
    Docker,
    Podman,
}

/// Why an engine was not told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what} {path}")]
    System {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot understand {path}: {reason}; mend it first")]
    Parse { path: PathBuf, reason: String },
    #[error(
        "{path} has a runtime of the name rt already, which is not rt install's; remove it first, or leave it as it is"
    )]
    Taken { path: PathBuf },
    #[error("{path} is there already and leads to another program than {binary}; remove it first")]
    Link { path: PathBuf, binary: PathBuf },
    #[error("{0}: the path of rt has to be absolute, without quotes and control characters")]
    Binary(PathBuf),
}

/// What is to be done for an engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they are to be made.
    pub changes: Vec<Change>,
    /// What cannot be taken back yet, and why.
    pub left: Option<String>,
}

/// One file, as it is and as it is to be. `None` is no file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub path: PathBuf,
    before: Option<Content>,
    after: Option<Content>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Text(String),
    /// A symbolic link that leads there.
    Link(PathBuf),
}

impl Engine {
    /// What has to be done for the engine to know `binary` as the runtime `rt`, or with `undo` to know it no more; nothing where that
    /// is so. `root` is the host's root directory, which paths in files do not have before them.
    ///
    /// # Errors
    /// [`Error`]
    pub fn plan(self, root: &Path, binary: &Path, undo: bool) -> Result<Plan, Error> {
        let name = binary.to_str().filter(|name| name.starts_with('/') && !name.contains(['"', '\\', '\'']));
        let name = name.filter(|name| !name.contains(char::is_control));
        let name = name.ok_or_else(|| Error::Binary(binary.into()))?;
        let path = root.join(match self {
            Self::Crio => "etc/crio/crio.conf.d/50-rt.conf",
            Self::Containerd => "etc/containerd/config.toml",
            Self::Docker => "etc/docker/daemon.json",
            Self::Podman => "etc/containers/containers.conf.d/50-rt.conf",
        });
        let before = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            other => {
                Some(other.map_err(|source| Error::System { what: "read", path: path.clone(), source })?)
            }
        };
        let after = match self {
            Self::Containerd => containerd::edit(&path, before.as_deref(), undo)?,
            Self::Docker => docker::edit(&path, before.as_deref(), name, undo)?,
            Self::Crio | Self::Podman if undo => None,
            Self::Crio => Some(format!(
                "# By rt install crio; rt install crio --undo removes it. Pods get rt by the RuntimeClass handler \"rt\".\n\
                 [crio.runtime.runtimes.rt]\nruntime_path = \"{name}\"\nruntime_type = \"oci\"\nruntime_root = \"/run/rt\"\n"
            )),
            Self::Podman => Some(format!(
                "# By rt install podman; rt install podman --undo removes it. podman --runtime rt run ...\n\
                 [engine.runtimes]\nrt = [\"{name}\"]\n"
            )),
        };
        let mut plan = Plan::default();
        if self == Self::Containerd {
            plan.link(root, before.as_deref(), binary, undo)?;
        }
        if before != after {
            let (before, after) = (before.map(Content::Text), after.map(Content::Text));
            // The link is there before containerd is told of it, and goes after.
            plan.changes.insert(if undo { 0 } else { plan.changes.len() }, Change { path, before, after });
        }
        Ok(plan)
    }

    /// What the operator has to do for it to take effect.
    pub fn next_step(self) -> &'static str {
        match self {
            Self::Crio => "run: systemctl restart crio",
            Self::Containerd => "run: systemctl restart containerd",
            Self::Docker => "run: systemctl reload docker",
            Self::Podman => "podman reads it at its next start",
        }
    }
}

impl Plan {
    /// The link by which a containerd whose configuration is `text` finds the shim. It is rt install's where the block is, or where it
    /// leads to `binary`. While a shim's containers run it stays: a containerd that restarts forgets those whose shim it cannot find.
    fn link(&mut self, root: &Path, text: Option<&str>, binary: &Path, undo: bool) -> Result<(), Error> {
        let link = containerd::link(text);
        let path = below(root, &link);
        let target = fs::read_link(&path).ok();
        let is_there = fs::symlink_metadata(&path).is_ok();
        let leads_here = target.as_deref() == Some(binary);
        let is_own = leads_here || (target.is_some() && containerd::is_wired(text));
        let change = |before, after| Change { path: path.clone(), before, after };
        match (undo, running(root)) {
            (true, _) if !is_own => {}
            (true, Some(id)) => {
                let link = link.display();
                self.left = Some(format!("{link} stays, since containers such as {id} still run"));
            }
            (true, None) => self.changes.push(change(target.map(Content::Link), None)),
            (false, _) if leads_here => {}
            (false, _) if is_there && !is_own => return Err(Error::Link { path, binary: binary.into() }),
            (false, _) => {
                self.changes.push(change(target.map(Content::Link), Some(Content::Link(binary.into()))));
            }
        }
        Ok(())
    }
}

/// A container that a shim of the host serves.
fn running(root: &Path) -> Option<String> {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let namespaces = entries(&below(root, Path::new(shim::STATES)));
    let mut containers = namespaces.flat_map(|namespace| entries(&namespace.path()));
    let id = containers.find(|container| container.path().join("state.json").exists())?;
    Some(id.file_name().to_string_lossy().into_owned())
}

/// The host's path, from here.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

impl Content {
    fn lines(content: Option<&Self>) -> Vec<String> {
        match content {
            Some(Self::Text(text)) => text.lines().map(str::to_owned).collect(),
            Some(Self::Link(target)) => vec![format!("-> {}", target.display())],
            None => Vec::new(),
        }
    }
}

impl Change {
    /// The difference, in the form of `diff -u` with one hunk and no context.
    pub fn difference(&self) -> String {
        let (before, after) = (Content::lines(self.before.as_ref()), Content::lines(self.after.as_ref()));
        let same = before.iter().zip(&after).take_while(|(one, other)| one == other).count();
        let (old, new) = (&before[same..], &after[same..]);
        let tail = old.iter().rev().zip(new.iter().rev()).take_while(|(one, other)| one == other).count();
        let (old, new) = (&old[..old.len() - tail], &new[..new.len() - tail]);
        let name = |content: &Option<Content>| match content {
            Some(_) => self.path.display().to_string(),
            None => "/dev/null".into(),
        };
        let mut text = format!("--- {}\n+++ {}\n", name(&self.before), name(&self.after));
        let at = |count: usize| if count == 0 { same } else { same + 1 };
        let _ = writeln!(text, "@@ -{},{} +{},{} @@", at(old.len()), old.len(), at(new.len()), new.len());
        text.extend(old.iter().map(|line| format!("-{line}\n")));
        text.extend(new.iter().map(|line| format!("+{line}\n")));
        text
    }

    /// Makes it so: the file appears whole, by a rename, with the permissions that it had.
    ///
    /// # Errors
    /// [`Error::System`]; the file is as it was then.
    pub fn apply(&self) -> Result<(), Error> {
        let failed = |what| move |source| Error::System { what, path: self.path.clone(), source };
        let Some(content) = &self.after else { return fs::remove_file(&self.path).map_err(failed("remove")) };
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir).map_err(failed("make the directory of"))?;
        let draft = self.path.with_extension("rt-new");
        let written = match content {
            Content::Text(text) => {
                let mode = fs::metadata(&self.path).map_or(0o644, |metadata| metadata.permissions().mode());
                fs::write(&draft, text)
                    .and_then(|()| fs::set_permissions(&draft, fs::Permissions::from_mode(mode)))
            }
            Content::Link(target) => symlink(target, &draft),
        };
        let written = written.and_then(|()| fs::rename(&draft, &self.path));
        written.map_err(failed("write")).inspect_err(|_| drop(fs::remove_file(&draft)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Engine; 4] = [Engine::Crio, Engine::Containerd, Engine::Docker, Engine::Podman];

    fn plan(engine: Engine, root: &Path, undo: bool) -> Plan {
        engine.plan(root, Path::new("/opt/rt"), undo).unwrap()
    }

    fn apply(plan: &Plan) {
        plan.changes.iter().for_each(|change| change.apply().unwrap());
    }

    #[test]
    fn undoing_leaves_what_was_there() {
        for engine in ALL {
            let root = tempfile::tempdir().unwrap();
            assert_eq!(plan(engine, root.path(), true), Plan::default());
            let wanted = plan(engine, root.path(), false);
            let shown: String = wanted.changes.iter().map(Change::difference).collect();
            assert!(shown.starts_with("--- /dev/null\n+++ ") && shown.contains("/opt/rt"), "{shown}");
            apply(&wanted);
            assert_eq!(plan(engine, root.path(), false), Plan::default(), "{engine:?} twice");
            apply(&plan(engine, root.path(), true));
            for change in wanted.changes {
                assert!(fs::symlink_metadata(&change.path).is_err(), "{engine:?}");
            }
        }
    }

    #[test]
    fn containerd_finds_the_shim_while_it_is_needed() {
        let root = tempfile::tempdir().unwrap();
        let link = root.path().join("opt/containerd/bin/containerd-shim-rt-v2");
        apply(&plan(Engine::Containerd, root.path(), false));
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("/opt/rt"));
        // Another rt takes its place.
        apply(&Engine::Containerd.plan(root.path(), Path::new("/usr/bin/rt"), false).unwrap());
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("/usr/bin/rt"));

        let state = root.path().join("run/containerd/rt/k8s.io/pod");
        fs::create_dir_all(&state).unwrap();
        fs::write(state.join("state.json"), "{}").unwrap();
        apply(&Engine::Containerd.plan(root.path(), Path::new("/usr/bin/rt"), false).unwrap());
        let undone = Engine::Containerd.plan(root.path(), Path::new("/usr/bin/rt"), true).unwrap();
        assert!(undone.left.as_ref().unwrap().contains("such as pod still run"), "{undone:?}");
        apply(&undone);
        assert!(!root.path().join("etc/containerd/config.toml").exists() && link.is_symlink());
        fs::remove_dir_all(&state).unwrap();
        apply(&Engine::Containerd.plan(root.path(), Path::new("/usr/bin/rt"), true).unwrap());
        assert!(!link.is_symlink());
    }

    #[test]
    fn another_shim_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("opt/containerd/bin");
        fs::create_dir_all(&folder).unwrap();
        symlink("/own/rt", folder.join("containerd-shim-rt-v2")).unwrap();
        let refused = Engine::Containerd.plan(root.path(), Path::new("/opt/rt"), false);
        assert!(matches!(refused, Err(Error::Link { .. })), "{refused:?}");
        assert_eq!(plan(Engine::Containerd, root.path(), true), Plan::default());
    }

    #[test]
    fn a_difference_is_what_differs() {
        let change = Change {
            path: "/f".into(),
            before: Some(Content::Text("a\nb\nc\n".into())),
            after: Some(Content::Text("a\nx\ny\nc\n".into())),
        };
        assert_eq!(change.difference(), "--- /f\n+++ /f\n@@ -2,1 +2,2 @@\n-b\n+x\n+y\n");
    }

    #[test]
    fn a_path_cannot_break_out_of_its_quotes() {
        for bad in ["rt", "/opt/\"rt", "/opt/r\nt", "/opt/r'\\t"] {
            assert!(matches!(
                Engine::Crio.plan(Path::new("/"), Path::new(bad), false),
                Err(Error::Binary(_))
            ));
        }
    }
}
