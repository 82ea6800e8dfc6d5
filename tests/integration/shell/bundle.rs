//! Bundles, made on the fly from busybox-static.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use super::running::run_to_end;
use super::{Call, Ended, patience};

/// rt's own default.
const AGENT_TIMEOUT_S: u64 = 30;

/// A bundle whose process is `/bin/true` until told otherwise, in a directory of its own.
pub struct Bundle {
    dir: tempfile::TempDir,
    /// What becomes config.json; `runc spec`'s but for a writable root and no terminal.
    pub config: Value,
    /// The ID of the next run; every bundle has its own.
    pub id: String,
    /// Not empty: an rt configuration file with these lines.
    pub settings: String,
    /// `--root`; each bundle has its own, but for those that join another's machine.
    pub root: PathBuf,
}

impl Bundle {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("rt-test-").tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("tmp")).unwrap();
        let root = dir.path().join("run");
        let bundle = Self { dir, config: default_config(), id: unique_id(), settings: String::new(), root };
        bundle.lay_rootfs();
        bundle
    }

    /// The bundle's directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path below the bundle's directory.
    pub fn path(&self, below: &str) -> PathBuf {
        self.dir().join(below)
    }

    /// A path in the root file system, `/` being its root.
    pub fn rootfs(&self, path: &str) -> PathBuf {
        self.path("rootfs").join(path.trim_start_matches('/'))
    }

    /// A file of this name and content below the bundle's directory.
    pub fn file(&self, below: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(below);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Sets the process's arguments.
    pub fn args(&mut self, args: &[&str]) -> &mut Self {
        self.config["process"]["args"] = json!(args);
        self
    }

    /// Adds a mount.
    pub fn mount(&mut self, destination: &str, kind: &str, source: &str, options: &[&str]) -> &mut Self {
        let mount = json!({"destination": destination, "type": kind, "source": source, "options": options});
        self.config["mounts"].as_array_mut().unwrap().push(mount);
        self
    }

    /// Gives the process these capabilities in all sets, and nothing else.
    pub fn capabilities(&mut self, names: &[&str]) -> &mut Self {
        let sets = ["bounding", "effective", "permitted", "inheritable", "ambient"];
        self.config["process"]["capabilities"] = sets
            .iter()
            .map(|set| ((*set).to_owned(), json!(names)))
            .collect::<serde_json::Map<_, _>>()
            .into();
        self
    }

    /// Runs `/bin/sh -c SCRIPT` to its end.
    #[track_caller]
    pub fn sh(&mut self, script: &str) -> Ended {
        self.args(&["/bin/sh", "-c", script]);
        self.call().end()
    }

    /// Runs these arguments to their end.
    #[track_caller]
    pub fn run(&mut self, args: &[&str]) -> Ended {
        self.args(args);
        self.call().end()
    }

    /// `rt run -b BUNDLE ID`, to be varied and started. Writes config.json as it is now.
    pub fn call(&self) -> Call {
        self.write_config();
        let call = Call::new(self);
        match self.settings_file() {
            Some(settings) => call.env("RT_CONFIG", settings),
            None => call,
        }
    }

    /// [`Bundle::settings`] as a file. On a slow machine rt, too, is patient with the guest.
    pub(super) fn settings_file(&self) -> Option<PathBuf> {
        let mut text = self.settings.clone();
        let timeout = patience(AGENT_TIMEOUT_S);
        if timeout.as_secs() > AGENT_TIMEOUT_S && !text.contains("agent") {
            let ms = timeout.as_millis();
            text.push_str(&format!("\n[agent]\nboot_timeout_ms = {ms}\ntimeout_ms = {ms}\n"));
        }
        let path = self.path("rt.toml");
        (!text.is_empty()).then(|| put(&path, text.as_bytes())).map(|()| path)
    }

    pub(super) fn write_config(&self) {
        put(&self.path("config.json"), &serde_json::to_vec_pretty(&self.config).unwrap());
    }

    fn lay_rootfs(&self) {
        for dir in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
            fs::create_dir_all(self.rootfs(dir)).unwrap();
        }
        let busybox = busybox();
        let place = self.rootfs("bin/busybox");
        // A link where that can be; nothing writes to it.
        fs::hard_link(&busybox.path, &place).or_else(|_| fs::copy(&busybox.path, &place).map(drop)).unwrap();
        for applet in &busybox.applets {
            symlink("busybox", self.rootfs("bin").join(applet)).unwrap();
        }
        fs::write(
            self.rootfs("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1001::/home:/bin/sh\n",
        )
        .unwrap();
        fs::write(self.rootfs("etc/group"), "root:x:0:\nuser:x:1001:\n").unwrap();
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("RT_TEST_KEEP").is_some_and(|value| !value.is_empty())
        {
            eprintln!("kept: {}", self.dir().display());
            self.dir.disable_cleanup(true);
        }
    }
}

