//! What rt says when the command line is wrong, and how it tells its version.
//!
//! As runc: bad usage is told with the verb's help on standard output, the reason is the error like any other, and
//! older callers count the lines of `--version`. Called as `kata-runtime` or `kata`, that is that program's form.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, ValueEnum};

use super::{Arguments, COMMIT, FAILURE, SPEC_VERSION, write_out};
use crate::log;

/// Three lines after the name, which clap puts before.
pub fn version() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        format!("version {}\ncommit: {COMMIT}\nspec: {SPEC_VERSION}", env!("CARGO_PKG_VERSION"))
    });
    &TEXT
}

/// The three lines of Kata Containers 1.x.
fn kata_version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!("kata-runtime  : {version}\n   commit   : {COMMIT}\n   OCI specs: {SPEC_VERSION}\n")
}

/// Whether rt was called by a name of Kata Containers' runtime.
pub fn is_kata(program: Option<&OsString>) -> bool {
    let name = program.and_then(|program| Path::new(program).file_name());
    name.is_some_and(|name| name == "kata-runtime" || name == "kata")
}

/// Answers a command line that names nothing to do: help and version, or why it is wrong.
pub fn answer(arguments: &[OsString], answer: &clap::Error) -> ExitCode {
    // As runc, for which no verb at all is a question.
    let is_question = matches!(
        answer.kind(),
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    let is_wrong = answer.use_stderr() && !is_question;
    let text = match answer.kind() {
        ErrorKind::DisplayVersion if is_kata(arguments.first()) => kata_version(),
        _ if is_question => help(arguments),
        _ if is_wrong => format!("Incorrect Usage.\n\n{}", help(arguments)),
        ErrorKind::DisplayHelp => match command().try_get_matches_from(arguments) {
            Err(help) => help.to_string(),
            Ok(_) => answer.to_string(),
        },
        _ => answer.to_string(),
    };
    // Nobody reads: then nobody misses it.
    let _ = write_out(&text);
    if !is_wrong {
        return ExitCode::SUCCESS;
    }
    let settings = log_settings(arguments);
    // A log that cannot be written must not hide why rt was called wrongly.
    let settings = match settings.start() {
        Ok(()) => settings,
        Err(_) => log::Settings { file: None, ..settings },
    };
    settings.failure(&reason(answer));
    ExitCode::from(FAILURE)
}

/// The command line, with help in runc's form, which begins with the name: `rt state - …`. Made only where somebody reads it.
fn command() -> clap::Command {
    fn in_form(command: clap::Command, name: &str) -> clap::Command {
        const FORM: &str = "NAME:\n   {name} - {about-with-newline}\nUSAGE:\n   {usage}\n\n{all-args}";
        let command = command.help_template(FORM).display_name(name.to_owned());
        command.mut_subcommands(|verb| {
            let name = format!("{name} {}", verb.get_name());
            in_form(verb, &name)
        })
    }
    let mut command = Arguments::command();
    // Until then its verbs are names.
    command.build();
    in_form(command, "rt")
}

/// clap's reason in one line, without its label and its hints on usage.
fn reason(error: &clap::Error) -> String {
    if let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidSubcommand) {
        return format!("No help topic for '{name}'");
    }
    let text = error.to_string();
    let reason = text.split("\n\nUsage:").next().unwrap_or(&text);
    let reason = reason.split("\n\nFor more information").next().unwrap_or(reason);
    let words: Vec<&str> = reason.trim_start_matches("error: ").split_whitespace().collect();
    words.join(" ")
}

/// The help of the verb that was called, else rt's.
fn help(arguments: &[OsString]) -> String {
    let command = command();
    let called = arguments.iter().skip(1).find_map(|word| command.find_subcommand(word).cloned());
    called.unwrap_or(command).render_help().to_string()
}

/// Where the error is to go, read from arguments that clap did not understand as a whole.
fn log_settings(arguments: &[OsString]) -> log::Settings {
    let value = |flag: &str| -> Option<&OsStr> {
        arguments.iter().enumerate().find_map(|(index, word)| {
            let rest = word.to_str()?.strip_prefix(flag)?;
            match rest.strip_prefix('=') {
                Some(value) => Some(OsStr::new(value)),
                None if rest.is_empty() => arguments.get(index + 1).map(OsString::as_os_str),
                None => None,
            }
        })
    };
    let format = value("--log-format").and_then(OsStr::to_str);
    log::Settings {
        file: value("--log").map(Into::into),
        format: format.and_then(|text| log::Format::from_str(text, false).ok()).unwrap_or(log::Format::Text),
        debug: false,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn parse(words: &[OsString]) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(words)
    }

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(Into::into).collect()
    }

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn reasons_fit_one_line() {
        let error = parse(&words("rt state")).unwrap_err();
        assert_eq!(reason(&error), "the following required arguments were not provided: <ID>");
        let error = parse(&words("rt list -f xml")).unwrap_err();
        assert!(reason(&error).starts_with("invalid value 'xml' for '--format"), "{}", reason(&error));
        let error = parse(&words("rt frob -h")).unwrap_err();
        assert_eq!(reason(&error), "No help topic for 'frob'");
    }

    #[test]
    fn options_stand_before_and_after_the_id_and_with_an_equals_sign() {
        for line in ["rt delete --force a", "rt delete a --force", "rt --root=/r --log=/l delete -f a"] {
            assert!(parse(&words(line)).is_ok(), "{line}");
        }
        for line in ["rt create --bundle /b --pid-file=/p a", "rt create a -b /b --pid-file /p"] {
            assert!(parse(&words(line)).is_ok(), "{line}");
        }
    }

    #[test]
    fn help_is_that_of_the_verb() {
        assert!(help(&words("rt --root /r kill")).starts_with("NAME:\n   rt kill - Send a signal "));
        assert!(help(&words("rt frob")).contains("\n\nUSAGE:\n   rt [OPTIONS] <COMMAND>\n\n"));
    }

    #[test]
    fn the_log_is_found_in_a_wrong_line() {
        let settings = log_settings(&words("rt --log /l --log-format=json frob"));
        assert_eq!((settings.file, settings.format), (Some("/l".into()), log::Format::Json));
    }

    #[test]
    fn the_name_decides_the_form_of_the_version() {
        assert!(is_kata(Some(&"/usr/bin/kata-runtime".into())) && is_kata(Some(&"kata".into())));
        assert!(!is_kata(Some(&"/usr/bin/rt".into())) && !is_kata(None));
        assert_eq!(kata_version().lines().count(), 3);
        assert_eq!(version().lines().count(), 3);
    }
}
