//! containerd's config.toml: a block at its end, between two marks. A table may come anywhere in TOML, so that what stands
//! before needs no change. The CRI plugin is called otherwise in each version of the file.
//!
//! The block names shim v2 by its type, for which containerd executes `containerd-shim-rt-v2`: a link to rt. It lies where
//! containerd's plugin `opt`, in 1.x as in 2.x, makes a directory the first of containerd's own PATH ([`folder`]): neither its unit's PATH nor a
//! read-only /usr stands in the way. A path in `runtime_type` or `runtime_path` would do from 1.6 on only, and the type would mean nothing to ctr.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::Error;
use crate::shim;

/// Of the plugin `opt`, where its configuration names no other.
const OPT: &str = "/opt/containerd";
/// The plugin, in version 1 of the file and in the others.
const OPT_PLUGINS: [&str; 2] = ["opt", "io.containerd.internal.v1.opt"];

const BEGIN: &str = "# rt install containerd: begin; rt install containerd --undo removes this block";
const END: &str = "# rt install containerd: end";

/// The file with rt's block as it is to be, or without it. A file that would be empty is none.
pub fn edit(path: &Path, before: Option<&str>, undo: bool) -> Result<Option<String>, Error> {
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
        "{BEGIN}\n{head}[{name}]\n  runtime_type = \"{}\"\n  privileged_without_host_devices = true\n{END}\n",
        shim::TYPE
    ));
    Ok(Some(text))
}

/// The shim's link, as containerd sees it, for a configuration of this text.
pub fn link(text: Option<&str>) -> PathBuf {
    let table = text.and_then(|text| text.parse().ok()).unwrap_or_default();
    Path::new(&folder(&table)).join(shim::NAMES[0])
}

/// The folder of programs that a containerd with this configuration has in its PATH whoever starts it.
pub fn folder(table: &Table) -> String {
    let is_off = |name: &Value| name.as_str().is_some_and(|name| OPT_PLUGINS.contains(&name));
    if table.get("disabled_plugins").and_then(Value::as_array).is_some_and(|names| names.iter().any(is_off)) {
        return "/usr/local/bin".into();
    }
    let plugins = table.get("plugins");
    let path = OPT_PLUGINS.iter().find_map(|plugin| plugins?.get(plugin)?.get("path")?.as_str());
    format!("{}/bin", path.filter(|path| path.starts_with('/')).unwrap_or(OPT).trim_end_matches('/'))
}

/// Whether the file has the block.
pub fn is_wired(text: Option<&str>) -> bool {
    text.is_some_and(|text| text.contains(BEGIN))
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
        super::edit(Path::new("config.toml"), Some(before), undo)
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
            let runtime = &table["plugins"][plugin]["containerd"]["runtimes"]["rt"];
            assert_eq!(runtime["runtime_type"].as_str(), Some("io.containerd.rt.v2"), "{after}");
            // Those of the host mean nothing in a virtual machine.
            assert_eq!(runtime["privileged_without_host_devices"].as_bool(), Some(true), "{after}");
            assert_eq!(table.get("version").is_none(), plugin == "cri", "{after}");
            assert_eq!(edit(&after, false).unwrap().as_ref(), Some(&after));
            assert_eq!(edit(&after, true).unwrap().as_deref(), Some(text));
        }
    }

    #[test]
    fn the_link_lies_where_containerd_looks() {
        let name = "containerd-shim-rt-v2";
        for (text, folder) in [
            ("version = 2\n", "/opt/containerd/bin"),
            ("[plugins.opt]\npath = '/srv/c/'\n", "/srv/c/bin"),
            ("version = 3\n[plugins.'io.containerd.internal.v1.opt']\npath = '/o'\n", "/o/bin"),
            ("disabled_plugins = ['x', 'io.containerd.internal.v1.opt']\n", "/usr/local/bin"),
        ] {
            assert_eq!(link(Some(text)), Path::new(folder).join(name), "{text}");
        }
        assert_eq!(link(None), Path::new("/opt/containerd/bin").join(name));
    }

    #[test]
    fn an_older_rts_block_is_replaced() {
        let old = format!("version = 2\n{BEGIN}\n[x]\n  runtime_type = \"io.containerd.runc.v2\"\n{END}\n");
        let after = edit(&old, false).unwrap().unwrap();
        assert!(!after.contains("runc") && after.contains("io.containerd.rt.v2"), "{after}");
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