/// Writes a file of rt's. Several calls at once: none may find it half written.
fn put(path: &Path, content: &[u8]) {
    if fs::read(path).ok().as_deref() != Some(content) {
        fs::write(path, content).unwrap();
    }
}

/// Removes the elements of a JSON array that `unwanted` picks.
pub fn without(array: &mut Value, unwanted: impl Fn(&Value) -> bool) {
    array.as_array_mut().expect("an array").retain(|value| !unwanted(value));
}

/// Runs a script on the host and gives its standard output, the last newline taken off.
#[track_caller]
pub fn host(script: &str) -> String {
    let output = run_to_end(Command::new("/bin/sh").args(["-ec", script]));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "on the host: {script}: {}: {}", output.status, text(&output.stderr));
    text(&output.stdout).trim_end_matches('\n').to_owned()
}

struct Busybox {
    path: PathBuf,
    applets: Vec<String>,
}

/// busybox, copied once to where bundles can link to it.
fn busybox() -> &'static Busybox {
    static BUSYBOX: OnceLock<Busybox> = OnceLock::new();
    BUSYBOX.get_or_init(|| {
        let found = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| Path::new(path).exists());
        let path = PathBuf::from(found.expect("busybox is missing: apt-get install busybox-static"));
        let applets = host(&format!("{} --list", path.display()));
        let applets = applets.lines().filter(|name| *name != "busybox").map(str::to_owned).collect();
        let copy = tempfile::Builder::new().prefix("rt-test-busybox-").tempfile().unwrap();
        fs::copy(&path, copy.path()).unwrap();
        let (_, path) = copy.keep().unwrap();
        at_exit::remove(&path);
        Busybox { path, applets }
    })
}

mod at_exit {
    //! Removes the copy of busybox when the test program ends; statics are not dropped.

    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::sync::OnceLock;

    static PATH: OnceLock<CString> = OnceLock::new();

    pub fn remove(path: &Path) {
        let _ = PATH.set(CString::new(path.as_os_str().as_bytes()).unwrap());
        // SAFETY: `unlink_it` is a plain function without captures that may be called at any time.
        unsafe { libc::atexit(unlink_it) };
    }

    extern "C" fn unlink_it() {
        if let Some(path) = PATH.get() {
            // SAFETY: the path is a C string that lives as long as the program.
            unsafe { libc::unlink(path.as_ptr()) };
        }
    }
}

pub(super) fn unique_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // None is the beginning of another.
    format!("test-{}-{:04}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn default_config() -> Value {
    let capabilities =
        ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_CHOWN", "CAP_DAC_OVERRIDE"];
    let sets = ["bounding", "effective", "permitted"];
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/true"],
            "env": ["PATH=/bin", "HOME=/root"],
            "cwd": "/",
            "capabilities": sets.iter().map(|set| ((*set).to_owned(), json!(capabilities))).collect::<serde_json::Map<_, _>>(),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "hostname": "guest",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"},
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
