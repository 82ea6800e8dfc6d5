//! Options of ps(1) that choose the form of its list.

use super::column::{self, Headed};

/// Why an option cannot be followed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error(
        "cannot show processes with the option {0:?}: the guest has no ps(1), and rt knows of its options those that choose the \
         form: -e, -f, -x, -o, aux and the like; or use --format json"
    )]
    Option(String),
    #[error("cannot show processes: the guest's have no column {0:?}")]
    Column(String),
    #[error("option -o names no column")]
    NoColumn,
}

const FULL: &str = "UID,pid,ppid,c,stime,tty,time,cmd";
const USER: &str = "user,pid,pcpu,pmem,vsz,rss,tty,stat,start,bsdtime,args";
const BSD: &str = "pid,tty,stat,bsdtime,args";
const SHORT: &str = "pid,tty,time,CMD";
const JOBS: &str = "pid,pgid,sid,tty,time,CMD";

/// The columns that the options ask for.
///
/// # Errors
/// [`Error`]
pub fn parse(options: &[String]) -> Result<Vec<Headed>, Error> {
    if options.is_empty() {
        return columns(FULL);
    }
    let mut form = SHORT;
    let mut own = Vec::new();
    let mut rest = options.iter();
    while let Some(option) = rest.next() {
        let unknown = || Error::Option(option.clone());
        if let Some(long) = option.strip_prefix("--") {
            match long.split_once('=') {
                Some(("format", list)) => own.extend(columns(list)?),
                None if long == "format" => own.extend(columns(rest.next().ok_or(Error::NoColumn)?)?),
                _ => return Err(unknown()),
            }
            continue;
        }
        // Without a dash, and with one where the letters make no sense otherwise, it is BSD's syntax.
        let letters = option.strip_prefix('-').unwrap_or(option);
        let is_bsd = letters.len() == option.len() || letters.contains(['x', 'u']);
        for (place, letter) in letters.char_indices() {
            match letter {
                'o' => {
                    let list = match &letters[place + 1..] {
                        "" => rest.next().ok_or(Error::NoColumn)?,
                        list => list,
                    };
                    own.extend(columns(list)?);
                    break;
                }
                'u' => form = USER,
                'f' if !is_bsd => form = FULL,
                'j' if !is_bsd => form = JOBS,
                // Which processes, and how wide: all of the container's, and as wide as they are.
                'e' | 'A' | 'a' | 'd' | 'x' | 'w' | 'H' | 'f' | 'r' => {
                    if is_bsd && form == SHORT {
                        form = BSD;
                    }
                }
                _ => return Err(unknown()),
            }
        }
        if letters.is_empty() {
            return Err(unknown());
        }
    }
    if own.is_empty() { columns(form) } else { Ok(own) }
}

/// Columns by their names with commas or spaces between them; the last may bring the header to show in place of its own.
fn columns(list: &str) -> Result<Vec<Headed>, Error> {
    let (list, header) = match list.split_once('=') {
        Some((list, header)) => (list, Some(header)),
        None => (list, None),
    };
    let names = list.split([',', ' ']).filter(|name| !name.is_empty());
    let mut columns = names
        .map(|name| {
            let column = column::find(name).ok_or_else(|| Error::Column(name.to_owned()))?;
            Ok(Headed { column, header: column.header.to_owned() })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    match (columns.last_mut(), header) {
        (None, _) => return Err(Error::NoColumn),
        (Some(last), Some(header)) => last.header = header.to_owned(),
        (Some(_), None) => {}
    }
    Ok(columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(options: &[&str]) -> Result<String, Error> {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let names = parse(&options)?.iter().map(|headed| headed.column.names[0]).collect::<Vec<_>>();
        Ok(names.join(","))
    }

    #[test]
    fn both_syntaxes_are_known() {
        for full in [&[][..], &["-ef"], &["-e", "-f"], &["-Af"]] {
            assert_eq!(names(full).unwrap(), FULL, "{full:?}");
        }
        for user in [&["aux"][..], &["-aux"], &["u"], &["a", "u", "x"]] {
            assert!(names(user).unwrap().starts_with("user,pid,pcpu"), "{user:?}");
        }
        for bsd in [&["ax"][..], &["-e", "-x"], &["x"]] {
            assert!(names(bsd).unwrap().starts_with("pid,tty,stat"), "{bsd:?}");
        }
        assert!(names(&["-e"]).unwrap().starts_with("pid,tty,time"));
        assert_eq!(names(&["-eo", "pid,comm"]).unwrap(), "pid,comm");
        assert_eq!(names(&["-opid", "o", "args"]).unwrap(), "pid,args");
        assert_eq!(names(&["--format=pid ppid"]).unwrap(), "pid,ppid");
    }

    #[test]
    fn headers_can_be_others() {
        let headed = parse(&["-o".into(), "pid=".into()]).unwrap();
        assert_eq!(headed[0].header, "");
    }

    #[test]
    fn what_is_unknown_is_named() {
        assert_eq!(names(&["-Z"]), Err(Error::Option("-Z".into())));
        assert_eq!(names(&["--forest"]), Err(Error::Option("--forest".into())));
        assert_eq!(names(&["-o", "pid,label"]), Err(Error::Column("label".into())));
        assert_eq!(names(&["-o"]), Err(Error::NoColumn));
        assert_eq!(names(&["-o", ","]), Err(Error::NoColumn));
    }
}
