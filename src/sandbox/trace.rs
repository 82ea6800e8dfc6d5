//! A timeline to look at: as JSON for the trace viewers of Chrome (chrome://tracing) and Perfetto, and as a picture. Pure.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::timeline::{Step, Timeline};
use crate::sys::text::printable;

/// More would be no picture; a timeline of rt's has some thirty.
const MAX_STEPS: usize = 400;
/// Pixels.
const ROW: usize = 18;
const LEFT: usize = 220;
const WIDTH: usize = 760;
const COLOURS: [(&str, &str); 6] = [
    ("rt", "#4878a8"),
    ("vmm", "#a85c48"),
    ("qemu", "#a85c48"),
    ("agent", "#5c9048"),
    ("container", "#906090"),
    ("net", "#a89048"),
];

/// The forms in which a timeline is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// For chrome://tracing and ui.perfetto.dev
    Json,
    Svg,
    /// The same picture, as a page
    Html,
    /// The same picture, for a terminal
    Text,
}

impl Form {
    /// What a file of this name is to hold: JSON unless it says otherwise.
    pub fn of(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("svg") => Self::Svg,
            Some("html" | "htm") => Self::Html,
            Some("txt") => Self::Text,
            _ => Self::Json,
        }
    }
}

impl Timeline {
    /// Shows it; `title` is the container's ID.
    pub fn show(&self, form: Form, title: &str) -> String {
        match form {
            Form::Json => self.to_json(),
            Form::Svg => self.to_svg(title),
            Form::Text => self.to_text(title),
            Form::Html => format!(
                "<!DOCTYPE html>\n<meta charset=\"utf-8\">\n<title>{0}</title>\n<body>\n{1}</body>\n",
                escape(title),
                self.to_svg(title)
            ),
        }
    }

    /// The Trace Event Format's array: a complete event for each step, by its end, then the tracks' names. `ns` and `ms` are rt's own: the
    /// end as CLOCK_MONOTONIC, and since the first mark.
    pub fn to_json(&self) -> String {
        let steps = self.steps();
        let first = steps.first().map_or(0, |step| step.end_ns);
        let us = |ns: u64| ns.saturating_sub(first) as f64 / 1e3;
        let mut tracks: Vec<&str> = Vec::new();
        let mut events: Vec<Value> = Vec::new();
        for Step { name, track, begin_ns, end_ns } in steps {
            if !tracks.contains(&track) {
                tracks.push(track);
            }
            let tid = tracks.iter().position(|own| *own == track).unwrap_or(0) + 1;
            events.push(json!({
                "name": name, "cat": track, "ph": "X", "pid": 1, "tid": tid,
                "ts": us(begin_ns), "dur": us(end_ns) - us(begin_ns),
                "ns": end_ns, "ms": us(end_ns) / 1e3,
            }));
        }
        for (index, track) in tracks.iter().enumerate() {
            let name = json!({"name": track});
            events.push(json!({"name": "thread_name", "ph": "M", "pid": 1, "tid": index + 1, "args": name}));
        }
        serde_json::to_string_pretty(&events).expect("events are plain data")
    }

