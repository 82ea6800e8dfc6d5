//! Random numbers from the kernel.

use std::io;

/// Fills `bytes`.
///
/// # Errors
/// What getrandom(2) says; never on a kernel that has booted.
pub fn fill(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = &mut bytes[filled..];
        // SAFETY: writes at most rest.len() bytes to a buffer of that length.
        let length = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(length) {
            Ok(length) => filled += length,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

/// Any number but 0.
///
/// # Errors
/// As [`fill`].
pub fn non_zero() -> io::Result<u64> {
    let mut bytes = [0; 8];
    fill(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ() {
        assert_ne!(non_zero().unwrap(), non_zero().unwrap());
    }
}
