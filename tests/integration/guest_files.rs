//! What a file system owes a program, checked by a program. In a container it is run as
//! `guest_files DIRECTORY [READ-ONLY-DIRECTORY]`, on what rt shares with the guest; without arguments (`cargo test`) it checks itself on a
//! temporary directory of this machine, so that it asks for nothing that a native file system does not do.
//!
//! It is a static binary that needs root and nothing else. Exit code 0 when every check held; a line for each that did not.
//! READ-ONLY-DIRECTORY holds a file `file`. `FILES` in the environment is how many a directory is filled with.

use std::cell::Cell;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};
use nix::unistd::{Whence, lseek64, mkfifo};

/// Counts what held and prints what did not.
#[derive(Default)]
struct Checks {
    held: Cell<u32>,
    failed: Cell<u32>,
}

impl Checks {
    fn that(&self, what: &str, holds: bool) {
        if holds {
            self.held.set(self.held.get() + 1);
        } else {
            self.failed.set(self.failed.get() + 1);
            println!("FAILED: {what}");
        }
    }

    fn same<T: PartialEq + std::fmt::Debug>(&self, what: &str, got: T, wanted: T) {
        self.that(&format!("{what}: {got:?}, not {wanted:?}"), got == wanted);
    }

    fn fails<T>(&self, what: &str, result: io::Result<T>, wanted: Errno) {
        self.same(what, result.err().and_then(|error| error.raw_os_error()), Some(wanted as i32));
    }
}

type Step = fn(&Checks) -> io::Result<()>;

const STEPS: [(&str, Step); 11] = [
    ("modes and owners", modes),
    ("links", links),
    ("special files", special),
    ("extended attributes", attributes),
    ("access control lists", lists),
    ("removed while open", removed),
    ("large and sparse files", large),
    ("maps and direct I/O", maps),
    ("renames", renames),
    ("locks, times, appending", small_things),
    ("many files", many),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    // What cargo passes to a test begins with a dash.
    let given = arguments.get(1).filter(|argument| !argument.starts_with('-'));
    let temporary = match given {
        Some(_) => None,
        None => Some(tempfile::tempdir_in("/var/tmp").expect("a directory")),
    };
    let directory = temporary.as_ref().map(tempfile::TempDir::path).or(given.map(Path::new));
    let directory = directory.expect("one of the two");
    std::env::set_current_dir(directory).expect("the directory exists");
    umask(Mode::from_bits_truncate(0o022));
    let checks = Checks::default();
    for (name, step) in STEPS {
        if let Err(error) = step(&checks) {
            checks.that(&format!("{name}: {error}"), false);
        }
    }
    if let Some(directory) = arguments.get(2) {
        read_only(&checks, Path::new(directory));
    }
    let (held, failed) = (checks.held.get(), checks.failed.get());
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {result}. {held} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out");
    ExitCode::from(u8::from(checks.failed.get() != 0))
}

fn mode(path: &str) -> io::Result<u32> {
    Ok(fs::symlink_metadata(path)?.mode() & 0o7777)
}

fn set_mode(path: &str, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn owner(path: &str) -> io::Result<(u32, u32)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.uid(), file.gid()))
}

/// Runs `work` with another user's credentials, which a thread can have for itself.
fn as_user<T: Send>(id: u32, groups: &[u32], work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: numbers and a live array; raw calls change this thread only, which ends with `work`.
            let result = unsafe {
                libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr())
                    | libc::syscall(libc::SYS_setresgid, id, id, id)
                    | libc::syscall(libc::SYS_setresuid, id, id, id)
            };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
            work()
        });
        thread.join().expect("work does not panic")
    })
}

