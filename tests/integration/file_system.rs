//! The root file system, served from the host: what a local file system does, it does.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use serde_json::json;

use crate::shell::{Bundle, host};

#[test]
fn changes_are_on_the_host() {
    let mut bundle = Bundle::new();
    fs::write(bundle.rootfs("etc/old"), "old\n").unwrap();
    bundle
        .sh("cat /etc/old; echo new >/etc/new; rm /etc/old; mkdir -p /a/b; mv /etc/new /a/b/moved; ln -s b /a/link; printf x >>/a/b/moved")
        .says(&["old"]);
    assert!(!bundle.rootfs("etc/old").exists());
    assert_eq!(fs::read_to_string(bundle.rootfs("a/link/moved")).unwrap(), "new\nx");
    assert_eq!(fs::read_link(bundle.rootfs("a/link")).unwrap(), Path::new("b"));
}

/// What was written is there when rt has ended, without a sync of the process's own.
#[test]
fn nothing_written_is_lost_at_the_end() {
    let mut bundle = Bundle::new();
    bundle.sh("head -c 20000000 /dev/urandom >/tmp/big; sha256sum </tmp/big").code(0);
    let guest = bundle.sh("sha256sum </tmp/big").text();
    assert_eq!(guest.trim(), host(&format!("sha256sum <{}", bundle.rootfs("tmp/big").display())));
    assert_eq!(fs::metadata(bundle.rootfs("tmp/big")).unwrap().len(), 20_000_000);
}

#[test]
fn a_read_only_root_is_not_written() {
    let mut bundle = Bundle::new();
    bundle.config["root"]["readonly"] = json!(true);
    let ended =
        bundle.sh("touch /x; mkdir /y; rm /etc/passwd; chmod 700 /bin; echo over; echo z >/dev/shm/z");
    ended.code(0).stdout("over\n");
    assert_eq!(String::from_utf8_lossy(&ended.stderr).matches("Read-only file system").count(), 4, "{ended}");
    assert!(!bundle.rootfs("x").exists() && bundle.rootfs("etc/passwd").exists());
}

/// The program that checks a file system, in the container.
#[test]
fn what_a_program_is_owed_it_gets() {
    let mut bundle = Bundle::new();
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test/guest_files");
    fs::copy(program, bundle.rootfs("bin/guest_files")).unwrap();
    bundle.file("given/file", "given\n");
    let given = bundle.path("given").to_str().unwrap().to_owned();
    bundle.mount("/given", "bind", &given, &["bind", "ro"]);
    bundle.capabilities(&[
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_DAC_READ_SEARCH",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SYS_ADMIN",
    ]);
    bundle.config["process"]["env"] = json!(["PATH=/bin", "FILES=300"]);
    let ended = bundle.sh("mkdir /work && guest_files /work /given");
    assert!(ended.code(0).text().contains(" passed; 0 failed;"), "{ended}");
}

