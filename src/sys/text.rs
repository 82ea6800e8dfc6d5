//! Text that came from somewhere untrusted, made fit for a message or a log.

/// `text` cut to `limit` characters, with control characters shown as escapes, so that it stays one
/// line and cannot drive a terminal.
pub fn printable(text: &str, limit: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(limit));
    for character in text.trim_end().chars().take(limit) {
        match character {
            control if control.is_control() => shown.extend(control.escape_default()),
            other => shown.push(other),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_shown_and_length_is_bounded() {
        assert_eq!(printable("a\x1b[31m\nb\n", 100), "a\\u{1b}[31m\\nb");
        assert_eq!(printable(&"x".repeat(50), 10), "xxxxxxxxxx");
    }
}
