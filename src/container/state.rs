//! A container as the command line shows it: `rt state`, `rt list`, and what hooks read on their standard input.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Serialize;

use super::record::{Record, Status};

/// runc's `state` JSON, field by field.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StateView {
    pub oci_version: String,
    pub id: String,
    /// The monitor; 0 once it has ended.
    pub pid: i32,
    pub status: Status,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    pub created: String,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    pub annotations: HashMap<String, String>,
    pub owner: String,
}

impl StateView {
    /// The state now.
    pub fn of(record: &Record) -> Self {
        let status = record.status();
        let pid = match (status, record.monitor) {
            (Status::Stopped, _) | (_, None) => 0,
            (_, Some(monitor)) => monitor.pid,
        };
        Self {
            oci_version: record.oci_version.clone(),
            id: record.id.clone(),
            pid,
            status,
            bundle: record.bundle.clone(),
            rootfs: record.rootfs.clone(),
            created: record.created.clone(),
            annotations: record.annotations.clone(),
            owner: String::new(),
        }
    }

    /// What a hook reads: the runtime-spec's state, runtime.md#state.
    pub fn for_hook(record: &Record, status: Status) -> String {
        let state = Self::of(record);
        serde_json::json!({
            "ociVersion": state.oci_version,
            "id": state.id,
            "status": status,
            "pid": if status == Status::Stopped { 0 } else { state.pid },
            "bundle": state.bundle,
            "annotations": state.annotations,
        })
        .to_string()
    }
}
