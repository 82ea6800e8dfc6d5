//! Container IDs, which become file names: runc's alphabet and rules.

/// Linux' limit for a file name; the ID is one.
const MAX: usize = 255;

/// An ID that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    #[error("container id cannot be empty")]
    Empty,
    #[error("invalid container ID format: {length} characters, at most {MAX} are allowed")]
    Long { length: usize },
    #[error("invalid container ID format: {0:?}; letters, digits, '_', '+', '-' and '.' are allowed")]
    Format(String),
}

/// # Errors
/// [`InvalidId`]
pub fn validate(id: &str) -> Result<(), InvalidId> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if id.is_empty() {
        Err(InvalidId::Empty)
    } else if id.len() > MAX {
        Err(InvalidId::Long { length: id.len() })
    } else if !id.bytes().all(allowed) || id == "." || id == ".." {
        Err(InvalidId::Format(crate::sys::text::printable(id, MAX)))
    } else {
        Ok(())
    }
}

/// An ID for a container that its user did not name.
///
/// # Errors
/// What reading the system's random numbers says.
pub fn generate() -> std::io::Result<String> {
    let mut bytes = [0; 6];
    crate::sys::random::fill(&mut bytes)?;
    Ok(bytes.iter().fold("rt-".to_owned(), |id, byte| id + &format!("{byte:02x}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_runc() {
        for good in ["a", "A_b+c-d.9", "..a", &"x".repeat(255)] {
            assert_eq!(validate(good), Ok(()), "{good}");
        }
        assert_eq!(validate(""), Err(InvalidId::Empty));
        assert_eq!(validate(&"x".repeat(256)), Err(InvalidId::Long { length: 256 }));
        for bad in ["a/b", ".", "..", "a b", "ä", "a\n"] {
            assert!(
                validate(bad).unwrap_err().to_string().starts_with("invalid container ID format"),
                "{bad}"
            );
        }
    }

    #[test]
    fn generated_ids_are_valid_and_differ() {
        let (one, two) = (generate().unwrap(), generate().unwrap());
        assert_eq!(validate(&one), Ok(()));
        assert_ne!(one, two);
    }
}
