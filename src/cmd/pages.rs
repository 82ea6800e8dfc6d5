//! Completions and man pages, made from the definition that parses the command line, so that they cannot say anything else.
//!
//! They are kept in `completions/` and `man/`, for packages and for people who read the source; the test here fails when
//! they are stale, and with `RT_PAGES=write` (`make man`) writes them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};
use clap_mangen::Man;

use super::Arguments;

/// Every page by its path in the source.
fn pages() -> BTreeMap<PathBuf, Vec<u8>> {
    // Without the build's commit, which is another each time.
    let mut command = Arguments::command().version(env!("CARGO_PKG_VERSION"));
    let mut pages = BTreeMap::new();
    for (shell, name) in [(Shell::Bash, "rt.bash"), (Shell::Zsh, "_rt"), (Shell::Fish, "rt.fish")] {
        let mut page = Vec::new();
        generate(shell, &mut command, "rt", &mut page);
        pages.insert(Path::new("completions").join(name), page);
    }
    add_man(&command, "rt", &mut pages);
    pages
}

/// The page of a command, and those of the verbs below it.
fn add_man(command: &Command, name: &str, pages: &mut BTreeMap<PathBuf, Vec<u8>>) {
    pages.insert(Path::new("man").join(format!("{name}.8")), man(command, name));
    let has_page = |verb: &&Command| !verb.is_hide_set() && verb.get_name() != "help";
    for verb in command.get_subcommands().filter(has_page) {
        add_man(verb, &format!("{name}-{}", verb.get_name()), pages);
    }
}

fn man(command: &Command, name: &str) -> Vec<u8> {
    let version = env!("CARGO_PKG_VERSION");
    let command = command.clone().version(version);
    let man = Man::new(command).section("8").title(name.to_uppercase());
    let man = man.source(format!("rt {version}")).manual("System Administration");
    let mut page = Vec::new();
    man.render(&mut page).expect("a Vec takes all");
    page
}

/// Files in a directory that are there and ought not to be, such as the page of a verb that is no more.
fn strangers(root: &Path, pages: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for directory in ["completions", "man"] {
        for entry in std::fs::read_dir(root.join(directory)).into_iter().flatten().flatten() {
            let path = Path::new(directory).join(entry.file_name());
            if !pages.contains_key(&path) {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn completions_and_man_pages_are_those_of_this_command_line() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = pages();
    if std::env::var_os("RT_PAGES").is_some_and(|value| value == "write") {
        for path in strangers(root, &pages) {
            std::fs::remove_file(root.join(path)).unwrap();
        }
        for (path, page) in &pages {
            std::fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            std::fs::write(root.join(path), page).unwrap();
        }
        return;
    }
    let is_stale =
        |(path, page): &(&PathBuf, &Vec<u8>)| std::fs::read(root.join(path)).ok().as_ref() != Some(*page);
    let stale: Vec<_> = pages.iter().filter(is_stale).map(|(path, _)| path.clone()).collect();
    let strangers = strangers(root, &pages);
    assert!(
        stale.is_empty() && strangers.is_empty(),
        "run `make man`: stale {stale:?}, not of a verb {strangers:?}"
    );
}
