//! Mounts of config.json: those of the guest's own kernel, and those that the host serves.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::json;

use crate::shell::Bundle;

#[test]
fn file_systems_of_the_guest_have_their_options() {
    let mut bundle = Bundle::new();
    bundle.mount("/t", "tmpfs", "tmpfs", &["nosuid", "nodev", "noexec", "size=1024k", "mode=1750", "uid=3"]);
    bundle.sh("stat -c %a:%u /t; df -k /t | awk 'NR == 2 { print $2 }'; awk '$2 ~ \"^/(t|proc|sys|dev|dev/pts|dev/mqueue|sys/fs/cgroup)$\" { print $2, $3 }' /proc/mounts | sort; \
        grep -E ' /t ' /proc/mounts | grep -o -E 'nosuid|nodev|noexec' | sort | xargs; grep -E ' /sys ' /proc/mounts | grep -c -w ro").says(&[
        "1750:3",
        "1024",
        "/dev tmpfs",
        "/dev/mqueue mqueue",
        "/dev/pts devpts",
        "/proc proc",
        "/sys sysfs",
        "/sys/fs/cgroup cgroup2",
        "/t tmpfs",
        "nodev noexec nosuid",
        "1",
    ]);
}

#[test]
fn a_bound_directory_is_shared_both_ways() {
    let mut bundle = Bundle::new();
    let source = bundle.path("volume");
    bundle.file("volume/from-host", "host\n");
    fs::set_permissions(&source, fs::Permissions::from_mode(0o750)).unwrap();
    bundle.mount("/mnt/deep/volume", "bind", source.to_str().unwrap(), &["rbind", "rw"]);
    bundle
        .sh("cat /mnt/deep/volume/from-host; stat -c %a /mnt/deep/volume; echo guest >/mnt/deep/volume/from-guest; mkdir /mnt/deep/volume/d; rm /mnt/deep/volume/from-host")
        .says(&["host", "750"]);
    assert_eq!(fs::read_to_string(source.join("from-guest")).unwrap(), "guest\n");
    assert!(source.join("d").is_dir() && !source.join("from-host").exists());
}

#[test]
fn a_bound_file_is_shared_and_others_beside_it_are_not() {
    let mut bundle = Bundle::new();
    let source = bundle.file("etc/resolv.conf", "nameserver 1.2.3.4\n");
    bundle.file("etc/secret", "secret");
    bundle.mount("/etc/resolv.conf", "bind", source.to_str().unwrap(), &["bind"]);
    bundle.sh("cat /etc/resolv.conf; echo more >>/etc/resolv.conf; ls /etc").says(&[
        "nameserver 1.2.3.4",
        "group",
        "passwd",
        "resolv.conf",
    ]);
    assert_eq!(fs::read_to_string(source).unwrap(), "nameserver 1.2.3.4\nmore\n");
}

#[test]
fn read_only_binds_are_not_written() {
    let mut bundle = Bundle::new();
    let (dir, file) = (bundle.path("volume"), bundle.file("file", "f\n"));
    bundle.file("volume/x", "x\n");
    bundle.mount("/v", "bind", dir.to_str().unwrap(), &["rbind", "ro"]);
    bundle.mount("/f", "bind", file.to_str().unwrap(), &["bind", "ro"]);
    let ended = bundle.sh("cat /v/x /f; echo y >/v/x; echo y >/v/new; rm /v/x; echo y >/f; true");
    ended.code(0).stdout("x\nf\n");
    assert_eq!(String::from_utf8_lossy(&ended.stderr).matches("Read-only file system").count(), 4, "{ended}");
    assert_eq!(fs::read_to_string(dir.join("x")).unwrap(), "x\n");
    assert_eq!(fs::read_to_string(file).unwrap(), "f\n");
}

