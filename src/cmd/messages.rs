//! docs/troubleshooting.md has every message that rt can fail with: looked up in the source, so that a new one is not forgotten.

use std::path::{Path, PathBuf};

/// Between two values, the least that tells a message from others.
const TELLING: usize = 10;

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, found),
            false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
            false => {}
        }
    }
}

/// The texts of `#[error("…")]`, with what stands in the source.
fn messages(source: &str) -> Vec<String> {
    let attribute = |rest: &str| {
        let text = rest.trim_start().strip_prefix('"')?;
        let mut message = String::new();
        let mut characters = text.chars().peekable();
        loop {
            match characters.next()? {
                '"' => return Some(message),
                '\\' if characters.next_if_eq(&'\n').is_some() => {
                    while characters.next_if(|c| c.is_whitespace()).is_some() {}
                }
                '\\' => message.extend(characters.next()),
                c => message.push(c),
            }
        }
    };
    let code = source.split("#[cfg(test)]\nmod tests").next().unwrap_or(source);
    code.split("#[error(").skip(1).filter_map(attribute).collect()
}

/// The longest piece of a message that holds whatever its values are; up to where it says what to do, which the page has its own words for.
fn piece(message: &str) -> &str {
    let pieces = message.split('{').map(|part| part.split_once('}').map_or(part, |(_, after)| after));
    pieces
        .map(|piece| {
            piece
                .split([';', '?'])
                .next()
                .unwrap_or(piece)
                .split(". ")
                .next()
                .unwrap_or(piece)
                .trim_matches([' ', ':', ',', '('])
        })
        .max_by_key(|piece| piece.len())
        .unwrap_or_default()
}

#[test]
fn every_message_has_its_place_in_the_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/troubleshooting.md")).unwrap();
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    let mut missing = Vec::new();
    let mut seen = 0;
    for file in files.iter().filter(|file| !file.ends_with("messages.rs")) {
        for message in messages(&std::fs::read_to_string(file).unwrap()) {
            let piece = piece(&message);
            seen += 1;
            if piece.len() >= TELLING && !page.contains(piece) {
                missing.push(format!("{}: {message}", file.strip_prefix(root).unwrap().display()));
            }
        }
    }
    assert!(seen > 50 && missing.is_empty(), "not in docs/troubleshooting.md:\n{}", missing.join("\n"));
}

#[test]
fn pieces_are_what_does_not_change() {
    assert_eq!(piece("cannot {what} {path}, which is to hold"), "which is to hold");
    assert_eq!(piece("the guest {a} is damaged ({b}); copy rt here once more"), "is damaged");
    assert_eq!(messages("#[error(\n  \"a \\\n   b {0}\"\n)] #[error(transparent)]"), ["a b {0}"]);
}
