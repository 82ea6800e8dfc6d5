//! TUN devices, whose other end is this program.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::netns::Netns;

/// A TUN device of this name in a namespace; it is gone when this is dropped. Packets have a virtio-net header in front of them, and may be
/// segments larger than the wire's.
pub fn tun(netns: &Netns, name: &str) -> File {
    let made = netns.within(|| -> io::Result<File> {
        let device = File::options().read(true).write(true).open("/dev/net/tun")?;
        // SAFETY: plain data, for which zeros are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *place = byte as libc::c_char;
        }
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: the kernel reads and writes one ifreq, which outlives the call.
        done(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &mut request) })?;
        let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        // SAFETY: takes a number.
        done(unsafe {
            libc::ioctl(device.as_raw_fd(), libc::TUNSETOFFLOAD as _, offloads as libc::c_ulong)
        })?;
        Ok(device)
    });
    made.expect("a TUN device")
}

/// One that says that it is of another link layer, PPP's, which no virtual machine has.
pub fn ppp(netns: &Netns, name: &str) -> File {
    let device = tun(netns, name);
    // SAFETY: takes a number.
    let set = done(unsafe {
        libc::ioctl(device.as_raw_fd(), libc::TUNSETLINK as _, libc::ARPHRD_PPP as libc::c_ulong)
    });
    set.expect("a link layer");
    device
}

fn done(status: libc::c_int) -> io::Result<()> {
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What comes out of one TUN device goes into the other.
pub struct Wire {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    pub fn between(one: File, other: File) -> Self {
        let stop = Arc::new(EventFd::new().expect("an eventfd"));
        let until = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut packet = vec![0; 70_000];
            loop {
                let mut ready =
                    [until.as_fd(), one.as_fd(), other.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
                poll(&mut ready, PollTimeout::NONE).expect("polled");
                let [stopped, first, second] = ready.map(|fd| fd.any() == Some(true));
                if stopped {
                    return;
                }
                for (_, mut from, mut to) in
                    [(first, &one, &other), (second, &other, &one)].into_iter().filter(|(ready, ..)| *ready)
                {
                    // The other end may be down, or its device gone.
                    let Ok(length) = from.read(&mut packet) else { return };
                    let _ = to.write(&packet[..length]);
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.write(1).expect("told");
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
