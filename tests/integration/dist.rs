//! The one file of `make dist`: it runs where nothing else of rt is, and unpacks its guest once.

use std::fs;
use std::path::{Path, PathBuf};

use crate::shell::{Bundle, Ended, Place, guest_file, host, place, rt_binary};

/// A root of another layout in the bundle's directory: rt's one file at its top, the kernel's file systems, and where
/// QEMU carries the guest the host's /usr with it. Everything below its /var is new.
struct Elsewhere {
    bundle: Bundle,
    root: PathBuf,
}

impl Elsewhere {
    fn new() -> Self {
        let bundle = Bundle::new();
        let root = bundle.path("elsewhere");
        for dir in ["proc", "dev", "sys", "usr", "srv"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        if place() == Place::Emulation {
            for dir in ["bin", "lib", "lib64"] {
                std::os::unix::fs::symlink(Path::new("usr").join(dir), root.join(dir)).unwrap();
            }
        }
        let guest = guest_file("tuned", "vmlinux");
        let (script, rt) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/dist.sh"), rt_binary());
        host(&format!(
            "ZSTD_CLEVEL=1 {} {} {} {}/rt",
            script.display(),
            rt.display(),
            guest.parent().unwrap().display(),
            root.display()
        ));
        Self { bundle, root }
    }

    /// Runs the bundle's process by that rt, in that root, in a mount namespace of its own. The root is a directory, not a mount.
    #[track_caller]
    fn run(&mut self, args: &[&str]) -> Ended {
        self.bundle.args(args);
        let script = format!(
            r#"exec unshare -m sh -ec '
               root=$0 place=$1
               mount --make-rprivate / && cd "$root"
               for dir in proc dev sys; do mount --rbind /$dir $dir; done
               [ $place = Kvm ] || mount --bind /usr usr
               mount --bind {bundle} srv
               exec env -u RT_CONFIG chroot . /rt --root /run/rt run -b /srv {id}' {root} {place:?}"#,
            bundle = self.bundle.dir().display(),
            id = self.bundle.id,
            root = self.root.display(),
            place = place(),
        );
        self.bundle.call().through(&script).end()
    }

    /// Files below the cache, by their path in it.
    fn cached(&self) -> Vec<String> {
        let cache = self.root.join("var/lib/rt/guest");
        let listed = host(&format!("cd {} && find . -type f -printf '%P %m %i\\n' | sort", cache.display()));
        listed.lines().map(str::to_owned).collect()
    }
}

#[test]
fn one_file_runs_where_nothing_else_is() {
    let mut elsewhere = Elsewhere::new();
    let ended = elsewhere.run(&["/bin/uname", "-n"]);
    ended.code(0);
    assert!(ended.text().ends_with("guest\n"), "{ended}");
    let first = elsewhere.cached();
    assert!(first.len() == 2 && first[0].contains("/initramfs.cpio 444 "), "{first:?}");
    elsewhere.run(&["/bin/true"]).code(0);
    assert_eq!(elsewhere.cached(), first, "it was unpacked again");
}

/// Killed while it unpacked: a draft is left, and a directory that some other hand left half full.
#[test]
fn what_a_killed_one_left_is_made_anew() {
    let mut elsewhere = Elsewhere::new();
    elsewhere.run(&["/bin/true"]).code(0);
    let cache = elsewhere.root.join("var/lib/rt/guest");
    host(&format!(
        "cd {} && mkdir ~4194304 && cp */vmlinux ~4194304/ && for kernel in */vmlinux; do rm -f $kernel; echo half >$kernel; done",
        cache.display()
    ));
    elsewhere.run(&["/bin/true"]).code(0);
    let cached = elsewhere.cached();
    assert!(cached.len() == 2 && !cached.iter().any(|line| line.contains('~')), "{cached:?}");
}

#[test]
fn a_damaged_file_says_so() {
    let mut elsewhere = Elsewhere::new();
    let rt = elsewhere.root.join("rt");
    let section = format!(
        "readelf -SW {} | sed -n 's/.*[.]rt[.]vmlinux *PROGBITS *[0-9a-f]* \\([0-9a-f]*\\) .*/\\1/p'",
        rt.display()
    );
    let at = usize::from_str_radix(&host(&section), 16).unwrap() + 100_000;
    let mut bytes = fs::read(&rt).unwrap();
    bytes[at..at + 64].fill(0);
    fs::write(&rt, bytes).unwrap();
    elsewhere.run(&["/bin/true"]).fails(&["the guest inside", "is damaged"]);
    assert_eq!(elsewhere.cached(), Vec::<String>::new());
}
