//! The log, in logrus' two forms, since runc's callers read it.
//!
//! With `--log` all goes to that file, appended, and an error's text also plainly to standard error. Without, only
//! errors go to standard error (and warnings when a person sits there): a container's standard error is rt's own, and
//! must get no byte that the container did not write.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, SubscriberBuilder};
use tracing_subscriber::registry::LookupSpan;

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Text,
    Json,
}

/// Where the log goes. Plain data.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    pub file: Option<PathBuf>,
    pub format: Format,
    pub debug: bool,
}

impl Settings {
    /// Starts the log of a command.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn start(&self) -> io::Result<()> {
        let level = match (&self.file, self.debug) {
            (_, true) => LevelFilter::DEBUG,
            (Some(_), false) => LevelFilter::INFO,
            (None, false) if io::stderr().is_terminal() => LevelFilter::WARN,
            (None, false) => LevelFilter::ERROR,
        };
        match &self.file {
            None => self.subscriber(level).with_writer(io::stderr).init(),
            Some(path) => self.subscriber(level).with_writer(Mutex::new(open(path)?)).init(),
        }
        Ok(())
    }

    /// Starts the log of a monitor in a process of its own: to the file or nowhere, since standard error
    /// is the container's.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn start_in_monitor(&self) -> io::Result<()> {
        let level = if self.debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
        if let Some(path) = &self.file {
            self.subscriber(level).with_writer(Mutex::new(open(path)?)).init();
        }
        Ok(())
    }

    /// Tells the error that ends rt: as the log's last line, and plainly where that line does not go to standard error.
    pub fn failure(&self, text: &str) {
        tracing::error!("{text}");
        if self.file.is_some() || !tracing::enabled!(Level::ERROR) {
            eprintln!("{text}");
        }
    }

    fn subscriber(&self, level: LevelFilter) -> SubscriberBuilder<DefaultFields, Logrus, LevelFilter> {
        tracing_subscriber::fmt().with_max_level(level).event_format(Logrus(self.format))
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// An error with its sources on one line, each said once.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

struct Logrus(Format);

impl<S, N> FormatEvent<S, N> for Logrus
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        // Of a library's words (which come through the `log` crate) only those that something is wrong are a user's.
        if event.metadata().target() == "log" && *event.metadata().level() > Level::WARN {
            return Ok(());
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        match self.0 {
            Format::Text => {
                write!(writer, "time=\"{time}\" level={level} msg={:?}", fields.message)?;
                for (name, value) in &fields.others {
                    write!(writer, " {name}={value:?}")?;
                }
                writeln!(writer)
            }
            Format::Json => {
                let mut object = serde_json::Map::new();
                object.insert("level".into(), level.into());
                object.insert("msg".into(), fields.message.into());
                object.insert("time".into(), time.into());
                object.extend(fields.others.into_iter().map(|(name, value)| (name.into(), value.into())));
                writeln!(writer, "{}", serde_json::Value::Object(object))
            }
        }
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = value.into(),
            name => self.others.push((name, value.into())),
        }
    }
}