    /// A row for each step, from top to bottom by their ends; a bar from its begin to its end.
    fn to_svg(&self, title: &str) -> String {
        let mut steps = self.steps();
        steps.truncate(MAX_STEPS);
        let first = steps.first().map_or(0, |step| step.end_ns);
        let total = steps.last().map_or(0, |step| step.end_ns).saturating_sub(first).max(1);
        let x = |ns: u64| LEFT as f64 + ns.saturating_sub(first) as f64 / total as f64 * WIDTH as f64;
        let (width, height) = (LEFT + WIDTH + 100, (steps.len() + 3) * ROW);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"8\" y=\"{}\" font-weight=\"bold\">{}: {:.1} ms</text>\n",
            ROW - 4,
            escape(title),
            total as f64 / 1e6
        );
        for tick in ticks(total) {
            let (x, bottom) = (x(first + tick), height - ROW / 2);
            let _ = writeln!(
                svg,
                "<path d=\"M{x:.1} {top}V{bottom}\" stroke=\"#ddd\"/><text x=\"{x:.1}\" y=\"{label}\" fill=\"#666\" \
                 text-anchor=\"middle\">{ms} ms</text>",
                top = 2 * ROW,
                label = 2 * ROW - 4,
                ms = tick as f64 / 1e6
            );
        }
        for (row, Step { name, track, begin_ns, end_ns }) in steps.iter().enumerate() {
            let colour = COLOURS.iter().find(|(own, _)| own == track).map_or("#888", |(_, colour)| colour);
            let (y, begin, end) = ((row + 2) * ROW, x(*begin_ns), x(*end_ns));
            let took = end_ns.saturating_sub(*begin_ns) as f64 / 1e6;
            let _ = writeln!(
                svg,
                "<g><title>{name}: {took:.3} ms, done at {at:.3} ms</title><text x=\"8\" y=\"{text_y}\">{name}</text>\
                 <rect x=\"{begin:.1}\" y=\"{bar_y}\" width=\"{length:.1}\" height=\"{bar}\" fill=\"{colour}\"/>\
                 <text x=\"{after:.1}\" y=\"{text_y}\" fill=\"#444\">{took:.1}</text></g>",
                name = escape(name),
                at = end_ns.saturating_sub(first) as f64 / 1e6,
                text_y = y + 13,
                bar_y = y + 3,
                bar = ROW - 6,
                length = (end - begin).max(1.0),
                after = end + 4.0,
            );
        }
        svg + "</svg>\n"
    }

    /// A line for each step: its name, how long it took, and where in the whole that was.
    fn to_text(&self, title: &str) -> String {
        let mut steps = self.steps();
        steps.truncate(MAX_STEPS);
        let first = steps.first().map_or(0, |step| step.end_ns);
        let total = steps.last().map_or(0, |step| step.end_ns).saturating_sub(first).max(1);
        let cell = |ns: u64| {
            let share = u128::from(ns.saturating_sub(first)) * u128::from(CELLS) / u128::from(total);
            share.min(u128::from(CELLS)) as usize
        };
        let wide = steps.iter().map(|step| step.name.len()).max().unwrap_or(0).min(64);
        let mut text = format!("{title}: {:.1} ms\n", total as f64 / 1e6);
        for Step { name, begin_ns, end_ns, .. } in steps {
            let took = end_ns.saturating_sub(begin_ns) as f64 / 1e6;
            let begin = cell(begin_ns).min(CELLS as usize - 1);
            let bar = "#".repeat(cell(end_ns).saturating_sub(begin).max(1));
            // Some names are the VMM's, which serves the guest.
            let name = printable(name, 64);
            let _ = writeln!(text, "{name:<wide$} {took:>9.1} ms |{:begin$}{bar}", "");
        }
        text
    }
}

/// Cells of a terminal.
const CELLS: u64 = 40;

/// Round numbers of nanoseconds, at most ten.
fn ticks(total: u64) -> impl Iterator<Item = u64> {
    let mut step = 1000;
    while total / step > 10 {
        step *= if total / step > 100 {
            10
        } else if total / step > 20 {
            5
        } else {
            2
        };
    }
    (0..=total / step).map(move |count| count * step)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline() -> Timeline {
        let mut timeline = Timeline::default();
        timeline.extend(vec![("rt.late".into(), 3_000_000), ("rt.early".into(), 1_000_000)]);
        timeline.extend(vec![("vmm.<run>".into(), 2_000_000)]);
        timeline
    }

    #[test]
    fn viewers_get_complete_events_and_the_tracks_names() {
        let events: Value = serde_json::from_str(&timeline().to_json()).unwrap();
        assert_eq!((&events[0]["name"], &events[0]["dur"]), (&json!("rt.early"), &json!(0.0)));
        assert_eq!(events[1]["tid"], 2);
        let late = &events[2];
        assert_eq!((&late["ts"], &late["dur"], &late["ms"]), (&json!(0.0), &json!(2000.0), &json!(2.0)));
        assert_eq!(events[4]["args"]["name"], "vmm");
        assert_eq!(Timeline::default().to_json(), "[]");
    }

    #[test]
    fn the_picture_is_well_formed_whatever_the_names() {
        let svg = timeline().show(Form::Svg, "a<b");
        assert!(
            svg.starts_with("<svg ") && svg.contains("vmm.&lt;run&gt;") && svg.contains("a&lt;b"),
            "{svg}"
        );
        assert!(!svg.contains("<run>") && svg.matches("<g>").count() == 3, "{svg}");
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert_eq!(
            timeline().show(Form::Text, "c").lines().collect::<Vec<_>>(),
            [
                "c: 2.0 ms",
                "rt.early        0.0 ms |#",
                "vmm.<run>       1.0 ms |####################",
                "rt.late         2.0 ms |########################################",
            ]
        );
        assert_eq!(Timeline::default().show(Form::Text, "c"), "c: 0.0 ms\n");
        assert!(Timeline::default().show(Form::Html, "x").contains("<svg "));
        assert!(ticks(u64::MAX).count() <= 11 && ticks(1).count() == 1);
    }

    #[test]
    fn a_files_name_says_its_form() {
        for (name, form) in
            [("t.json", Form::Json), ("t", Form::Json), ("t.svg", Form::Svg), ("t.html", Form::Html)]
        {
            assert_eq!(Form::of(Path::new(name)), form);
        }
    }
}
