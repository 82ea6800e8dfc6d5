//! The timeline of a start: named instants of CLOCK_MONOTONIC, which all processes of the host share.
//!
//! A mark's name is `TRACK.WHAT`: what has been reached, and by whom. What lies between two marks is a [`Step`]; `trace` shows
//! them.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::sys::clock::monotonic_ns;

/// In a container's state directory: the timeline of its start.
const FILE: &str = "timeline.json";
/// Of that file. Some marks are words of a VMM, which may be its guest's by now.
const MAX_BYTES: u64 = 256 << 10;

/// Named instants, in the order in which they were marked.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Timeline {
    marks: Vec<(String, u64)>,
}

/// What led to a mark: the time since the mark before it on the same track, or for a track's first since the one
/// before it on any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step<'a> {
    /// The mark's.
    pub name: &'a str,
    pub track: &'a str,
    /// CLOCK_MONOTONIC.
    pub begin_ns: u64,
    pub end_ns: u64,
}

impl Timeline {
    /// Marks this instant.
    pub fn mark(&mut self, name: &str) {
        self.marks.push((name.into(), monotonic_ns()));
    }

    /// Adds the marks of another process.
    pub fn extend(&mut self, marks: Vec<(String, u64)>) {
        self.marks.extend(marks);
    }

    /// The marks, in the order in which they were made: name and CLOCK_MONOTONIC.
    pub fn marks(&self) -> &[(String, u64)] {
        &self.marks
    }

    /// The steps, by the time of their ends.
    pub fn steps(&self) -> Vec<Step<'_>> {
        let mut sorted: Vec<&(String, u64)> = self.marks.iter().collect();
        sorted.sort_by_key(|(_, ns)| *ns);
        let mut last = sorted.first().map_or(0, |(_, ns)| *ns);
        let mut last_of = HashMap::new();
        let mut steps = Vec::with_capacity(sorted.len());
        for (name, end_ns) in sorted {
            let track = name.split('.').next().unwrap_or(name);
            let begin_ns = last_of.insert(track, *end_ns).unwrap_or(last);
            last = *end_ns;
            steps.push(Step { name, track, begin_ns, end_ns: *end_ns });
        }
        steps
    }

    /// Keeps it beside a container's record.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self, state_dir: &Path) -> io::Result<()> {
        std::fs::write(state_dir.join(FILE), serde_json::to_vec(self)?)
    }

    /// The timeline of a container's start.
    ///
    /// # Errors
    /// It is not there, or damaged.
    pub fn load(state_dir: &Path) -> io::Result<Self> {
        let file = std::fs::File::open(state_dir.join(FILE))?;
        Ok(serde_json::from_reader(io::BufReader::new(file).take(MAX_BYTES))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_begins_with_the_one_before_on_its_track() {
        let mut timeline = Timeline::default();
        timeline.extend(vec![
            ("vmm.exec".into(), 30),
            ("rt.start".into(), 10),
            ("rt.vmm-started".into(), 20),
        ]);
        timeline.extend(vec![("vmm.run".into(), 50), ("rt.up".into(), 90), ("bare".into(), 95)]);
        let steps: Vec<_> =
            timeline.steps().iter().map(|step| (step.name, step.track, step.begin_ns, step.end_ns)).collect();
        assert_eq!(
            steps,
            [
                ("rt.start", "rt", 10, 10),
                ("rt.vmm-started", "rt", 10, 20),
                ("vmm.exec", "vmm", 20, 30),
                ("vmm.run", "vmm", 30, 50),
                ("rt.up", "rt", 20, 90),
                ("bare", "bare", 90, 95),
            ]
        );
    }

    #[test]
    fn it_is_kept_beside_the_record() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Timeline::load(dir.path()).unwrap_err().kind(), io::ErrorKind::NotFound);
        let mut timeline = Timeline::default();
        timeline.mark("rt.start");
        timeline.save(dir.path()).unwrap();
        assert_eq!(Timeline::load(dir.path()).unwrap().marks, timeline.marks);
    }
}