fn modes(check: &Checks) -> io::Result<()> {
    fs::write("m", "x")?;
    for wanted in [0o4755, 0o2755, 0o1777, 0o6711, 0o444, 0] {
        set_mode("m", wanted)?;
        check.same("chmod", mode("m")?, wanted);
    }
    lchown("m", Some(12_345), Some(54_321))?;
    check.same("chown", owner("m")?, (12_345, 54_321));
    set_mode("m", 0o6755)?;
    lchown("m", Some(1), Some(1))?;
    check.same("chown clears set-ID bits", mode("m")?, 0o755);
    set_mode("m", 0o4777)?;
    OpenOptions::new().append(true).open("m")?.write_all(b"y")?;
    check.same("root's write keeps them", mode("m")?, 0o4777);
    as_user(1000, &[], || OpenOptions::new().append(true).open("m")?.write_all(b"y"))?;
    check.same("a user's write clears them", mode("m")?, 0o777);
    set_mode("m", 0o4777)?;
    as_user(1000, &[], || OpenOptions::new().write(true).truncate(true).open("m"))?;
    check.same("a user's truncation clears them", mode("m")?, 0o777);

    fs::create_dir("group")?;
    lchown("group", Some(0), Some(777))?;
    set_mode("group", 0o2777)?;
    as_user(1000, &[], || fs::write("group/file", "").and_then(|()| fs::create_dir("group/directory")))?;
    check.same("a set-group-ID directory gives its group", owner("group/file")?, (1000, 777));
    check.same("and its bit to a directory", mode("group/directory")? & 0o2000, 0o2000);
    set_mode("group", 0o770)?;
    check.fails("no access", as_user(1000, &[], || fs::read_dir("group")), Errno::EACCES);
    check.that("access by group", as_user(1000, &[777], || fs::write("group/mine", "")).is_ok());

    fs::create_dir("sticky")?;
    set_mode("sticky", 0o1777)?;
    fs::write("sticky/root", "")?;
    check.fails("sticky directory", as_user(1000, &[], || fs::remove_file("sticky/root")), Errno::EPERM);
    let unreadable = || OpenOptions::new().create_new(true).write(true).mode(0o000).open("sticky/mine");
    let written = as_user(1000, &[], || unreadable()?.write_all(b"x"));
    check.that("who makes a file without permissions may write it", written.is_ok());
    Ok(())
}

fn links(check: &Checks) -> io::Result<()> {
    fs::write("l1", "data")?;
    fs::hard_link("l1", "l2")?;
    let (one, two) = (fs::metadata("l1")?, fs::metadata("l2")?);
    check.same("hard link", (one.ino(), one.nlink()), (two.ino(), 2));
    fs::remove_file("l1")?;
    check.same("after one is gone", (fs::metadata("l2")?.nlink(), fs::read("l2")?), (1, b"data".to_vec()));
    let long = "a".repeat(4000);
    for (name, content) in
        [("absolute", "/nowhere"), ("up", "../../../../../../etc/shadow"), ("long", &long), ("loop", "loop")]
    {
        symlink(content, name)?;
        check.same("readlink", fs::read_link(name)?, content.into());
    }
    check.fails("dangling link", fs::metadata("absolute"), Errno::ENOENT);
    check.fails("loop", fs::metadata("loop"), Errno::ELOOP);
    let nofollow = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open("absolute");
    check.fails("O_NOFOLLOW", nofollow, Errno::ELOOP);
    lchown("up", Some(5), Some(6))?;
    check.same("owner of a link", owner("up")?, (5, 6));
    Ok(())
}

fn special(check: &Checks) -> io::Result<()> {
    mkfifo("fifo", Mode::from_bits_truncate(0o640))?;
    let writer = std::thread::spawn(|| fs::write("fifo", "through"));
    check.same("FIFO", fs::read_to_string("fifo")?, "through".into());
    writer.join().expect("no panic")?;
    let all = Mode::from_bits_truncate(0o666);
    for (name, kind, number) in [
        ("null", SFlag::S_IFCHR, makedev(1, 3)),
        ("large", SFlag::S_IFBLK, makedev(300, 70_000)),
        ("whiteout", SFlag::S_IFCHR, 0),
    ] {
        mknod(name, kind, all, number)?;
        let file = fs::symlink_metadata(name)?;
        check.same("device number", file.rdev(), number);
        check.same("device type", file.file_type().is_char_device(), kind == SFlag::S_IFCHR);
    }
    let listener = UnixListener::bind("socket")?;
    let mut client = UnixStream::connect("socket")?;
    client.write_all(b"hi")?;
    let mut heard = [0; 2];
    listener.accept()?.0.read_exact(&mut heard)?;
    check.same("socket", (&heard, fs::metadata("socket")?.file_type().is_socket()), (b"hi", true));
    Ok(())
}

fn c(text: &str) -> CString {
    CString::new(text).expect("no NUL")
}

