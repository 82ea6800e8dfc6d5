//! What a container's process tells its service manager (sd_notify(3)), on its way to the host: datagrams that come to a
//! socket which the container sees below [`rt_proto::NOTIFY_DIR`], each with its length before it.

use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

/// Longest message that is passed on; systemd's own limit.
const LONGEST: usize = 4096;

/// A container's socket. Dropping it removes it.
pub struct Notify {
    socket: Arc<UnixDatagram>,
    directory: PathBuf,
}

impl Notify {
    /// Makes the socket of a container, and moves what comes to `stream`.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(container: &str, stream: OwnedFd) -> std::io::Result<Self> {
        let directory = rt_proto::notify_dir(container);
        fs::create_dir_all(&directory)?;
        // By the directory's descriptor, since a socket's path holds no more than 107 bytes.
        let handle = fs::File::open(&directory)?;
        let path = format!("/proc/self/fd/{}/{}", handle.as_raw_fd(), rt_proto::NOTIFY_NAME);
        let socket = Arc::new(UnixDatagram::bind(&path)?);
        // Whoever the process runs as.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        let notify = Self { socket: Arc::clone(&socket), directory };
        thread::Builder::new().name("notify".to_owned()).spawn(move || {
            let mut stream = UnixStream::from(stream);
            let mut frame = [0; 4 + LONGEST];
            while let Ok(length @ 1..) = socket.recv(&mut frame[4..]) {
                frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
                if stream.write_all(&frame[..4 + length]).is_err() {
                    break;
                }
            }
        })?;
        Ok(notify)
    }
}

impl Drop for Notify {
    fn drop(&mut self) {
        // Its thread wakes up.
        let _ = self.socket.shutdown(Shutdown::Both);
        let _ = fs::remove_dir_all(&self.directory);
    }
}
