//! docker's daemon.json: the key `runtimes.rt`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::Error;

/// The file with the key, or without it. A file in which nothing would be left is none.
pub fn edit(path: &Path, before: Option<&str>, binary: &str, undo: bool) -> Result<Option<String>, Error> {
    let parse = |reason: String| Error::Parse { path: path.into(), reason };
    let text = before.filter(|text| !text.trim().is_empty()).unwrap_or("{}");
    let mut root: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| parse(error.to_string()))?;
    let runtimes = root.entry("runtimes").or_insert_with(|| json!({}));
    let runtimes = runtimes.as_object_mut().ok_or_else(|| parse("runtimes is no object".into()))?;
    let own = json!({"path": binary});
    let changed = match (runtimes.get("rt"), undo) {
        (None, true) => false,
        (Some(_), true) => runtimes.remove("rt").is_some(),
        (Some(value), false) if *value == own => false,
        (Some(_), false) => return Err(Error::Taken { path: path.into() }),
        (None, false) => runtimes.insert("rt".into(), own).is_none(),
    };
    if !changed {
        return Ok(before.map(str::to_owned));
    }
    if runtimes.is_empty() {
        root.remove("runtimes");
    }
    let text = serde_json::to_string_pretty(&root).expect("it was JSON") + "\n";
    Ok(Some(text).filter(|_| !root.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(before: &str, undo: bool) -> Result<Option<String>, Error> {
        super::edit(Path::new("daemon.json"), Some(before), "/opt/rt", undo)
    }

    #[test]
    fn other_settings_stay() {
        let before = "{\n  \"debug\": true,\n  \"runtimes\": {\n    \"kata\": {\n      \"path\": \"/k\"\n    }\n  }\n}\n";
        let after = edit(before, false).unwrap().unwrap();
        let value: Value = serde_json::from_str(&after).unwrap();
        assert_eq!(value["runtimes"], json!({"kata": {"path": "/k"}, "rt": {"path": "/opt/rt"}}));
        assert_eq!(edit(&after, true).unwrap().as_deref(), Some(before));
    }

    #[test]
    fn what_cannot_be_edited_is_told() {
        for bad in ["[]", "{", "{\"runtimes\": 1}"] {
            assert!(matches!(edit(bad, false), Err(Error::Parse { .. })), "{bad}");
        }
        assert!(matches!(
            edit("{\"runtimes\": {\"rt\": {\"path\": \"/x\"}}}", false),
            Err(Error::Taken { .. })
        ));
    }
}
