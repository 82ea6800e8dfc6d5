//! containerd's config.toml: a block at its end, between two marks. A table may come anywhere in TOML, so that what stands
//! before needs no change. The CRI plugin is called otherwise in each version of the file.

use std::path::Path;

use toml::{Table, Value};

use super::Error;

const BEGIN: &str = "# rt install containerd: begin; rt install containerd --undo removes this block";
const END: &str = "# rt install containerd: end";

/// The file with rt's block as it is to be, or without it. A file that would be empty is none.
pub fn edit(path: &Path, before: Option<&str>, binary: &str, undo: bool) -> Result<Option<String>, Error> {
    let rest = without_block(before.unwrap_or_default());
    if undo {
        return Ok(Some(rest).filter(|rest| before.is_some() && !rest.trim().is_empty()));
    }
    let parse =
        |reason: &dyn std::fmt::Display| Error::Parse { path: path.into(), reason: reason.to_string() };
    let table: Table = rest.parse().map_err(|error| parse(&error))?;
    let version = table.get("version").map_or(Some(1), Value::as_integer);
    // Where nothing is said yet, the version is part of the block.
    let (version, head) = match version {
        _ if table.is_empty() => (2, "version = 2\n"),
        Some(version @ 1..=3) => (version, ""),
        _ => return Err(parse(&"its version is none of 1, 2 and 3")),
    };
    let plugin = match version {
        1 => "cri",
        2 => "io.containerd.grpc.v1.cri",
        _ => "io.containerd.cri.v1.runtime",
    };
    let runtimes = ["plugins", plugin, "containerd", "runtimes", "rt"];
    let found = runtimes.iter().try_fold(&Value::Table(table.clone()), |value, key| value.get(key)).is_some();
    if found {
        return Err(Error::Taken { path: path.into() });
    }
    let mut text = rest;
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    let name = format!("plugins.\"{plugin}\".containerd.runtimes.rt");
    text.push_str(&format!(
        "{BEGIN}\n{head}[{name}]\n  runtime_type = \"io.containerd.runc.v2\"\n  privileged_without_host_devices = true\n  [{name}.options]\n    BinaryName = \"{binary}\"\n    Root = \"/run/rt\"\n{END}\n"
    ));
    Ok(Some(text))
}

fn without_block(text: &str) -> String {
    let Some((before, rest)) = text.split_once(BEGIN) else { return text.into() };
    let after = rest.split_once(END).map_or("", |(_, after)| after.strip_prefix('\n').unwrap_or(after));
    format!("{before}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(before: &str, undo: bool) -> Result<Option<String>, Error> {
        super::edit(Path::new("config.toml"), Some(before), "/opt/rt", undo)
    }

    #[test]
    fn each_version_has_its_plugin_and_comes_back() {
        for (text, plugin) in [
            ("root = '/r'\n[plugins.cri]\n", "cri"),
            ("version = 2\n[plugins.'io.containerd.grpc.v1.cri']\n  x = 1\n", "io.containerd.grpc.v1.cri"),
            ("version = 3\n", "io.containerd.cri.v1.runtime"),
            ("version = 2\n", "io.containerd.grpc.v1.cri"),
            ("# nothing is set\n", "io.containerd.grpc.v1.cri"),
        ] {
            let after = edit(text, false).unwrap().unwrap();
            let table: Table = after.parse().unwrap();
            let options = &table["plugins"][plugin]["containerd"]["runtimes"]["rt"]["options"];
            assert_eq!(options["BinaryName"].as_str(), Some("/opt/rt"), "{after}");
            // Those of the host mean nothing in a virtual machine.
            assert_eq!(table.get("version").is_none(), plugin == "cri", "{after}");
            assert!(after.contains("\n  privileged_without_host_devices = true\n"), "{after}");
            assert_eq!(edit(&after, false).unwrap().as_ref(), Some(&after));
            assert_eq!(edit(&after, true).unwrap().as_deref(), Some(text));
        }
    }

    #[test]
    fn what_is_not_its_own_is_left_alone() {
        let own =
            "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.rt]\nruntime_type = 'x'\n";
        assert!(matches!(edit(own, false), Err(Error::Taken { .. })));
        assert_eq!(edit(own, true).unwrap().as_deref(), Some(own));
        assert!(matches!(edit("version = \n", false), Err(Error::Parse { .. })));
        assert!(matches!(edit("version = 9\n", false), Err(Error::Parse { .. })));
    }
}
