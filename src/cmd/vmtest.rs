//! Temporary: starts a VM with QEMU and measures.
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use crate::hypervisor::qemu::{Accelerator, Qemu, find};
use crate::hypervisor::{Hypervisor, VmFds, VmSpec};

pub fn main(args: &[std::ffi::OsString]) -> std::process::ExitCode {
    let kind = args[0].to_str().unwrap();
    let mib: u64 = args.get(1).map_or(16, |a| a.to_str().unwrap().parse().unwrap());
    let params = args.get(2).map_or(String::new(), |a| a.to_str().unwrap().to_owned());
    let accelerator = if std::env::var_os("KVM").is_some() { Accelerator::Kvm } else { Accelerator::Tcg };
    let dir = tempfile_dir();
    let fs_path = dir.join("fs");
    let listener = UnixListener::bind(&fs_path).unwrap();
    let share = UnixStream::connect(&fs_path).unwrap();
    let mut virtiofsd = std::process::Command::new("/usr/lib/qemu/virtiofsd");
    virtiofsd.args(["--fd=3", "-o", "source=/tmp/vsw/share", "-o", "sandbox=chroot"]);
    virtiofsd.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let raw = listener.as_raw_fd();
    // SAFETY: test.
    unsafe {
        virtiofsd.pre_exec(move || {
            libc::dup2(raw, 3);
            libc::fcntl(3, libc::F_SETFD, 0);
            Ok(())
        });
    }
    let mut fsd = virtiofsd.spawn().unwrap();
    let home = std::env::var("HOME").unwrap();
    let spec = VmSpec {
        id: "test".into(),
        vcpus: std::env::var("CPUS").map_or(1, |c| c.parse().unwrap()),
        memory_mib: 128,
        kernel: std::env::var("KERNEL").unwrap_or(format!("{home}/.cache/rt/kernel/{kind}/vmlinux")).into(),
        initramfs: std::env::var("INITRAMFS").unwrap_or(format!("/tmp/vsw/initramfs-{kind}")).into(),
        kernel_parameters: params,
        console: std::env::var_os("CONSOLE").is_some(),
        state_dir: dir.clone(),
        share_tag: "rt".into(),
    };
    let start = Instant::now();
    let qemu = Qemu { binary: find(None).unwrap(), accelerator };
    let mut vm = match qemu.launch(&spec, VmFds { share: OwnedFd::from(share) }) {
        Ok(vm) => vm,
        Err(error) => {
            println!("launch: {:#}", anyhow::Error::from(error));
            let _ = fsd.kill();
            return std::process::ExitCode::FAILURE;
        }
    };
    println!("launched {:?}", start.elapsed());
    match vm.accept(Instant::now() + Duration::from_secs(60)) {
        Err(error) => println!("accept: {:#}", anyhow::Error::from(error)),
        Ok(fd) => {
            let mut text = Vec::new();
            let mut stream = UnixStream::from(fd);
            let mut beacon = [0; 16];
            stream.read_exact(&mut beacon).unwrap();
            println!("beacon {:?}", start.elapsed());
            if std::env::var_os("BEACON").is_none() {
                stream.read_to_end(&mut text).unwrap();
                println!("then {:?}", String::from_utf8_lossy(&text));
                duplex(&*vm, mib);
            }
        }
    }
    let ending = vm.end();
    println!("{ending:#?}");
    let _ = fsd.kill();
    let _ = fsd.wait();
    println!(
        "left: {:?}",
        std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>()
    );
    std::process::ExitCode::SUCCESS
}

fn duplex(vm: &dyn crate::hypervisor::Vm, mib: u64) {
    let total = mib << 20;
    let begin = Instant::now();
    let mut stream = UnixStream::from(vm.connect(1026).unwrap());
    stream.write_all(&total.to_le_bytes()).unwrap();
    println!("connected {:?}", begin.elapsed());
    let mut reader = stream.try_clone().unwrap();
    let thread = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 18];
        let mut count = 0_u64;
        loop {
            let n = reader.read(&mut buffer).unwrap();
            if n == 0 {
                break;
            }
            for (i, b) in buffer[..n].iter().enumerate() {
                assert_eq!(*b, ((count + i as u64) * 13 >> 2) as u8);
            }
            count += n as u64;
        }
        count
    });
    let mut sent = 0_u64;
    let mut buffer = vec![0; 1 << 16];
    while sent < total {
        for (i, b) in buffer.iter_mut().enumerate() {
            *b = ((sent + i as u64) * 7 >> 3) as u8;
        }
        stream.write_all(&buffer).unwrap();
        sent += buffer.len() as u64;
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let count = thread.join().unwrap();
    println!("duplex {} MiB each way in {:?}", count >> 20, begin.elapsed());
}

fn tempfile_dir() -> std::path::PathBuf {
    let dir = std::env::temp_dir().join(format!("vmtest-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    dir
}
