//! `rt doctor`: how the engines of this node are wired to rt, what is wired wrongly, and the line that mends it.
//!
//! Only reads: the engines' configuration files below a root directory, which tests put another in place of. What an engine
//! would be told by its command line or has been told since it started is not seen.

mod containerd;
mod crio;
mod docker;
mod kubelet;
mod podman;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use toml::{Table, Value};

use super::Level;

/// One thing that was seen in one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    pub level: Level,
    pub file: String,
    pub text: String,
    /// The line that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// A node, by its files.
#[derive(Debug)]
pub struct Node {
    root: PathBuf,
    /// rt, as engines name it.
    rt: PathBuf,
    notes: Vec<Note>,
    /// Some engine names rt.
    is_meant: bool,
    /// Who makes cgroups in which form: engine, systemd's or not, file.
    drivers: Vec<(&'static str, bool, String)>,
}

/// An engine's files, in the order in which it reads them.
#[derive(Debug, Default)]
struct Files(Vec<(String, Table)>);

/// Looks at all engines whose files are below `root`.
pub fn examine(root: &Path, rt: &Path) -> Vec<Note> {
    let mut node =
        Node { root: root.into(), rt: rt.into(), notes: Vec::new(), is_meant: false, drivers: Vec::new() };
    crio::examine(&mut node);
    containerd::examine(&mut node);
    docker::examine(&mut node);
    podman::examine(&mut node);
    kubelet::examine(&mut node);
    if !node.is_meant {
        let text = "no engine of this node is wired to rt".to_owned();
        node.notes.push(Note { level: Level::Warning, file: String::new(), text, mend: None });
    }
    node.notes
}

/// For people: a line for each note, and one for its mend.
pub fn text(notes: &[Note]) -> String {
    let mut text = String::new();
    for note in notes {
        let status = match note.level {
            Level::Info => "ok",
            Level::Warning => "warning",
            Level::Error => "error",
        };
        let file = if note.file.is_empty() { String::new() } else { format!("{}: ", note.file) };
        text.push_str(&format!("{status:<8} {file}{}\n", note.text));
        if let Some(mend) = &note.mend {
            text.push_str(&format!("{:<8} mend: {mend}\n", ""));
        }
    }
    text
}

impl Node {
    fn note(&mut self, level: Level, file: &str, text: String, mend: Option<String>) {
        self.notes.push(Note { level, file: file.into(), text, mend });
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's text; one that is there but cannot be read is noted.
    fn read(&mut self, file: &str) -> Option<String> {
        match std::fs::read_to_string(self.path(file)) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                self.note(Level::Error, file, format!("cannot be read: {error}"), None);
                None
            }
        }
    }

    /// Those of these files that are there, as TOML; a broken one is noted, since its engine does not start with it.
    fn toml(&mut self, names: &[String]) -> Files {
        let mut files = Files::default();
        for name in names {
            let Some(text) = self.read(name) else { continue };
            match text.parse::<Table>() {
                Ok(table) => files.0.push((name.clone(), table)),
                Err(error) => {
                    let reason = error.message().replace('\n', " ");
                    let line = text
                        .get(..error.span().map_or(0, |span| span.start))
                        .map_or(0, |before| before.matches('\n').count() + 1);
                    self.note(Level::Error, name, format!("line {line} is no TOML: {reason}"), None);
                }
            }
        }
        files
    }

    /// Files of a folder with this ending, by name.
    fn drop_ins(&self, folder: &str, ending: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.ends_with(ending))
            .map(|name| format!("{folder}/{name}"))
            .collect();
        names.sort();
        names
    }

    /// Whether a program is this rt.
    fn is_rt(&self, program: &str) -> bool {
        let path = Path::new(program);
        let real = |path: &Path| std::fs::canonicalize(self.path(&path.display().to_string())).ok();
        path.file_name().is_some_and(|name| name == "rt")
            || real(path).is_some_and(|path| Some(path) == real(&self.rt))
    }

    /// Notes that an engine is wired to rt, or that it is not since the program cannot be run.
    fn wire(&mut self, file: &str, what: &str, program: &str) {
        self.is_meant = true;
        let metadata = self.path(program).metadata();
        let runs =
            metadata.is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0);
        match (Path::new(program).is_absolute(), runs) {
            (true, false) => {
                let mend = format!("put rt there, or name {}", self.rt.display());
                self.note(
                    Level::Error,
                    file,
                    format!("{what} is {program}, which cannot be executed"),
                    Some(mend),
                );
            }
            _ => self.note(Level::Info, file, format!("{what} is {program}"), None),
        }
    }
}

impl Files {
    /// The value at a path of keys, in the last file that has it.
    fn get(&self, path: &[&str]) -> Option<(&str, &Value)> {
        self.0.iter().rev().find_map(|(file, table)| {
            let (first, rest) = path.split_first()?;
            let value = rest.iter().try_fold(table.get(*first)?, |value, key| value.get(*key))?;
            Some((file.as_str(), value))
        })
    }

    fn text(&self, path: &[&str]) -> Option<(&str, &str)> {
        self.get(path).and_then(|(file, value)| Some((file, value.as_str()?)))
    }

    /// Keys of the table at a path, of all files.
    fn keys(&self, path: &[&str]) -> Vec<String> {
        let mut keys: Vec<String> = Vec::new();
        for (_, table) in &self.0 {
            let found = path.iter().try_fold(table, |table, key| table.get(*key)?.as_table());
            keys.extend(found.into_iter().flatten().map(|(key, _)| key.clone()));
        }
        keys.sort();
        keys.dedup();
        keys
    }
}

#[cfg(test)]
mod tests;
