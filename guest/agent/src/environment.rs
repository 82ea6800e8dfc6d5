//! The environment of a process in a container.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

/// The environment as given, in its order; of a repeated name the last value counts, at the first one's place. HOME is
/// added when it is missing or empty: then it is looked for.
pub fn complete(variables: &[String], home: impl FnOnce() -> Option<String>) -> Vec<String> {
    let mut result: Vec<String> = Vec::with_capacity(variables.len() + 1);
    let mut places: HashMap<&str, usize> = HashMap::with_capacity(variables.len());
    for variable in variables {
        let name = variable.split_once('=').map_or(variable.as_str(), |(name, _)| name);
        match places.get(name) {
            Some(&place) => result[place] = variable.clone(),
            None => {
                places.insert(name, result.len());
                result.push(variable.clone());
            }
        }
    }
    let place = places.get("HOME").copied();
    if place.is_none_or(|place| result[place] == "HOME=" || result[place] == "HOME") {
        let home = home().filter(|home| !home.is_empty());
        let variable = format!("HOME={}", home.as_deref().unwrap_or("/"));
        match place {
            Some(place) => result[place] = variable,
            None => result.push(variable),
        }
    }
    result
}

/// The home directory that the container's /etc/passwd gives a user.
pub fn home(uid: u32) -> Option<String> {
    const LIMIT: u64 = 1 << 20;
    // Not blocking: it may be a pipe.
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let file = File::from(open("/etc/passwd", flags, Mode::empty()).ok()?);
    let mut text = Vec::new();
    file.take(LIMIT).read_to_end(&mut text).ok()?;
    home_in(&String::from_utf8_lossy(&text), uid)
}

fn home_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.len() >= 6 && fields[2].parse() == Ok(uid)).then(|| fields[5].to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(variables: &[&str]) -> Vec<String> {
        variables.iter().map(|&variable| variable.to_owned()).collect()
    }

    #[test]
    fn the_environment_keeps_its_order_and_last_values() {
        let given = owned(&["B=1", "A=2", "B=3", "HOME=/h", "ODD"]);
        assert_eq!(
            complete(&given, || unreachable!("it is given")),
            owned(&["B=3", "A=2", "HOME=/h", "ODD"])
        );
    }

    #[test]
    fn home_is_filled_in() {
        assert_eq!(complete(&owned(&["A=1"]), || Some("/root".to_owned())), owned(&["A=1", "HOME=/root"]));
        assert_eq!(complete(&owned(&["HOME=", "A=1"]), || None), owned(&["HOME=/", "A=1"]));
    }

    #[test]
    fn homes_are_found_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nuser:x:1000:1001::/home/u:/bin/sh\n";
        assert_eq!(home_in(passwd, 1000), Some("/home/u".into()));
        assert_eq!(home_in(passwd, 5), None);
    }
}
