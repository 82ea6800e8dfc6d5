//! What is left to a jailed process, seen from outside. The process is this binary again: it has a main of its own, since
//! a test of the usual harness is a second thread. The file server is looked at here, too, up to where a VM
//! is needed. Needs root.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use vhost::VhostBackend;

use rt::config::Cache;
use rt::fsd::{self, Entry, Fsd, FsdSpec};
use rt::jail::{self, Bind, Child, Device, Jail, Limits, Root, Spawn, System, User, enter};
use rt::sys::pidfd::ProcessId;
use rt::sys::{fd, process};

const LIMITS: Limits = Limits { open_files: 1_000_000, threads: 16, file_size: None };

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match arguments.get(1).and_then(|verb| verb.to_str()) {
        Some("jailed") => {
            jailed();
            return ExitCode::SUCCESS;
        }
        Some("fsd") => return fsd::main(&arguments[2..]),
        _ => {}
    }
    let checks: [(&str, fn()); 15] = [
        ("a sealed process has nothing", a_sealed_process_has_nothing),
        ("a share holds its entries and nothing else", a_share_holds_its_entries_and_nothing_else),
        ("a share grows and shrinks from outside", a_share_grows_and_shrinks_from_outside),
        ("a share grows and shrinks in a chroot", the_same_in_a_chroot),
        ("a share grows and shrinks in a directory as its root", the_same_in_a_directory),
        ("a system is read-only and has few devices", a_system_is_read_only_and_has_few_devices),
        ("a device opens for the helper", a_device_opens_for_the_helper),
        ("dies with the thread that started it", dies_with_the_thread_that_started_it),
        ("does not enter outside of new namespaces", does_not_enter_outside_of_new_namespaces),
        ("a file server has its share and file capabilities", a_file_server_has_its_share),
        ("a file server shows special files as copies", a_file_server_copies_special_files),
        ("a file server answers vhost-user at once", a_file_server_answers),
        ("a file server ends with its client", a_file_server_ends_with_its_client),
        ("a file server ends on nonsense", a_file_server_ends_on_nonsense),
        ("a file server says why it cannot start", a_file_server_says_why_it_cannot_start),
    ];
    for (name, check) in checks {
        check();
        println!("jail: {name} ... ok");
    }
    println!("test result: ok. {} passed; 0 failed; 0 ignored; 0 measured; 0 filtered out", checks.len());
    ExitCode::SUCCESS
}

/// The child: enters the jail that it is told to, says so, and stays until told otherwise.
fn jailed() {
    let socket = fd::inherited(3).unwrap();
    let mut socket = UnixStream::from(socket);
    let mut kind = [0];
    socket.read_exact(&mut kind).unwrap();
    let root = match kind[0] {
        b's' => Root::Share(vec![
            Bind { source: "/etc".into(), target: "c1/rootfs".into(), readonly: true, id_map: None },
            Bind {
                source: "/etc/hostname".into(),
                target: "c1/mounts/0".into(),
                readonly: false,
                id_map: None,
            },
        ]),
        b'q' | b'd' => {
            let extra = vec![Bind {
                source: "/etc/hostname".into(),
                target: "kernel".into(),
                readonly: true,
                id_map: None,
            }];
            let devices = if Path::new("/dev/kvm").exists() { vec![Device::Kvm] } else { vec![] };
            Root::System(System { extra, devices })
        }
        _ => Root::Empty,
    };
    let mut jail = Jail { root, ..Jail::sealed(LIMITS) };
    if kind[0] == b's' {
        jail.user = User::Root;
        jail.capabilities = &[caps::Capability::CAP_CHOWN];
    }
    match enter(&jail) {
        // The device's own answer to an open: what a program in the jail would get.
        Ok(()) if kind[0] == b'd' => {
            let opened = fs::File::options().read(true).write(true).open("/dev/kvm");
            socket.write_all(if opened.is_ok() { b"in" } else { b"cannot open" }).unwrap();
        }
        Ok(()) => socket.write_all(b"in").unwrap(),
        Err(error) => socket.write_all(format!("{error:?}").as_bytes()).unwrap(),
    }
    let _ = socket.read(&mut kind);
}

