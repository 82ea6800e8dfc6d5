//! Puts the layers of a configuration on top of each other, and remembers where each value came from.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::settings::{self, Setting};
use super::{Config, Error};
use crate::sys::text::printable;

/// Of a wrong key or value, what a message shows.
const MAX_SHOWN: usize = 200;

/// A setting that a flag gives.
#[derive(Debug, Clone)]
pub struct Flag {
    pub key: &'static str,
    pub value: Value,
    /// As it is written, for messages.
    pub name: &'static str,
}

/// A configuration in the making.
pub struct Layers {
    table: Table,
}

/// The configuration as TOML has it.
pub fn table(config: &Config) -> Table {
    Table::try_from(config).expect("a configuration is a table; a test says so")
}

/// The value of `section.key`.
pub fn get<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    let (section, key) = key.split_once('.')?;
    table.get(section)?.get(key)
}

impl Layers {
    /// Starts from the defaults.
    pub fn new() -> Result<Self, Error> {
        Ok(Self { table: table(&Config::default()) })
    }

    /// Goes on from a configuration.
    pub fn on(config: &Config) -> Self {
        Self { table: table(config) }
    }

    /// The main file, where there is one.
    pub fn file_if_any(&mut self, path: &Path) -> Result<(), Error> {
        match self.file(path) {
            Err(Error::Read { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// A file of settings.
    pub fn file(&mut self, path: &Path) -> Result<(), Error> {
        let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => self.text(path, text),
            Err(error) => {
                let (line, column) = place(&String::from_utf8_lossy(&bytes), error.valid_up_to());
                Err(Error::Syntax { path: path.into(), line, column, reason: "not UTF-8".into() })
            }
        }
    }

    /// `config.d/*.toml` beside the main file, by name.
    pub fn drop_ins(&mut self, main: &Path) -> Result<(), Error> {
        let folder = main.parent().unwrap_or(Path::new("/")).join("config.d");
        let failed = |source| Error::Read { path: folder.clone(), source };
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) => {
                return Ok(());
            }
            other => other.map_err(failed)?,
        };
        let paths: Result<Vec<PathBuf>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
        let mut paths = paths.map_err(failed)?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
        paths.sort();
        paths.iter().try_for_each(|path| self.file(path))
    }

    fn text(&mut self, path: &Path, text: &str) -> Result<(), Error> {
        let syntax = |error: toml::de::Error| {
            let (line, column) = place(text, error.span().map_or(0, |span| span.start));
            Error::Syntax { path: path.into(), line, column, reason: error.message().replace('\n', " ") }
        };
        // Once for the places, once for the values.
        let places = DeTable::parse(text).map_err(syntax)?;
        let values: Table = text.parse().map_err(syntax)?;
        let at = |start| format!("{}:{}", path.display(), place(text, start).0);
        let mut found = Vec::new();
        for (section, content) in places.get_ref() {
            let (name, start) = (section.get_ref().as_ref(), section.span().start);
            match content.get_ref() {
                DeValue::Table(keys) if settings::sections().contains(&name) => {
                    let keys =
                        keys.iter().map(|(key, _)| (key.span().start, name, Some(key.get_ref().as_ref())));
                    found.extend(keys);
                }
                _ => found.push((start, name, None)),
            }
        }
        // What is wrong first is told first.
        found.sort_unstable();
        for (start, section, key) in found {
            let key = key.map_or_else(|| section.to_owned(), |key: &str| format!("{section}.{key}"));
            let setting = settings::find(&key).ok_or_else(|| unknown(at(start), &key))?;
            let value = get(&values, &key).expect("it was found in the same text");
            self.set(setting, setting.take(value), &value.to_string(), at(start))?;
        }
        Ok(())
    }

    /// `RT_SECTION_KEY` of the environment. Other variables that begin with `RT_` are somebody else's.
    pub fn environment(
        &mut self,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<(), Error> {
        let mut ours: Vec<(String, OsString)> = variables
            // Most are not, and every call of rt looks at all of them.
            .filter(|(name, _)| name.as_encoded_bytes().starts_with(b"RT_"))
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| {
                let rest = &name["RT_".len()..];
                settings::sections().iter().any(|section| {
                    rest.strip_prefix(&section.to_uppercase()).is_some_and(|rest| rest.starts_with('_'))
                })
            })
            .collect();
        ours.sort();
        for (name, value) in ours {
            let origin = format!("environment {name}");
            let Some(setting) = settings::SETTINGS.iter().find(|setting| setting.variable() == name) else {
                let key = name["RT_".len()..].to_lowercase().replacen('_', ".", 1);
                return Err(unknown(origin, &key));
            };
            let text = value.to_string_lossy();
            self.set(setting, setting.parse(&text), &format!("{text:?}"), origin)?;
        }
        Ok(())
    }

    pub fn flags(&mut self, flags: &[Flag]) -> Result<(), Error> {
        for flag in flags {
            let setting = settings::find(flag.key).expect("flags set what there is; a test says so");
            self.set(
                setting,
                setting.take(&flag.value),
                &flag.value.to_string(),
                format!("flag {}", flag.name),
            )?;
        }
        Ok(())
    }

    /// Sets one value, or leaves its setting open.
    pub fn set(
        &mut self,
        setting: &'static Setting,
        taken: Result<Option<Value>, String>,
        shown: &str,
        origin: String,
    ) -> Result<(), Error> {
        let taken = taken.map_err(|wanted| {
            let (origin, key) = (origin.clone(), setting.key.into());
            Error::Value { origin, key, value: printable(shown, MAX_SHOWN), wanted }
        })?;
        let (section, key) = setting.key.split_once('.').expect("keys have a section");
        let mut put = |section: &str, key: &str, value: Option<Value>| {
            let section = self.table.entry(section).or_insert_with(|| Table::new().into());
            let Some(section) = section.as_table_mut() else { return };
            match value {
                Some(value) => drop(section.insert(key.into(), value)),
                None => drop(section.remove(key)),
            }
        };
        put(section, key, taken);
        put("origins", setting.key, Some(origin.into()));
        Ok(())
    }

    /// The configuration that the layers make.
    pub fn finish(self) -> Result<Config, Error> {
        let config: Config =
            self.table.try_into().map_err(|error: toml::de::Error| Error::Shape(error.message().into()))?;
        config.check()
    }
}

fn unknown(origin: String, key: &str) -> Error {
    let hint = match (settings::sections().contains(&key), settings::nearest_section(key)) {
        (true, _) => format!("{key} is a section: write [{key}] and its settings below"),
        (false, Some(section)) => format!("the nearest is the section [{section}]"),
        (false, None) => format!("the nearest is {}", settings::nearest(key)),
    };
    Error::Unknown { origin, key: printable(key, MAX_SHOWN), hint }
}

/// Line and column, from 1.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |end| end + 1);
    (before.matches('\n').count() + 1, before[start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AgentLog, SETTINGS};
    use crate::hypervisor::Kind;

    fn parse(text: &str) -> Result<Config, String> {
        let mut layers = Layers::new().unwrap();
        let result = layers.text(Path::new("c.toml"), text).and_then(|()| layers.finish());
        result.map_err(|error| error.to_string())
    }

    fn environment(variables: &[(&str, &str)]) -> Result<Config, String> {
        let mut layers = Layers::new().unwrap();
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        let result = layers.environment(variables).and_then(|()| layers.finish());
        result.map_err(|error| error.to_string())
    }

    #[test]
    fn empty_file_means_the_defaults() {
        assert_eq!(parse(""), Ok(Config::default()));
        assert_eq!(parse("[agent]\n"), Ok(Config::default()));
    }

    /// Of a setting with this form, a value that is allowed.
    fn example(setting: &Setting) -> Value {
        use crate::config::settings::Form;
        match setting.form {
            // This build has none.
            Form::Flag => (setting.key != "share.dax").into(),
            Form::Number(_, most) => most.into(),
            Form::Text | Form::Path => "/x".into(),
            Form::Word(words) => words[words.len() - 1].into(),
            Form::Annotations => Value::Array(vec!["kernel_params".into()]),
        }
    }

    #[test]
    fn every_setting_is_one_of_the_configuration_and_the_other_way_round() {
        let mut layers = Layers::new().unwrap();
        for setting in SETTINGS {
            let value = example(setting);
            layers.set(setting, setting.take(&value), "", "test".into()).unwrap();
        }
        let config = layers.finish().unwrap();
        for entry in config.entries() {
            assert_eq!(
                (entry.value, entry.origin.as_str()),
                (example(settings::find(entry.key).unwrap()), "test")
            );
        }
        for (section, content) in table(&config) {
            for key in content.as_table().unwrap().keys().filter(|_| section != "origins") {
                assert!(
                    settings::find(&format!("{section}.{key}")).is_some(),
                    "{section}.{key} is in no list"
                );
            }
        }
    }

    #[test]
    fn unknown_keys_are_named_with_their_line_and_the_nearest() {
        assert_eq!(
            parse("# text\n[hypervisor]\nmemory = 3\n").unwrap_err(),
            "c.toml:3: there is no setting hypervisor.memory; the nearest is hypervisor.memory_mib"
        );
        assert_eq!(
            parse("vcpus = 3\n").unwrap_err(),
            "c.toml:1: there is no setting vcpus; the nearest is hypervisor.vcpus"
        );
        assert!(
            parse("[agents]\ntimeout_ms = 3\n")
                .unwrap_err()
                .starts_with("c.toml:1: there is no setting agents;")
        );
        assert!(parse("\n\nagent = 3\n").unwrap_err().contains("c.toml:3: "));
        assert!(parse("[origins]\n").is_err());
        let error = parse("[hypervisr]\nvcpus = 2\n").unwrap_err();
        assert_eq!(error, "c.toml:1: there is no setting hypervisr; the nearest is the section [hypervisor]");
        // The first in the file, not in the alphabet.
        assert!(parse("[runtime]\nx = 1\n[agent]\nx = 1\n").unwrap_err().starts_with("c.toml:2: "));
    }

    #[test]
    fn wrong_values_are_named_with_their_line() {
        for (text, message) in [
            (
                "[hypervisor]\nvcpus = 33\n",
                "c.toml:2: hypervisor.vcpus is 33, but has to be a whole number from 1 to 32",
            ),
            (
                "hypervisor.vcpus = 'two'\n",
                "c.toml:1: hypervisor.vcpus is \"two\", but has to be a whole number from 1 to 32",
            ),
            (
                "[hypervisor]\n\nkernel = 'k'",
                "c.toml:3: hypervisor.kernel is \"k\", but has to be an absolute path",
            ),
            ("[hypervisor]\nconsole = 1", "c.toml:2: hypervisor.console is 1, but has to be true or false"),
            (
                "[share]\ndax = true",
                "share.dax is true (c.toml:2), but this build of rt has not got a DAX window; leave it out: the guest keeps files in \
                 its own page cache, as share.cache says",
            ),
            (
                "[share]\ncache = {}",
                "c.toml:2: share.cache is {}, but has to be \"always\" or \"auto\" or \"never\"",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err(), message);
        }
    }

    #[test]
    fn absurd_values_are_cut_short() {
        let error = parse(&format!("hypervisor.kernel_parameters = '{}'", "x".repeat(100_000))).unwrap_err();
        assert!(error.contains("at most 1024 bytes") && error.len() < 500, "{error}");
        assert!(parse(&format!("{} = 1", "x".repeat(100_000))).unwrap_err().len() < 500);
    }

    #[test]
    fn broken_toml_is_told_with_its_place() {
        let error = parse("[hypervisor]\nvcpus = = 2\n").unwrap_err();
        assert!(error.starts_with("c.toml:2:9: this is no TOML: ") && !error.contains('\n'), "{error}");
        let error = parse("[agent]\n[agent]\n").unwrap_err();
        assert!(error.starts_with("c.toml:2:"), "{error}");
    }

    #[test]
    fn contradictions_name_both_sides() {
        assert_eq!(
            parse("[hypervisor]\nvcpus = 4\nmax_vcpus = 2\n").unwrap_err(),
            "hypervisor.vcpus is 4 (c.toml:2), but hypervisor.max_vcpus is 2 (c.toml:3); lower the first or raise the second"
        );
        assert_eq!(
            parse("[hypervisor]\nmax_memory_mib = 128\n").unwrap_err(),
            "hypervisor.memory_mib is 256 (default), but hypervisor.max_memory_mib is 128 (c.toml:2); lower the first or raise \
             the second"
        );
        let error = parse("[hypervisor]\nkernel = '/k'\n").unwrap_err();
        assert!(
            error.contains("/k (c.toml:2)") && error.contains("hypervisor.initramfs is not set"),
            "{error}"
        );
    }

    #[test]
    fn the_environment_names_sections_and_keys() {
        let config = environment(&[
            ("RT_HYPERVISOR_KIND", "qemu"),
            ("RT_AGENT_LOG_LEVEL", "debug"),
            ("RT_RUNTIME_ENABLE_ANNOTATIONS", "kernel_params, default_vcpus"),
            ("RT_BIN", "/bin/rt"),
            ("RT_AGENTS", "somebody else's"),
            ("PATH", "/bin"),
        ])
        .unwrap();
        assert_eq!((config.hypervisor.kind, config.agent.log_level), (Some(Kind::Qemu), AgentLog::Debug));
        assert_eq!(config.runtime.enable_annotations, ["kernel_params", "default_vcpus"]);
        assert_eq!(config.origin("hypervisor.kind"), "environment RT_HYPERVISOR_KIND");
        assert_eq!(
            environment(&[("RT_HYPERVISOR_VCPU", "2")]).unwrap_err(),
            "environment RT_HYPERVISOR_VCPU: there is no setting hypervisor.vcpu; the nearest is hypervisor.vcpus"
        );
        assert_eq!(
            environment(&[("RT_HYPERVISOR_VCPUS", "many")]).unwrap_err(),
            "environment RT_HYPERVISOR_VCPUS: hypervisor.vcpus is \"many\", but has to be a whole number from 1 to 32"
        );
    }

    #[test]
    fn later_layers_win_and_say_so() {
        let root = tempfile::tempdir().unwrap();
        let main = root.path().join("config.toml");
        let write = |name: &str, text: &str| std::fs::write(root.path().join(name), text).unwrap();
        write("config.toml", "[hypervisor]\nvcpus = 2\nmemory_mib = 512\nkind = 'qemu'\nconsole = true\n");
        std::fs::create_dir(root.path().join("config.d")).unwrap();
        write("config.d/20-more.toml", "hypervisor.vcpus = 4\n");
        write("config.d/10-first.toml", "hypervisor.vcpus = 3\nhypervisor.memory_mib = 768\n");
        write("config.d/README", "no setting = at all");
        let mut layers = Layers::new().unwrap();
        layers.file(&main).unwrap();
        layers.drop_ins(&main).unwrap();
        layers.environment([("RT_HYPERVISOR_KIND".into(), "kvm".into())].into_iter()).unwrap();
        let flag = Flag { key: "hypervisor.kind", value: "auto".into(), name: "--hypervisor" };
        layers.flags(&[flag]).unwrap();
        let config = layers.finish().unwrap();
        assert_eq!(
            (config.hypervisor.vcpus, config.hypervisor.memory_mib, config.hypervisor.kind),
            (4, 768, None)
        );
        let origin = |key: &str| config.origin(key).replace(root.path().to_str().unwrap(), "");
        assert_eq!(origin("hypervisor.vcpus"), "/config.d/20-more.toml:1");
        assert_eq!(origin("hypervisor.memory_mib"), "/config.d/10-first.toml:2");
        assert_eq!(origin("hypervisor.console"), "/config.toml:5");
        assert_eq!(origin("hypervisor.kind"), "flag --hypervisor");
        assert_eq!(origin("agent.timeout_ms"), "default");
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let mut layers = Layers::new().unwrap();
        let missing = root.path().join("config.toml");
        assert!(layers.file_if_any(&missing).is_ok() && layers.drop_ins(&missing).is_ok());
        assert!(matches!(layers.file(&missing), Err(Error::Read { .. })));
        assert!(matches!(layers.file_if_any(root.path()), Err(Error::Read { .. })));
        std::fs::create_dir_all(root.path().join("config.d/folder.toml")).unwrap();
        let error = layers.drop_ins(&missing).unwrap_err().to_string();
        assert!(error.contains("folder.toml"), "{error}");
    }
}
