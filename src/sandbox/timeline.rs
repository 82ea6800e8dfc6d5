//! The timeline of a start: named instants of CLOCK_MONOTONIC, which all processes of the host share.

use serde::Serialize;

use crate::sys::clock::monotonic_ns;

/// Named instants, in the order in which they were marked.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    marks: Vec<(String, u64)>,
}

#[derive(Serialize)]
struct Mark<'a> {
    name: &'a str,
    /// CLOCK_MONOTONIC.
    ns: u64,
    /// Since the first mark.
    ms: f64,
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

    /// A JSON array of `{name, ns, ms}`, by time.
    pub fn to_json(&self) -> String {
        let mut sorted: Vec<&(String, u64)> = self.marks.iter().collect();
        sorted.sort_by_key(|(_, ns)| *ns);
        let first = sorted.first().map_or(0, |(_, ns)| *ns);
        let marks: Vec<Mark> = sorted
            .into_iter()
            .map(|(name, ns)| Mark { name, ns: *ns, ms: (ns - first) as f64 / 1e6 })
            .collect();
        serde_json::to_string_pretty(&marks).expect("marks are plain data")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_sorted_and_relative_to_the_first() {
        let mut timeline = Timeline::default();
        timeline.extend(vec![("late".into(), 3_000_000), ("early".into(), 1_000_000)]);
        let marks: serde_json::Value = serde_json::from_str(&timeline.to_json()).unwrap();
        assert_eq!(marks[0]["name"], "early");
        assert_eq!(marks[1]["ms"], 2.0);
    }
}
