//! Text that came from somewhere untrusted, made fit for a message or a log.

/// `text` cut to `limit` characters, with control characters shown as escapes, so that it stays one
/// line, cannot drive a terminal and is read in the order in which it is written.
pub fn printable(text: &str, limit: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(limit));
    for character in text.trim_end().chars().take(limit) {
        match character {
            control if control.is_control() || is_format(control) => shown.extend(control.escape_default()),
            other => shown.push(other),
        }
    }
    shown
}

/// Line ends and marks of direction beyond ASCII.
fn is_format(character: char) -> bool {
    matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_shown_and_length_is_bounded() {
        assert_eq!(printable("a\x1b[31m\nb\n", 100), "a\\u{1b}[31m\\nb");
        assert_eq!(printable("a\u{202e}b\u{2028}c \u{e9}", 100), "a\\u{202e}b\\u{2028}c \u{e9}");
        assert_eq!(printable(&"x".repeat(50), 10), "xxxxxxxxxx");
    }
}
