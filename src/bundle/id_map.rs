//! Mounts whose files have other owners than on disk (config.md, "POSIX-platform Mounts": uidMappings, gidMappings, idmap, ridmap).

use oci_spec::runtime::{Mount, Spec};

use super::is_bind;
use crate::sys::id_map::IdMap;

/// What a mount asks for; nothing for most. A mount that has no mappings of its own and asks for some gets those of the container's
/// user namespace.
///
/// # Errors
/// What is wrong with it, to stand behind the mount's name. Rules are runc's.
pub fn id_map(mount: &Mount, spec: &Spec) -> Result<Option<IdMap>, &'static str> {
    let option = |name: &str| mount.options().iter().flatten().any(|option| option == name);
    let recursive = option("ridmap");
    let own = (mount.uid_mappings().clone(), mount.gid_mappings().clone());
    let given =
        |(uids, gids): (Option<Vec<_>>, Option<Vec<_>>)| (uids.unwrap_or_default(), gids.unwrap_or_default());
    let (mut uids, mut gids) = given(own);
    if uids.is_empty() != gids.is_empty() {
        return Err("has only one of uidMappings and gidMappings; give both");
    }
    if uids.is_empty() && !recursive && !option("idmap") {
        return Ok(None);
    }
    if !is_bind(mount) {
        return Err("has other owners (idmap) and is no bind mount, which alone can have them");
    }
    if uids.is_empty() {
        let linux = spec.linux().as_ref();
        let of_container = linux.map(|linux| (linux.uid_mappings().clone(), linux.gid_mappings().clone()));
        (uids, gids) = given(of_container.unwrap_or_default());
    }
    if uids.is_empty() || gids.is_empty() {
        return Err(
            "is to have other owners (idmap), and neither it nor the container has uidMappings and gidMappings",
        );
    }
    Ok(Some(IdMap { uids, gids, recursive }))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn asked(mount: Value, linux: Value) -> Result<Option<IdMap>, &'static str> {
        let spec: Spec = serde_json::from_value(json!({"ociVersion": "1.2.0", "linux": linux})).unwrap();
        id_map(&serde_json::from_value(mount).unwrap(), &spec)
    }

    #[test]
    fn mappings_are_the_mounts_own_or_the_containers() {
        let ids = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
        let mount = |options: &[&str], more: Value| {
            let mut mount = json!({"destination": "/m", "source": "/s", "type": "bind", "options": options});
            mount.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            mount
        };
        let both = json!({"uidMappings": ids, "gidMappings": ids});
        assert_eq!(asked(mount(&[], json!({})), both.clone()), Ok(None));
        let own = asked(mount(&["ridmap"], both.clone()), json!({})).unwrap().unwrap();
        assert!(own.recursive && own.uids == own.gids && own.uids[0].host_id() == 1000);
        let of_container = asked(mount(&["idmap"], json!({})), both.clone()).unwrap().unwrap();
        assert_eq!(of_container, IdMap { recursive: false, ..own });
        // Asked for by the mappings alone.
        assert!(asked(mount(&[], both.clone()), json!({})).unwrap().is_some());
        for (wrong, linux) in [
            (mount(&["idmap"], json!({})), json!({})),
            (mount(&["idmap"], json!({"uidMappings": ids})), both.clone()),
            (json!({"destination": "/m", "type": "tmpfs", "options": ["idmap"]}), both.clone()),
        ] {
            assert!(asked(wrong, linux).is_err());
        }
    }
}
