//! Where the tests run, and what they find there.

use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use super::Bundle;

/// What carries the guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// rt's own VMM.
    Kvm,
    /// QEMU's software emulation.
    Emulation,
}

/// Where this is. The tests' caller says so and is believed, since `backend` checks it; else rt is asked.
pub fn place() -> Place {
    static PLACE: OnceLock<Place> = OnceLock::new();
    *PLACE.get_or_init(|| match std::env::var("RT_TEST_PLACE").as_deref() {
        Ok("kvm") => Place::Kvm,
        Ok("emulation") => Place::Emulation,
        Ok(other) => panic!("RT_TEST_PLACE is {other:?}, but has to be kvm or emulation"),
        Err(_) => match Bundle::new().call().global(&["--hypervisor", "kvm"]).end().code == 0 {
            true => Place::Kvm,
            false => Place::Emulation,
        },
    })
}

/// The binary under test.
pub fn rt_binary() -> PathBuf {
    let path = std::env::var_os("RT_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/release/rt"), PathBuf::from);
    assert!(
        path.is_file(),
        "{}: there is no binary to test; run `make build`, or set RT_BIN",
        path.display()
    );
    path
}

/// A file of the guest that lies beside the binary: `guest_file("quick", "vmlinux")`.
pub fn guest_file(kind: &str, name: &str) -> PathBuf {
    let path = rt_binary().parent().expect("a file has a folder").join("guest").join(kind).join(name);
    assert!(path.is_file(), "{}: there is no such guest; run `make {kind}-guest`", path.display());
    path
}

/// A time limit, scaled to the machine.
pub fn patience(seconds: u64) -> Duration {
    let factor = std::env::var("RT_TEST_PATIENCE").map_or(1, |text| {
        text.parse().unwrap_or_else(|_| panic!("RT_TEST_PATIENCE is {text:?}, but has to be a number"))
    });
    Duration::from_secs(seconds * factor)
}

/// Says why a test does not run here. Past libtest's capture, so that it is seen.
pub fn skipped(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
}