fn set_attribute(path: &str, name: &str, value: &[u8], flags: i32) -> io::Result<()> {
    let (path, name) = (c(path), c(name));
    // SAFETY: strings and a buffer of the given length, all alive.
    let result =
        unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn attribute(path: &str, name: &str) -> io::Result<Vec<u8>> {
    let (path, name, mut value) = (c(path), c(name), vec![0; 65_536]);
    // SAFETY: strings and a buffer of the given length, all alive.
    let result =
        unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    value.truncate(result as usize);
    Ok(value)
}

fn attributes(check: &Checks) -> io::Result<()> {
    fs::write("x", "x")?;
    let big = vec![b'b'; 3000];
    for (name, value) in [("user.a", &b"1"[..]), ("user.big", &big), ("trusted.t", b"T")] {
        set_attribute("x", name, value, 0)?;
        check.same(name, attribute("x", name)?, value.to_vec());
    }
    check.fails("create twice", set_attribute("x", "user.a", b"", libc::XATTR_CREATE), Errno::EEXIST);
    check.fails("replace none", set_attribute("x", "user.n", b"", libc::XATTR_REPLACE), Errno::ENODATA);
    check.fails("trusted for a user", as_user(1000, &[], || attribute("x", "trusted.t")), Errno::ENODATA);
    // CAP_NET_BIND_SERVICE, permitted and effective: struct vfs_cap_data of linux/capability.h.
    let mut capability = [0; 20];
    (capability[0], capability[3], capability[5]) = (1, 2, 1 << 2);
    set_attribute("x", "security.capability", &capability, 0)?;
    check.same("file capability", attribute("x", "security.capability")?, capability.to_vec());
    OpenOptions::new().append(true).open("x")?.write_all(b"w")?;
    check.fails("a write takes it away", attribute("x", "security.capability"), Errno::ENODATA);
    Ok(())
}

/// posix_acl_xattr.h: version 2, then tag, permissions and ID of each entry.
fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes().into_iter().chain(permissions.to_le_bytes()).chain(id.to_le_bytes()));
    }
    bytes
}

/// On a FUSE submount Linux has no lists; then that must be said, and nothing granted.
fn lists(check: &Checks) -> io::Result<()> {
    const NONE: u32 = u32::MAX;
    let access = list(&[(1, 6, NONE), (2, 4, 1000), (4, 0, NONE), (16, 4, NONE), (32, 0, NONE)]);
    fs::write("acl", "x")?;
    set_mode("acl", 0o600)?;
    match set_attribute("acl", "system.posix_acl_access", &access, 0) {
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            println!("no access control lists here");
            check.fails("no list", as_user(1000, &[], || fs::read("acl")), Errno::EACCES);
            return Ok(());
        }
        result => result?,
    }
    check.same("list", attribute("acl", "system.posix_acl_access")?, access);
    check.same("its mask in the mode", mode("acl")?, 0o640);
    check.that("it grants", as_user(1000, &[], || fs::read("acl")).is_ok());
    check.fails("and refuses", as_user(1001, &[], || fs::read("acl")), Errno::EACCES);
    fs::create_dir("acls")?;
    let default = list(&[(1, 7, NONE), (2, 7, 1000), (4, 5, NONE), (16, 7, NONE), (32, 5, NONE)]);
    set_attribute("acls", "system.posix_acl_default", &default, 0)?;
    let old = umask(Mode::from_bits_truncate(0o077));
    fs::write("acls/file", "")?;
    umask(old);
    check.same("a default list, not the umask", mode("acls/file")?, 0o664);
    check.that("is inherited", !attribute("acls/file", "system.posix_acl_access")?.is_empty());
    Ok(())
}

fn read_write(name: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).open(name)
}

fn removed(check: &Checks) -> io::Result<()> {
    let mut file = read_write("removed")?;
    file.write_all(b"12345")?;
    fs::remove_file("removed")?;
    file.rewind()?;
    check.same("read what is removed", io::read_to_string(&file)?, "12345".into());
    file.set_len(100_000)?;
    let status = file.metadata()?;
    check.same("size and links", (status.len(), status.nlink()), (100_000, 0));
    file.set_permissions(fs::Permissions::from_mode(0o604))?;
    check.same("its mode", file.metadata()?.mode() & 0o7777, 0o604);
    check.fails("its name", fs::metadata("removed"), Errno::ENOENT);

    let mut old = read_write("r1")?;
    old.write_all(b"old")?;
    fs::write("r2", "new")?;
    fs::rename("r2", "r1")?;
    old.rewind()?;
    check.same(
        "renamed over",
        (io::read_to_string(&old)?, fs::read_to_string("r1")?),
        ("old".into(), "new".into()),
    );
    Ok(())
}