#[test]
fn options_of_binds_are_the_guests() {
    let mut bundle = Bundle::new();
    let source = bundle.path("volume");
    bundle.file("volume/program", "#!/bin/sh\necho ran\n");
    fs::set_permissions(source.join("program"), fs::Permissions::from_mode(0o755)).unwrap();
    let text = source.to_str().unwrap().to_owned();
    bundle.mount("/a", "bind", &text, &["bind"]);
    bundle.mount("/b", "bind", &text, &["bind", "noexec", "nosuid", "nodev"]);
    let ended = bundle.sh(
        "/a/program; /b/program; grep ' /b ' /proc/mounts | grep -o -E 'nosuid|nodev|noexec' | sort | xargs",
    );
    ended.code(0).stdout("ran\nnodev noexec nosuid\n");
    assert!(String::from_utf8_lossy(&ended.stderr).contains("Permission denied"), "{ended}");
}

#[test]
fn options_that_few_know_hold_too() {
    let mut bundle = Bundle::new();
    let source = bundle.path("volume");
    bundle.file("volume/file", "content\n");
    std::os::unix::fs::symlink("file", source.join("link")).unwrap();
    let text = source.to_str().unwrap().to_owned();
    bundle.mount("/follows", "bind", &text, &["rbind", "symfollow"]);
    bundle.mount("/stays", "bind", &text, &["rbind", "nosymfollow", "sync", "iversion", "silent"]);
    bundle.mount("/t", "tmpfs", "tmpfs", &["sync", "dirsync", "lazytime", "mand", "size=64k"]);
    bundle
        .sh("cat /follows/link; cat /stays/link 2>/dev/null || echo refused; readlink /stays/link; \
             grep ' /t ' /proc/self/mountinfo | grep -o -E '[,: ](sync|dirsync|lazytime)' | tr -d ', ' | sort")
        .says(&["content", "refused", "file", "dirsync", "lazytime", "sync"]);
}

/// Owners on disk are others in the container, in both directions. The host's file system has to allow it.
#[test]
fn owners_may_be_mapped() {
    let mut bundle = Bundle::new();
    let source = bundle.path("volume");
    bundle.file("volume/theirs", "theirs\n");
    for path in [&source, &source.join("theirs")] {
        std::os::unix::fs::chown(path, Some(5000), Some(6000)).unwrap();
    }
    let text = source.to_str().unwrap().to_owned();
    let map = |from: u32, to: u32| json!([{"containerID": from, "hostID": to, "size": 10}]);
    let mut mount =
        json!({"destination": "/v", "type": "bind", "source": text, "options": ["rbind", "idmap"]});
    mount["uidMappings"] = map(5000, 0);
    mount["gidMappings"] = map(6000, 0);
    bundle.config["mounts"].as_array_mut().unwrap().push(mount);
    bundle.mount("/plain", "bind", &text, &["rbind"]);
    let ended = bundle
        .sh("stat -c %u:%g /v /v/theirs /plain/theirs; touch /v/mine && stat -c %u:%g /v/mine /plain/mine");
    if ended.code != 0 {
        // tmpfs cannot before Linux 6.3; in a chroot nobody makes a user namespace.
        ended.fails(&["open it and map its owners (idmap)"]);
        return;
    }
    ended.says(&["0:0", "0:0", "5000:6000", "0:0", "5000:6000"]);
    let made = source.join("mine").metadata().unwrap();
    assert_eq!((made.uid(), made.gid()), (5000, 6000));
}

#[test]
fn owners_can_be_mapped_of_bind_mounts_only_and_both_kinds() {
    let mut bundle = Bundle::new();
    bundle.mount("/t", "tmpfs", "tmpfs", &["idmap"]);
    bundle.sh("true").fails(&["and is no bind mount"]);
    let mut bundle = Bundle::new();
    let source = bundle.path("rootfs");
    bundle.mount("/v", "bind", source.to_str().unwrap(), &["rbind", "idmap"]);
    bundle.sh("true").fails(&["neither it nor the container has uidMappings and gidMappings"]);
}

#[test]
fn the_same_directory_at_two_places_is_one() {
    let mut bundle = Bundle::new();
    let source = bundle.path("volume");
    bundle.file("volume/x", "");
    let text = source.to_str().unwrap().to_owned();
    bundle.mount("/a", "bind", &text, &["bind"]);
    bundle.mount("/b", "bind", &text, &["bind", "ro"]);
    bundle.sh("echo one >/a/x; cat /b/x; mv /a/x /a/y; ls /b").says(&["one", "y"]);
}

