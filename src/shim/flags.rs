//! The shim's command line: Go's flags (`-name value`, `--name=value`), then one word for the action.

use std::ffi::OsString;

use super::Error;

/// What the shim is called for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Action {
    /// Print the address of a shim for a container.
    Start,
    /// Remove what a dead shim has left of a container.
    Delete,
    /// Be the shim; without a word, as containerd's own.
    #[default]
    Serve,
    Version,
}

/// containerd's arguments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    pub namespace: String,
    /// The container's ID.
    pub id: String,
    /// containerd's gRPC socket.
    pub address: String,
    /// containerd's binary, which publishes events where there is no ttRPC socket for them.
    pub publish_binary: String,
    /// The bundle's directory, where it is not the working directory.
    pub bundle: String,
    pub debug: bool,
    pub action: Action,
}

impl Flags {
    /// # Errors
    /// [`Error::Usage`]
    pub fn parse(arguments: &[OsString]) -> Result<Self, Error> {
        let mut flags = Self::default();
        let mut words = arguments.iter().map(|word| word.to_string_lossy());
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                flags.action = match word.as_ref() {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    other => return Err(Error::Usage(format!("{other:?} is no action of a shim"))),
                };
                break;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let is_on = value.as_deref() != Some("false");
            let place = match name {
                "debug" => {
                    flags.debug = is_on;
                    continue;
                }
                "v" | "version" => {
                    return Ok(Self { action: Action::Version, ..flags });
                }
                "namespace" => &mut flags.namespace,
                "id" => &mut flags.id,
                "address" => &mut flags.address,
                "publish-binary" => &mut flags.publish_binary,
                "bundle" => &mut flags.bundle,
                _ => return Err(Error::Usage(format!("-{name} is no flag of a shim"))),
            };
            let missing = || Error::Usage(format!("-{name} wants a value"));
            *place = value.or_else(|| words.next().map(Into::into)).ok_or_else(missing)?;
        }
        flags.checked()
    }

    /// Both become names of files.
    fn checked(self) -> Result<Self, Error> {
        for (name, value) in [("namespace", &self.namespace), ("id", &self.id)] {
            crate::container::validate(value)
                .map_err(|error| Error::Usage(format!("-{name} cannot be {value:?}: {error}")))?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, String> {
        let words: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
        Flags::parse(&words).map_err(|error| error.to_string())
    }

    #[test]
    fn containerds_lines_are_understood() {
        let start =
            "-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id a -debug start";
        let flags = parse(start).unwrap();
        assert_eq!((flags.namespace.as_str(), flags.id.as_str(), flags.debug), ("k8s.io", "a", true));
        assert_eq!((flags.action, flags.publish_binary.as_str()), (Action::Start, "/usr/bin/containerd"));
        let delete = parse("--namespace=default -id b -bundle /b delete").unwrap();
        assert_eq!((delete.action, delete.bundle.as_str()), (Action::Delete, "/b"));
        assert_eq!(parse("-namespace n -id i").unwrap().action, Action::Serve);
        assert_eq!(parse("-v").unwrap().action, Action::Version);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, word) in [
            ("-namespace n -id i frob", "\"frob\" is no action"),
            ("-frob", "-frob is no flag"),
            ("-namespace", "-namespace wants a value"),
            ("-id i start", "-namespace cannot be \"\""),
            ("-namespace n -id ../i start", "-id cannot be \"../i\""),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
