//! Names of the host's users, from /etc/passwd alone: the C library's own lookup loads modules into the process, which a static
//! executable cannot hold.

/// The user's name.
pub fn name(uid: u32) -> Option<String> {
    find(&std::fs::read_to_string("/etc/passwd").ok()?, uid)
}

/// passwd(5): name, password and UID are the first three fields.
fn find(passwd: &str, uid: u32) -> Option<String> {
    let of = |line: &str| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(uid) && !name.is_empty()).then(|| name.to_owned())
    };
    passwd.lines().find_map(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n\nodd\n:x:7:7::/:\nuser:x:1000:0:::\n";
        assert_eq!(find(passwd, 0).as_deref(), Some("root"));
        assert_eq!(find(passwd, 1000).as_deref(), Some("user"));
        assert_eq!((find(passwd, 7), find(passwd, 4242)), (None, None));
    }
}