#[test]
fn a_mount_below_a_bind_stays_below_it() {
    let mut bundle = Bundle::new();
    let source = bundle.path("volume");
    fs::create_dir_all(source.join("below")).unwrap();
    bundle.mount("/v", "bind", source.to_str().unwrap(), &["rbind"]);
    bundle.mount("/v/below", "tmpfs", "tmpfs", &[]);
    bundle.sh("echo x >/v/below/file; echo y >/v/file; ls /v /v/below").code(0);
    assert!(source.join("file").exists() && !source.join("below/file").exists());
}

#[test]
fn propagation_of_root_and_mounts() {
    let mut bundle = Bundle::new();
    fs::create_dir(bundle.path("volume")).unwrap();
    let source = bundle.path("volume").to_str().unwrap().to_owned();
    bundle.mount("/shared", "bind", &source, &["rbind", "shared"]);
    bundle.mount("/private", "bind", &source, &["rbind", "private"]);
    let ended = bundle.sh("for m in /shared /private; do awk -v m=$m '$5 == m { print m, ($7 ~ /^shared:/ ? \"shared\" : \"private\") }' /proc/self/mountinfo; done");
    ended.says(&["/shared shared", "/private private"]);
    // Within the guest, that is, which is told once and of the one that means the host.
    let told: Vec<String> =
        ended.log().lines().filter(|line| line.contains("mounts do not pass")).map(str::to_owned).collect();
    assert!(told.len() == 1 && told[0].contains("/shared is mounted as shared"), "{told:?}");
}

/// Privileged containers are given the host's: here it is the guest's own, and theirs to fill.
#[test]
fn the_hosts_dev_is_the_guests() {
    let mut bundle = Bundle::new();
    let marker = format!("/dev/{}", bundle.id);
    fs::write(&marker, "").unwrap();
    let before = fs::read_dir("/dev").unwrap().count();
    crate::shell::without(&mut bundle.config["mounts"], |mount| mount["destination"] == "/dev");
    let mount = json!({"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind", "rw"]});
    bundle.config["mounts"].as_array_mut().unwrap().insert(0, mount);
    bundle.mount("/host/dev", "bind", "/dev", &["rbind"]);
    let ended = bundle.sh(&format!("echo x >/dev/null && readlink /dev/fd; ls {marker} /host{marker} 2>&1 | wc -l; test -c /host/dev/null && echo there"));
    ended.says(&["/proc/self/fd", "2", "there"]);
    assert_eq!(fs::read_dir("/dev").unwrap().count(), before);
    fs::remove_file(marker).unwrap();
}

#[test]
fn a_symbolic_link_in_the_image_does_not_lead_out() {
    let mut bundle = Bundle::new();
    let source = bundle.file("file", "bound\n");
    // As the image's own would be: the mount goes to where the link leads inside.
    std::os::unix::fs::symlink("/etc", bundle.rootfs("link")).unwrap();
    bundle.mount("/link/bound", "bind", source.to_str().unwrap(), &["bind"]);
    bundle.sh("cat /etc/bound").says(&["bound"]);
}

#[test]
fn a_bind_source_that_is_missing_is_an_error() {
    let mut bundle = Bundle::new();
    bundle.mount("/v", "bind", "/no/such/volume", &["bind"]);
    bundle.call().end().fails(&["/no/such/volume", "No such file or directory"]);
}

#[test]
fn an_unknown_file_system_is_an_error() {
    let mut bundle = Bundle::new();
    bundle.mount("/v", "nosuchfs", "none", &[]);
    bundle.call().end().fails(&["/v", "no such device"]);
}

#[test]
fn a_volume_of_another_user_keeps_its_owner() {
    let mut bundle = Bundle::new();
    let source = bundle.path("volume");
    fs::create_dir(&source).unwrap();
    std::os::unix::fs::chown(&source, Some(1000), Some(1001)).unwrap();
    bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 1001});
    bundle.mount("/v", "bind", source.to_str().unwrap(), &["bind"]);
    bundle.sh("stat -c %u:%g /v; echo x >/v/mine").says(&["1000:1001"]);
    let mine = fs::metadata(source.join("mine")).unwrap();
    assert_eq!((mine.uid(), mine.gid()), (1000, 1001));
}