fn spawn(kind: u8) -> (Child, UnixStream) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let child =
        Spawn { verb: "jailed", args: vec![], fds: vec![OwnedFd::from(theirs)], stdout: None, stderr: None };
    let child = child.spawn().unwrap();
    ours.write_all(&[kind]).unwrap();
    (child, ours)
}

fn entered(kind: u8) -> (Child, UnixStream) {
    let (child, mut socket) = spawn(kind);
    let mut answer = [0; 400];
    let length = socket.read(&mut answer).unwrap();
    assert_eq!(String::from_utf8_lossy(&answer[..length]), "in");
    (child, socket)
}

fn status(child: &Child, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", child.pid)).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn listing(child: &Child, path: &str) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{}/root/{path}", child.pid)).unwrap();
    let names: BTreeSet<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.into_iter().collect()
}

fn end(child: Child) {
    process::kill(child.pidfd.as_fd());
    assert_eq!(process::reap(child.pid), "killed by SIGKILL");
}

fn a_sealed_process_has_nothing() {
    let (child, _socket) = entered(b'e');
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(&child, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(&child, "NoNewPrivs"), "1");
    assert!(status(&child, "NSpid").ends_with(" 1"));
    let uid = (jail::FIRST_UID + child.pid as u32).to_string();
    assert_eq!(status(&child, "Uid"), [&uid[..]; 4].join(" "));
    assert_eq!(status(&child, "Gid"), [&uid[..]; 4].join(" "));
    assert_eq!(status(&child, "Groups"), "");

    assert!(listing(&child, "").is_empty());
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", child.pid)).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains(" / / ro,nosuid,nodev,noexec"), "{mounts}");

    let proc = format!("/proc/{}", child.pid);
    let descriptors: BTreeSet<_> =
        fs::read_dir(format!("{proc}/fd")).unwrap().map(|fd| fd.unwrap().file_name()).collect();
    assert_eq!(descriptors, ["0", "1", "2", "3"].map(Into::into).into());
    // The host's, whose mount is gone.
    assert_eq!(fs::read_link(format!("{proc}/fd/0")).unwrap(), Path::new("/null"));
    assert!(fs::read(format!("{proc}/environ")).unwrap().is_empty());
    for namespace in ["mnt", "pid", "ipc", "uts", "net"] {
        let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{namespace}")).unwrap();
        assert_ne!(of("self"), of(&child.pid.to_string()), "{namespace}");
    }
    let limits = fs::read_to_string(format!("{proc}/limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(limit("Max core file size"), "0 0");
    assert_eq!(limit("Max locked memory"), "0 0");
    assert_eq!(limit("Max processes"), "16 16");
    end(child);
}

fn a_share_holds_its_entries_and_nothing_else() {
    let (child, _socket) = entered(b's');
    assert_eq!(status(&child, "CapEff"), "0000000000000001");
    assert_eq!(status(&child, "CapBnd"), "0000000000000001");
    assert_eq!(status(&child, "Uid"), "0 0 0 0");
    assert_eq!(listing(&child, ""), ["c1"]);
    assert_eq!(listing(&child, "c1"), ["mounts", "rootfs"]);
    assert_eq!(listing(&child, "c1/mounts"), ["0"]);
    assert!(listing(&child, "c1/rootfs").contains(&"hostname".to_owned()));
    let read = |path: &str| fs::read(format!("/proc/{}/root/{path}", child.pid)).unwrap();
    assert_eq!(read("c1/mounts/0"), fs::read("/etc/hostname").unwrap());

    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", child.pid)).unwrap();
    assert_eq!(mounts.lines().count(), 3, "{mounts}");
    assert!(mounts.contains(" /c1/rootfs ro,nosuid,nodev,noexec"), "{mounts}");
    assert!(mounts.contains(" /c1/mounts/0 rw,nosuid,nodev,noexec"), "{mounts}");
    end(child);
}

/// The helper takes no part in it, and gains nothing by it.
fn a_share_grows_and_shrinks_from_outside() {
    let (child, _socket) = entered(b's');
    let helper = ProcessId::of(child.pid).unwrap();
    let bind = |source: &Path, target: &str, readonly| Bind {
        source: source.into(),
        target: target.into(),
        readonly,
        id_map: None,
    };
    let dir = tempfile::tempdir().unwrap();
    nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let binds = [
        bind(dir.path(), "c2/rootfs", false),
        bind("/etc/hostname".as_ref(), "c2/mounts/1", true),
        bind(&dir.path().join("pipe"), "c2/mounts/2", false),
    ];
    let mounts = || fs::read_to_string(format!("/proc/{}/mountinfo", child.pid)).unwrap();
    let (before, own) = (mounts(), fs::read_to_string("/proc/self/mountinfo").unwrap());
    jail::extend(helper, &binds).unwrap();
    assert_eq!(listing(&child, ""), ["c1", "c2"]);
    assert_eq!(listing(&child, "c2/mounts"), ["1", "2"]);
    assert_eq!(listing(&child, "c2/rootfs"), ["pipe"]);
    assert!(mounts().contains(" /c2/rootfs rw,nosuid,nodev,noexec"), "{}", mounts());
    assert!(mounts().contains(" /c2/mounts/1 ro,nosuid,nodev,noexec"), "{}", mounts());
    assert!(mounts().contains(" / / ro,"), "{}", mounts());
    assert_eq!(status(&child, "CapEff"), "0000000000000001");
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), own);

    // All or nothing.
    let more = [bind(dir.path(), "c2/a", false), bind(dir.path(), "c2/rootfs", false)];
    jail::extend(helper, &more[..]).unwrap_err();
    assert_eq!(listing(&child, "c2"), ["mounts", "rootfs"]);
    let missing = [bind("/no/such".as_ref(), "c3/a", false)];
    assert!(jail::extend(helper, &missing).unwrap_err().to_string().contains("/no/such"));
    for bad in ["../c3", "/c3", "c2/rootfs/x/.."] {
        jail::extend(helper, &[bind(dir.path(), bad, false)]).unwrap_err();
        jail::withdraw(helper, &[bad.into()]).unwrap_err();
    }

    let names = ["c2/mounts/1", "c2/mounts/2", "c2/rootfs", "c2/never"].map(Into::into);
    jail::withdraw(helper, &names).unwrap();
    jail::withdraw(helper, &names).unwrap();
    assert_eq!((listing(&child, ""), mounts()), (vec!["c1".to_owned()], before));
    process::kill(child.pidfd.as_fd());
    process::reap(child.pid);
    jail::extend(helper, &binds).unwrap_err();
}