fn large(check: &Checks) -> io::Result<()> {
    const FAR: u64 = 6 << 30;
    let file = read_write("big")?;
    file.write_all_at(b"end", FAR)?;
    let status = file.metadata()?;
    check.same("size beyond 4 GiB", status.len(), FAR + 3);
    check.that("a hole takes no space", status.blocks() < 1000);
    let mut read = [1; 4];
    file.read_exact_at(&mut read, 5 << 30)?;
    check.same("a hole reads as zeros", read, [0; 4]);
    check.same("data after it", lseek64(&file, 0, Whence::SeekData)?, FAR as i64);
    check.same("hole at the start", lseek64(&file, 0, Whence::SeekHole)?, 0);
    fallocate(&file, FallocateFlags::empty(), 0, 1 << 20)?;
    check.that("fallocate takes space", file.metadata()?.blocks() >= 2048);
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, 0, 1 << 20)?;
    check.that("a punched hole gives it back", file.metadata()?.blocks() < 1000);
    fs::write("copied", vec![b'c'; 100_000])?;
    // copy_file_range(2), where there is one.
    check.same("copied", (fs::copy("copied", "copy")?, fs::metadata("copy")?.len()), (100_000, 100_000));
    Ok(())
}

fn maps(check: &Checks) -> io::Result<()> {
    use nix::sys::mman::{MapFlags, MsFlags, ProtFlags, mmap, mmap_anonymous, msync, munmap};
    let file = read_write("mapped")?;
    file.write_all_at(&[b'a'; 8192], 0)?;
    let length = std::num::NonZero::new(8192).expect("not zero");
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a fresh mapping of 8192 bytes, as long as the file, used within these bounds and until munmap.
    unsafe {
        let map = mmap(None, length, protection, MapFlags::MAP_SHARED, &file, 0)?;
        let bytes = map.cast::<u8>().as_ptr();
        bytes.add(5000).write_volatile(b'Z');
        msync(map, 8192, MsFlags::MS_SYNC)?;
        let mut read = [0];
        file.read_exact_at(&mut read, 5000)?;
        check.same("a write to a map reaches the file", read, *b"Z");
        file.write_all_at(b"q", 100)?;
        check.same("a write to the file reaches the map", bytes.add(100).read_volatile(), b'q');
        munmap(map, 8192)?;

        let direct = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open("mapped")?;
        let page = mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE)?;
        let buffer = std::slice::from_raw_parts_mut(page.cast::<u8>().as_ptr(), 8192);
        buffer.fill(b'D');
        direct.write_all_at(buffer, 0)?;
        buffer.fill(0);
        direct.read_exact_at(buffer, 0)?;
        check.that("direct I/O", buffer.iter().all(|byte| *byte == b'D'));
        munmap(page, 8192)?;
    }
    check.that("both see it", fs::read("mapped")?.iter().all(|byte| *byte == b'D'));
    Ok(())
}

fn renames(check: &Checks) -> io::Result<()> {
    let rename = |from: &str, to: &str, flags| -> io::Result<()> {
        Ok(renameat2(AT_FDCWD, from, AT_FDCWD, to, flags)?)
    };
    fs::write("ra", "A")?;
    fs::write("rb", "B")?;
    check.fails("RENAME_NOREPLACE", rename("ra", "rb", RenameFlags::RENAME_NOREPLACE), Errno::EEXIST);
    rename("ra", "rb", RenameFlags::RENAME_EXCHANGE)?;
    check.same("RENAME_EXCHANGE", fs::read_to_string("ra")?, "B".into());
    fs::create_dir("da")?;
    fs::create_dir("db")?;
    fs::write("db/f", "")?;
    check.fails("onto a full directory", fs::rename("da", "db"), Errno::ENOTEMPTY);
    check.fails("into itself", fs::rename("da", "da/x"), Errno::EINVAL);
    fs::rename("db", "da")?;
    check.that("onto an empty one", Path::new("da/f").exists());
    check.fails("long name", fs::write("n".repeat(256), ""), Errno::ENAMETOOLONG);
    fs::write("n".repeat(255), "")?;
    fs::write("new\nline \u{1b}[2J", "")?;
    check.that("odd name", fs::read_dir(".")?.flatten().any(|e| e.file_name() == "new\nline \u{1b}[2J"));
    Ok(())
}