/// The guest is root there: what it makes of its own mounts is no matter of the host's.
#[test]
fn the_host_writes_nothing_that_is_read_only() {
    let mut bundle = Bundle::new();
    bundle.file("given/file", "given\n");
    let given = bundle.path("given").to_str().unwrap().to_owned();
    bundle.mount("/given", "bind", &given, &["bind", "ro"]);
    bundle.config["root"]["readonly"] = json!(true);
    bundle.capabilities(&["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
    let script = "mount -o remount,bind,rw /given && mount -o remount,bind,rw / && grep -cE ' (/|/given) [^ ]+ rw' /proc/mounts; \
        for path in /x /given/x /given/file; do (echo x >$path) 2>&1 | grep -o 'Read-only file system'; done";
    bundle.sh(script).says(&["2", "Read-only file system", "Read-only file system", "Read-only file system"]);
    assert_eq!(fs::read_to_string(bundle.path("given/file")).unwrap(), "given\n");
    assert!(!bundle.path("given/x").exists() && !bundle.rootfs("x").exists());
}

#[test]
fn owners_and_modes_of_the_host_are_seen() {
    let mut bundle = Bundle::new();
    let path = bundle.rootfs("tmp/file");
    fs::write(&path, "").unwrap();
    chown(&path, Some(1000), Some(70000)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4751)).unwrap();
    bundle.sh("stat -c '%u %g %a' /tmp/file").says(&["1000 70000 4751"]);
}

#[test]
fn owners_and_modes_of_the_guest_are_made() {
    let mut bundle = Bundle::new();
    bundle.capabilities(&["CAP_CHOWN", "CAP_FOWNER", "CAP_FSETID", "CAP_DAC_OVERRIDE"]);
    bundle
        .sh("cd /tmp; echo x >f; chown 123:456 f; chmod 2640 f; mkdir -m 1777 d; ln -s f l; chown -h 7:8 l; touch -d '2001-02-03 04:05:06' f")
        .code(0)
        .stderr("");
    let look = |name: &str| fs::symlink_metadata(bundle.rootfs("tmp").join(name)).unwrap();
    let (file, dir, link) = (look("f"), look("d"), look("l"));
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (123, 456, 0o2640));
    assert_eq!(file.mtime(), 981_173_106);
    assert_eq!(dir.mode() & 0o7777, 0o1777);
    assert_eq!((link.uid(), link.gid()), (7, 8));
}

/// Permissions are checked for the process's own user and groups, not for the file server's.
#[test]
fn permissions_hold() {
    let mut bundle = Bundle::new();
    for (name, uid, gid, mode) in [("own", 1000, 5, 0o600), ("group", 0, 20, 0o640), ("other", 0, 0, 0o600)] {
        let path = bundle.rootfs("tmp").join(name);
        fs::write(&path, format!("{name}\n")).unwrap();
        chown(&path, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [20]});
    let ended = bundle.sh("cat /tmp/own /tmp/group /tmp/other; echo x >/tmp/group; echo y >>/tmp/own; touch /etc/new; cat /tmp/own");
    ended.stdout("own\ngroup\nown\ny\n");
    assert_eq!(
        String::from_utf8_lossy(&ended.stderr).to_lowercase().matches("permission denied").count(),
        3,
        "{ended}"
    );
}

#[test]
fn hard_links_are_one_file() {
    let mut bundle = Bundle::new();
    fs::write(bundle.rootfs("tmp/a"), "a").unwrap();
    fs::hard_link(bundle.rootfs("tmp/a"), bundle.rootfs("tmp/b")).unwrap();
    bundle.sh("cd /tmp; stat -c %h a; test a -ef b && echo same; ln b c; echo more >>c; cat a; stat -c %h a; rm a; stat -c %h c").says(&["2", "same", "amore", "3", "2"]);
    let (b, c) =
        (fs::metadata(bundle.rootfs("tmp/b")).unwrap(), fs::metadata(bundle.rootfs("tmp/c")).unwrap());
    assert_eq!(b.ino(), c.ino());
}

#[test]
fn device_nodes_fifos_and_sockets() {
    let mut bundle = Bundle::new();
    let tmp = bundle.rootfs("tmp");
    host(&format!("cd {}; mknod null c 1 3; mknod disk b 7 200; chmod 666 null; mkfifo fifo", tmp.display()));
    let _socket = std::os::unix::net::UnixListener::bind(tmp.join("sock")).unwrap();
    bundle.capabilities(&["CAP_MKNOD", "CAP_DAC_OVERRIDE"]);
    bundle.config["linux"]["resources"] = json!({});
    bundle
        .sh("cd /tmp; stat -c '%F %t:%T' null disk; stat -c %F fifo sock; (echo through >fifo &); cat fifo; \
             mknod made c 1 5; mkfifo own; (echo own >own &); cat own")
        .says(&["character special file 1:3", "block special file 7:c8", "fifo", "socket", "through", "own"]);
    let made = fs::metadata(tmp.join("made")).unwrap();
    assert!(made.file_type().is_char_device() && made.rdev() == 0x105);
    assert!(fs::metadata(tmp.join("own")).unwrap().file_type().is_fifo());
}