/// Where the root of whoever starts a helper is not its mount namespace's, as in a rescue system or an initramfs.
fn the_same_in_a_chroot() {
    let dir = tempfile::tempdir().unwrap();
    in_a_chroot(dir.path(), || bind(Path::new("/"), dir.path()));
}

/// Nor a mount at all.
fn the_same_in_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    in_a_chroot(dir.path(), || {
        for entry in fs::read_dir("/").unwrap() {
            let source = entry.unwrap().path();
            let target = dir.path().join(source.file_name().unwrap());
            match fs::read_link(&source) {
                Ok(content) => std::os::unix::fs::symlink(content, target).unwrap(),
                Err(_) if source.is_dir() => {
                    fs::create_dir(&target).unwrap();
                    bind(&source, &target);
                }
                Err(_) => {}
            }
        }
    });
}

fn bind(source: &Path, target: &Path) {
    let none = None::<&str>;
    mount(Some(source), target, none, MsFlags::MS_REC | MsFlags::MS_BIND, none).unwrap();
}

/// In a mount namespace of its own, with `root` as the root when `fill` has filled it.
fn in_a_chroot(root: &Path, fill: impl Fn() + Sync) {
    let chrooted = || {
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        fill();
        nix::unistd::chroot(root).unwrap();
        nix::unistd::chdir("/").unwrap();
        a_share_grows_and_shrinks_from_outside();
    };
    std::thread::scope(|scope| scope.spawn(chrooted).join()).unwrap();
}