fn small_things(check: &Checks) -> io::Result<()> {
    let file = read_write("lock")?;
    file.lock()?;
    check.that("a lock excludes", File::open("lock")?.try_lock_shared().is_err());
    file.unlock()?;
    check.that("until it is gone", File::open("lock")?.try_lock_shared().is_ok());

    let moment = std::time::UNIX_EPOCH + std::time::Duration::new(1_234_567_890, 123_456_789);
    file.set_modified(moment)?;
    check.same("time in nanoseconds", fs::metadata("lock")?.mtime_nsec(), 123_456_789);
    check.same("time", file.metadata()?.modified()?, moment);

    let append = || OpenOptions::new().append(true).create(true).open("append");
    let (one, two) = (append()?, append()?);
    for (mut file, text) in [(&one, b"1"), (&two, b"2"), (&one, b"3")] {
        file.write_all(text)?;
    }
    check.same("appending by two", fs::read_to_string("append")?, "123".into());
    one.sync_all()?;
    one.sync_data()?;
    let mut buffer = [0; 10];
    check.same("read at the end", File::open("append")?.read_at(&mut buffer, 3)?, 0);
    check.same("seek", File::open("append")?.seek(SeekFrom::End(-1))?, 2);
    check.fails("O_EXCL", OpenOptions::new().write(true).create_new(true).open("append"), Errno::EEXIST);
    let space = nix::sys::statvfs::statvfs(".")?;
    check.that("statfs", space.blocks() > 1000 && space.name_max() >= 255);

    fs::copy("/proc/self/exe", "program")?;
    let running = OpenOptions::new().append(true).open("program")?;
    let busy = std::process::Command::new("./program").arg("/").status();
    check.fails("executing what is open for writing", busy, Errno::ETXTBSY);
    drop(running);
    check.same("descriptor table", file.as_raw_fd() >= 3, true);
    Ok(())
}

fn many(check: &Checks) -> io::Result<()> {
    let count = std::env::var("FILES").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    fs::create_dir("many")?;
    for number in 0..count {
        File::create_new(format!("many/file{number}"))?;
    }
    check.same("names", fs::read_dir("many")?.count(), count);
    let mut empty = 0;
    for entry in fs::read_dir("many")? {
        empty += usize::from(entry?.metadata()?.len() == 0);
    }
    check.same("status of each", empty, count);
    for number in (0..count).step_by(2) {
        fs::remove_file(format!("many/file{number}"))?;
    }
    check.same("names, half of them removed", fs::read_dir("many")?.count(), count / 2);
    Ok(())
}

fn read_only(check: &Checks, directory: &Path) {
    let file = directory.join("file");
    let new = directory.join("new");
    let before = fs::read(&file);
    check.that("read-only: it reads", before.is_ok());
    let results = [
        ("create", fs::write(&new, "")),
        ("write", OpenOptions::new().append(true).open(&file).map(drop)),
        ("truncate", OpenOptions::new().write(true).truncate(true).open(&file).map(drop)),
        ("mkdir", fs::create_dir(&new)),
        ("remove", fs::remove_file(&file)),
        ("rename", fs::rename(&file, &new)),
        ("link", fs::hard_link(&file, &new)),
        ("symlink", symlink("x", &new)),
        ("FIFO", mkfifo(&new, Mode::empty()).map_err(io::Error::from)),
        ("mode", fs::set_permissions(&file, fs::Permissions::from_mode(0o777))),
        ("owner", lchown(&file, Some(1), Some(1))),
        ("attribute", set_attribute(&file.to_string_lossy(), "user.a", b"", 0)),
    ];
    for (what, result) in results {
        check.fails(&format!("read-only: {what}"), result, Errno::EROFS);
    }
    check.same("read-only: unchanged", fs::read(&file).ok(), before.ok());
}