#[test]
fn a_file_that_was_removed_while_open_lives_on() {
    let mut bundle = Bundle::new();
    bundle
        .sh("cd /tmp; echo one >f; exec 3<>f; rm f; echo two >&3; exec 4</proc/self/fd/3; cat <&4; echo three >&3; stat -L -c %s /proc/self/fd/3; ls")
        .says(&["two", "10"]);
    // A directory that somebody is in.
    bundle.sh("mkdir /tmp/d; cd /tmp/d; rmdir /tmp/d; touch x 2>/dev/null || echo gone").says(&["gone"]);
}

#[test]
fn symbolic_links_stay_inside() {
    let mut bundle = Bundle::new();
    fs::write(bundle.path("outside"), "secret\n").unwrap();
    symlink(bundle.path("outside"), bundle.rootfs("tmp/absolute")).unwrap();
    symlink("../../outside", bundle.rootfs("tmp/relative")).unwrap();
    symlink("/etc/passwd", bundle.rootfs("tmp/inside")).unwrap();
    let ended = bundle.sh(
        "cd /tmp; cat absolute; cat relative; head -n 1 inside; readlink relative; cat ../../../../outside",
    );
    ended.stdout("root:x:0:0:root:/root:/bin/sh\n../../outside\n");
}

#[test]
fn large_files_have_holes() {
    let mut bundle = Bundle::new();
    let path = bundle.rootfs("tmp/sparse");
    let file = fs::File::create(&path).unwrap();
    file.set_len(5 << 30).unwrap();
    bundle
        .sh("cd /tmp; stat -c %s sparse; printf end | dd of=sparse bs=1 seek=5368709117 conv=notrunc 2>/dev/null; tail -c 3 sparse; echo; truncate -s 6G sparse; printf x | dd of=new bs=1 seek=4294967296 2>/dev/null; stat -c %s new")
        .says(&["5368709120", "end", "4294967297"]);
    let sparse = fs::metadata(&path).unwrap();
    assert_eq!(sparse.len(), 6 << 30);
    assert!(sparse.blocks() * 512 < 1 << 20, "the hole was filled: {} blocks", sparse.blocks());
    fs::remove_file(path).unwrap();
}

#[test]
fn a_directory_with_100_000_entries() {
    let mut bundle = Bundle::new();
    let dir = bundle.rootfs("many");
    fs::create_dir(&dir).unwrap();
    for number in 0..100_000 {
        fs::File::create(dir.join(format!("{number:06}"))).unwrap();
    }
    // busybox's ls sorts: each name once, none missing.
    bundle
        .sh("ls /many >/tmp/list; wc -l </tmp/list; sort -u /tmp/list | wc -l; head -n 1 /tmp/list; tail -n 1 /tmp/list; rm /many/050000; test -e /many/050000 || echo removed")
        .says(&["100000", "100000", "000000", "099999", "removed"]);
    assert!(!dir.join("050000").exists());
}

#[test]
fn names_may_be_any_bytes() {
    let mut bundle = Bundle::new();
    let long = "n".repeat(255);
    bundle.sh(&format!("cd /tmp; printf 1 >'a b'; printf 2 >\"$(printf 'x\\377\\ny')\"; printf 3 >{long}; printf 4 >-; ls | wc -l")).code(0);
    let name = std::ffi::OsStr::from_bytes(b"x\xff\ny");
    assert_eq!(fs::read(bundle.rootfs("tmp").join(name)).unwrap(), b"2");
    assert_eq!(fs::read(bundle.rootfs("tmp").join(long)).unwrap(), b"3");
    assert_eq!(fs::read(bundle.rootfs("tmp/-")).unwrap(), b"4");
}