fn a_system_is_read_only_and_has_few_devices() {
    let (child, _socket) = entered(b'q');
    let root = listing(&child, "");
    assert!(root.contains(&"usr".to_owned()) && root.contains(&"kernel".to_owned()), "{root:?}");
    for absent in ["proc", "sys", "home", "root", "tmp", "var", "run"] {
        assert!(!root.contains(&absent.to_owned()), "{root:?}");
    }
    assert_eq!(listing(&child, "etc"), ["ld.so.cache"]);
    let devices = listing(&child, "dev");
    assert_eq!(&devices[devices.len() - 2..], ["null", "urandom"]);
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", child.pid)).unwrap();
    for mount in mounts.lines() {
        assert!(mount.contains(" ro,nosuid"), "{mount}");
    }
    end(child);
}

fn a_device_opens_for_the_helper() {
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return println!("jail: skipped: this host has no /dev/kvm that opens");
    }
    let (child, _socket) = entered(b'd');
    end(child);
}

fn dies_with_the_thread_that_started_it() {
    let (child, socket) = std::thread::spawn(|| entered(b'e')).join().unwrap();
    let mut ended = [PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(Duration::from_secs(20)).unwrap();
    assert_eq!(poll(&mut ended, limit).unwrap(), 1, "still there");
    drop(socket);
    assert_eq!(process::reap(child.pid), "killed by SIGKILL");
}

fn does_not_enter_outside_of_new_namespaces() {
    let error = enter(&Jail::sealed(LIMITS)).unwrap_err();
    assert!(matches!(error, jail::Error::NotSpawned(_)), "{error}");
}

fn serve(entries: &[(&str, &Path, bool)]) -> Result<(Fsd, OwnedFd), fsd::Error> {
    let entry = |(name, source, readonly): &(&str, &Path, bool)| Entry {
        name: name.into(),
        source: source.to_path_buf(),
        readonly: *readonly,
        id_map: None,
    };
    let spec = FsdSpec {
        id: "test".into(),
        entries: entries.iter().map(entry).collect(),
        cache: Cache::default(),
        grows: false,
        limits: rt::config::Jail::default(),
    };
    let (socket, client) = fsd::socket()?;
    let mut server = fsd::launch(&spec, socket)?;
    server.ready(Instant::now() + Duration::from_secs(20))?;
    Ok((server, client))
}

fn a_file_server_has_its_share() {
    let entries = [("c1/rootfs", Path::new("/"), true), ("c1/mounts/0", Path::new("/etc/hostname"), false)];
    let (mut server, _client) = serve(&entries).unwrap();
    let child = |path: &str| format!("/proc/{}/{path}", server.pid());
    let status = fs::read_to_string(child("status")).unwrap();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    let capabilities = u64::from_str_radix(capabilities, 16).unwrap();
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, MKNOD, SETFCAP; and DAC_READ_SEARCH where descriptors are few.
    assert_eq!(capabilities & !(1 << 2), 0x8800_00db, "{capabilities:x}");
    assert!(status.contains("NoNewPrivs:\t1"));

    let host = fs::read_dir("/").unwrap().count();
    assert_eq!(fs::read_dir(child("root/c1/rootfs")).unwrap().count(), host);
    assert_eq!(fs::read(child("root/c1/mounts/0")).unwrap(), fs::read("/etc/hostname").unwrap());
    for mount in fs::read_to_string(child("mountinfo")).unwrap().lines() {
        assert!(mount.contains("nosuid,nodev,noexec"), "{mount}");
        assert!(mount.contains(" /c1/mounts/0 rw") || mount.contains(" ro,"), "{mount}");
    }
    // Nothing of the host's /proc but itself.
    let open: Vec<_> = fs::read_dir(child("fd")).unwrap().map(|fd| fd.unwrap().path()).collect();
    let open: Vec<_> = open.iter().filter_map(|fd| fs::read_link(fd).ok()).collect();
    assert!(!open.contains(&"/proc".into()), "{open:?}");
    assert_eq!(server.end().status, "killed by SIGKILL");
}

fn a_file_server_copies_special_files() {
    let dir = tempfile::tempdir().unwrap();
    let (fifo, null) = (dir.path().join("fifo"), Path::new("/dev/null"));
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
    let (server, _client) = serve(&[("fifo", &fifo, false), ("null", null, false)]).unwrap();
    for (name, source) in [("fifo", fifo.as_path()), ("null", null)] {
        let copy = fs::metadata(format!("/proc/{}/root/{name}", server.pid())).unwrap();
        let host = fs::metadata(source).unwrap();
        let of = |file: &fs::Metadata| (file.mode(), file.uid(), file.gid(), file.rdev());
        assert_eq!(of(&copy), of(&host), "{name}");
        assert_ne!((copy.dev(), copy.ino()), (host.dev(), host.ino()), "{name}");
    }
}

/// The client may speak before the server listens: nothing has to wait for [`Fsd::ready`].
fn a_file_server_answers() {
    let (socket, client) = fsd::socket().unwrap();
    let entries = vec![Entry { name: "a".into(), source: "/etc".into(), readonly: true, id_map: None }];
    let start = Instant::now();
    let (cache, limits) = (Cache::default(), rt::config::Jail::default());
    let _server =
        fsd::launch(&FsdSpec { id: "test".into(), entries, cache, grows: false, limits }, socket).unwrap();
    let frontend = vhost::vhost_user::Frontend::from_stream(client.into(), 2);
    let features = frontend.get_features().unwrap();
    println!("jail: a file server answered after {:?}", start.elapsed());
    // VIRTIO_F_VERSION_1, VHOST_USER_F_PROTOCOL_FEATURES
    assert_eq!(features & (1 << 32 | 1 << 30), 1 << 32 | 1 << 30);
}

fn a_file_server_ends_with_its_client() {
    let (mut server, client) = serve(&[("a", Path::new("/etc"), true)]).unwrap();
    drop(client);
    let mut ended = [PollFd::new(server.pidfd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(Duration::from_secs(20)).unwrap();
    assert_eq!(poll(&mut ended, limit).unwrap(), 1, "still there");
    let ending = server.end();
    assert_eq!((ending.status.as_str(), ending.log.as_str()), ("exit code 0", ""));
}

/// A VMM that a guest has taken over: an error that is logged, not a panic.
fn a_file_server_ends_on_nonsense() {
    for byte in [0, 1, 0x5a, 0xff] {
        let (mut server, client) = serve(&[("a", Path::new("/etc"), true)]).unwrap();
        let mut client = UnixStream::from(client);
        // It may hang up before it has read all.
        let _ = client.write_all(&[byte; 4096]);
        drop(client);
        let mut ended = [PollFd::new(server.pidfd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(Duration::from_secs(20)).unwrap();
        assert_eq!(poll(&mut ended, limit).unwrap(), 1, "still there after {byte:#x}");
        let ending = server.end();
        assert!(ending.status.starts_with("exit code"), "{byte:#x}: {ending:?}");
    }
}

fn a_file_server_says_why_it_cannot_start() {
    let nowhere = Path::new("/nowhere/to/be/found");
    let error = serve(&[("a", nowhere, true)]).unwrap_err().to_string();
    assert!(error.contains("/nowhere/to/be/found") && error.contains("No such file"), "{error}");
    let error = serve(&[("a/../b", Path::new("/etc"), true)]).unwrap_err().to_string();
    assert!(error.contains("a/../b") && error.contains("plain names"), "{error}");
}
