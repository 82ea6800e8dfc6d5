//! The guest's console on disk: two files in the state directory, each at most so long, the older one first.
//!
//! The guest writes what it likes and as much as it likes, so only what can be printed is kept, and only the end of it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Of each of the two files.
const MAX_BYTES: u64 = 256 << 10;
const FILE: &str = "console.log";
const OLDER: &str = "console.log.1";

/// The console as it is written. A full disk loses lines, nothing else.
#[derive(Debug)]
pub struct Console {
    path: PathBuf,
    older: PathBuf,
    /// Opened at the first byte: most guests say nothing.
    file: Option<File>,
    length: u64,
}

impl Console {
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join(FILE), older: state_dir.join(OLDER), file: None, length: 0 }
    }

    /// Appends what can be printed of these bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        let printable: Vec<u8> = bytes.iter().filter_map(|byte| printable(*byte)).collect();
        if printable.is_empty() {
            return;
        }
        if let Err(error) = self.append(&printable) {
            tracing::debug!("cannot keep the guest's console in {}: {error}", self.path.display());
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.length + bytes.len() as u64 > MAX_BYTES {
            self.file = None;
            fs::rename(&self.path, &self.older)?;
            self.length = 0;
        }
        if self.file.is_none() {
            let mut options = OpenOptions::new();
            options.append(true).create(true).mode(0o600);
            self.file = Some(options.open(&self.path)?);
        }
        self.length += bytes.len() as u64;
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(bytes))
    }
}

/// ASCII that moves no cursor; anything else shows as `?`, and of line ends the newline is enough.
fn printable(byte: u8) -> Option<u8> {
    match byte {
        b'\n' | b' '..=b'~' => Some(byte),
        b'\t' => Some(b' '),
        b'\r' | 0 => None,
        _ => Some(b'?'),
    }
}

/// What is kept of a console, oldest first; empty where the guest said nothing.
///
/// # Errors
/// It cannot be read.
pub fn read(state_dir: &Path) -> io::Result<String> {
    let mut text = Vec::new();
    for name in [OLDER, FILE] {
        match File::open(state_dir.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => drop(other?.take(MAX_BYTES).read_to_end(&mut text)?),
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_console_is_kept_printable() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), "");
        let mut console = Console::new(dir.path());
        console.write(b"\r\0");
        assert!(!dir.path().join(FILE).exists());
        console.write(b"one\x1b[2J\ttwo\r\n\xff\n");
        assert_eq!(read(dir.path()).unwrap(), "one?[2J two\n?\n");
        for _ in 0..300 {
            console.write(&[b'x'; 4096]);
        }
        console.write(b"last\n");
        let text = read(dir.path()).unwrap();
        assert!(text.len() as u64 <= 2 * MAX_BYTES && text.ends_with("xlast\n"), "{}", text.len());
        assert!(text.len() as u64 > MAX_BYTES);
    }
}