/// A program that the guest wrote is mapped and run, in the same run and in the next.
#[test]
fn a_program_can_be_written_and_run() {
    let mut bundle = Bundle::new();
    bundle.sh("mkdir /tmp/bin; cp /bin/busybox /tmp/bin/echo; /tmp/bin/echo mapped").says(&["mapped"]);
    bundle.run(&["/tmp/bin/echo", "again"]).says(&["again"]);
}

/// A program that sets (PATH NAME VALUE) or prints (PATH NAME) an extended attribute: busybox has none.
const XATTR: &str = "
.globl _start
_start: mov (%rsp), %rbx
  mov 16(%rsp), %rdi
  mov 24(%rsp), %rsi
  cmp $4, %rbx
  je 2f
  lea buffer(%rip), %rdx
  mov $256, %r10
  mov $191, %eax        # getxattr
  syscall
  test %rax, %rax
  js 9f
  mov %rax, %rdx
  mov $1, %edi
  lea buffer(%rip), %rsi
  mov $1, %eax          # write
  syscall
  xor %eax, %eax
  jmp 9f
2:mov 32(%rsp), %rdx
  xor %r10, %r10
3:cmpb $0, (%rdx,%r10)
  je 4f
  inc %r10
  jmp 3b
4:xor %r8, %r8
  mov $188, %eax        # setxattr
  syscall
9:neg %eax              # the exit code is errno
  mov %eax, %edi
  mov $60, %eax
  syscall
.lcomm buffer, 256
";

fn xattr_program(bundle: &Bundle) {
    let source = bundle.file("xattr.s", XATTR);
    let (object, program) = (bundle.path("xattr.o"), bundle.rootfs("bin/xattr"));
    host(&format!(
        "as -o {0} {1} && ld -s -static -o {2} {0}",
        object.display(),
        source.display(),
        program.display()
    ));
}

fn host_xattr(path: &Path, name: &str) -> Vec<u8> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let name = CString::new(name).unwrap();
    let mut value = vec![0_u8; 256];
    // SAFETY: both strings end with NUL, and `value` has the length that is given.
    let length =
        unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    assert!(length >= 0, "{name:?}: {}", std::io::Error::last_os_error());
    value.truncate(length as usize);
    value
}

fn set_host_xattr(path: &Path, name: &str, value: &[u8]) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let name = CString::new(name).unwrap();
    // SAFETY: both strings end with NUL, and `value` has the length that is given.
    let result =
        unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    assert_eq!(result, 0, "{name:?}: {}", std::io::Error::last_os_error());
}

#[test]
fn extended_attributes_pass() {
    let mut bundle = Bundle::new();
    xattr_program(&bundle);
    let path = bundle.rootfs("tmp/file");
    fs::write(&path, "").unwrap();
    set_host_xattr(&path, "user.host", b"from host");
    bundle.sh("xattr /tmp/file user.host; echo; xattr /tmp/file user.guest 'from guest'; xattr /tmp/file user.none; echo $?").says(&["from host", "61"]);
    assert_eq!(host_xattr(&path, "user.guest"), b"from guest");
}

/// CAP_NET_BIND_SERVICE (bit 10) as permitted and effective file capabilities, revision 2.
#[test]
fn file_capabilities_are_honoured() {
    let mut bundle = Bundle::new();
    let program = bundle.rootfs("tmp/grep");
    fs::copy(bundle.rootfs("bin/busybox"), &program).unwrap();
    let mut value = [0_u8; 20];
    value[..4].copy_from_slice(&0x0200_0001_u32.to_le_bytes());
    value[4..8].copy_from_slice(&(1_u32 << 10).to_le_bytes());
    set_host_xattr(&program, "security.capability", &value);
    bundle.config["process"]["noNewPrivileges"] = json!(false);
    bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    bundle.config["process"]["args"] = json!(["/tmp/grep", "CapEff", "/proc/self/status"]);
    bundle.call().end().says(&["CapEff:\t0000000000000400"]);
}
