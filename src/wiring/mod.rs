//! Telling engines of rt: what is to be written where, shown as a difference, written, and taken away again.
//!
//! CRI-O and podman read drop-ins: rt's is a file of its own. containerd merges imported files plugin by plugin, so that
//! a drop-in would replace the operator's settings of the CRI plugin; there it is a marked block at the end of
//! config.toml. docker has one JSON file, in which rt is one key. Nothing else of a file is touched, what exists already is
//! never overwritten, and undoing needs no memory of what was done.

mod containerd;
mod docker;

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

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
    #[error("{0}: the path of rt has to be absolute, without quotes and control characters")]
    Binary(PathBuf),
}

/// One file, as it is and as it is to be. `None` is no file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub path: PathBuf,
    before: Option<String>,
    after: Option<String>,
}

impl Engine {
    /// What has to be done for the engine to know `binary` as the runtime `rt`, or with `undo` to know it no more; nothing where that
    /// is so. `root` is the host's root directory, which paths in files do not have before them.
    ///
    /// # Errors
    /// [`Error`]
    pub fn plan(self, root: &Path, binary: &Path, undo: bool) -> Result<Option<Change>, Error> {
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
            Self::Containerd => containerd::edit(&path, before.as_deref(), name, undo)?,
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
        Ok((before != after).then_some(Change { path, before, after }))
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

impl Change {
    /// The difference, in the form of `diff -u` with one hunk and no context.
    pub fn difference(&self) -> String {
        let lines = |text: &Option<String>| -> Vec<String> {
            text.as_deref().unwrap_or_default().lines().map(str::to_owned).collect()
        };
        let (before, after) = (lines(&self.before), lines(&self.after));
        let same = before.iter().zip(&after).take_while(|(one, other)| one == other).count();
        let (old, new) = (&before[same..], &after[same..]);
        let tail = old.iter().rev().zip(new.iter().rev()).take_while(|(one, other)| one == other).count();
        let (old, new) = (&old[..old.len() - tail], &new[..new.len() - tail]);
        let name = |text: &Option<String>| match text {
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
        let Some(text) = &self.after else { return fs::remove_file(&self.path).map_err(failed("remove")) };
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir).map_err(failed("make the directory of"))?;
        let mode = fs::metadata(&self.path).map_or(0o644, |metadata| metadata.permissions().mode());
        let draft = self.path.with_extension("rt-new");
        let written = fs::write(&draft, text)
            .and_then(|()| fs::set_permissions(&draft, fs::Permissions::from_mode(mode)))
            .and_then(|()| fs::rename(&draft, &self.path));
        written.map_err(failed("write")).inspect_err(|_| drop(fs::remove_file(&draft)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Engine; 4] = [Engine::Crio, Engine::Containerd, Engine::Docker, Engine::Podman];

    fn plan(engine: Engine, root: &Path, undo: bool) -> Option<Change> {
        engine.plan(root, Path::new("/opt/rt"), undo).unwrap()
    }

    #[test]
    fn undoing_leaves_what_was_there() {
        for engine in ALL {
            let root = tempfile::tempdir().unwrap();
            assert_eq!(plan(engine, root.path(), true), None);
            let change = plan(engine, root.path(), false).unwrap();
            assert!(change.difference().starts_with("--- /dev/null\n+++ "), "{}", change.difference());
            change.apply().unwrap();
            assert!(fs::read_to_string(&change.path).unwrap().contains("/opt/rt"), "{engine:?}");
            assert_eq!(plan(engine, root.path(), false), None, "{engine:?} twice");
            plan(engine, root.path(), true).unwrap().apply().unwrap();
            assert!(!change.path.exists(), "{engine:?}");
        }
    }

    #[test]
    fn a_difference_is_what_differs() {
        let change = Change {
            path: "/f".into(),
            before: Some("a\nb\nc\n".into()),
            after: Some("a\nx\ny\nc\n".into()),
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
