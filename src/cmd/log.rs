//! The log, in logrus' two forms, since runc's callers read it.
//!
//! With `--log` all goes to that file, appended, and an error's text also plainly to standard error. Without, only
//! errors go to standard error (and warnings when a person sits there): a container's standard error is rt's own, and
//! must get no byte that the container did not write.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::sync::Mutex;
use std::time::SystemTime;

use anyhow::Context;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::{Global, LogFormat};

/// Sends the log where the flags say.
pub fn start(global: &Global) -> anyhow::Result<()> {
    let level = match (&global.log, global.debug) {
        (_, true) => LevelFilter::DEBUG,
        (Some(_), false) => LevelFilter::INFO,
        (None, false) if io::stderr().is_terminal() => LevelFilter::WARN,
        (None, false) => LevelFilter::ERROR,
    };
    let log = tracing_subscriber::fmt().with_max_level(level).event_format(Logrus(global.log_format));
    match &global.log {
        None => log.with_writer(io::stderr).init(),
        Some(path) => {
            let file = OpenOptions::new().append(true).create(true).open(path);
            let file = file.with_context(|| format!("cannot open the log file {}", path.display()))?;
            log.with_writer(Mutex::new(file)).init();
        }
    }
    Ok(())
}

/// Tells the error that ends rt.
pub fn failure(global: &Global, text: &str) {
    tracing::error!("{text}");
    if global.log.is_some() || !tracing::enabled!(Level::ERROR) {
        eprintln!("{text}");
    }
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

struct Logrus(LogFormat);

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
            LogFormat::Text => {
                write!(writer, "time=\"{time}\" level={level} msg={:?}", fields.message)?;
                for (name, value) in &fields.others {
                    write!(writer, " {name}={value:?}")?;
                }
                writeln!(writer)
            }
            LogFormat::Json => {
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
