//! Safe wrappers of the system calls that several rooms need. Nothing here knows what a container is.

pub mod bpf;
pub mod clock;
pub mod credentials;
pub mod fd;
pub mod id_map;
pub mod memory;
pub mod mount;
pub mod mountinfo;
pub mod pidfd;
pub mod process;
pub mod progress;
pub mod random;
pub mod signal;
pub mod steer;
pub mod terminal;
pub mod text;
pub mod tun;
pub mod users;
