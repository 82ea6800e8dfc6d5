//! protobuf as a guest may have written it: two bytes of an empty message are a hundred in memory, so what is long is not given to the
//! library as a whole.

use protobuf::{Message, SpecialFields};

/// Of one entry of a list.
const MAX_ENTRY: usize = 64 << 10;

/// The fields of a message that has strings and messages only, by their numbers.
pub fn fields(bytes: &[u8]) -> impl Iterator<Item = Result<(u32, &[u8]), &'static str>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = take_field(&mut rest);
        if field.is_none() {
            rest = &[];
        }
        Some(field.ok_or("it is no protobuf message of strings and messages"))
    })
}

fn take_field<'a>(rest: &mut &'a [u8]) -> Option<(u32, &'a [u8])> {
    const DELIMITED: u64 = 2;
    let tag = take_number(rest)?;
    let number = u32::try_from(tag >> 3).ok().filter(|number| tag & 7 == DELIMITED && *number != 0)?;
    let length = usize::try_from(take_number(rest)?).ok()?;
    let (field, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    Some((number, field))
}

fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for place in 0..10 {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// The entries of a message whose one field, number 1, is a list of others: at most so many. What they have of unknown fields is
/// forgotten one by one.
///
/// # Errors
/// What is wrong, for a message.
pub fn entries<T: Message>(bytes: &[u8], most: usize) -> Result<Vec<T>, String> {
    let mut entries = Vec::new();
    for field in fields(bytes) {
        let (number, entry) = field?;
        if number != 1 {
            continue;
        }
        if entries.len() == most || entry.len() > MAX_ENTRY {
            return Err(format!("a list of more than {most} entries, or one of more than {MAX_ENTRY} bytes"));
        }
        let mut entry = T::parse_from_bytes(entry).map_err(|error| error.to_string())?;
        *entry.mut_special_fields() = SpecialFields::default();
        entries.push(entry);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use rt_proto::messages::{ListProcessesResponse, ProcessInfo};

    use super::*;

    #[test]
    fn a_list_is_what_the_library_has_written() {
        let process = |pid| ProcessInfo { pid, command: "x".repeat(300), ..Default::default() };
        let list = ListProcessesResponse { processes: (1..9).map(process).collect(), ..Default::default() };
        let bytes = list.write_to_bytes().unwrap();
        assert_eq!(entries::<ProcessInfo>(&bytes, 8).unwrap(), list.processes);
        assert!(entries::<ProcessInfo>(&bytes, 7).unwrap_err().contains("more than 7"));
        assert!(entries::<ProcessInfo>(&bytes[..bytes.len() - 1], 8).is_err());
        assert_eq!(entries::<ProcessInfo>(&[], 0).unwrap(), []);
    }

    #[test]
    fn empty_entries_and_unknown_fields_stay_small() {
        assert!(entries::<ProcessInfo>(&[0x0a, 0].repeat(2 << 20), 65_536).is_err());
        // Field 100 of the entry, a number.
        let entry = &entries::<ProcessInfo>(&[0x0a, 3, 0xa0, 6, 1], 1).unwrap()[0];
        assert_eq!(entry.special_fields, SpecialFields::default());
        assert!(entries::<ProcessInfo>(&[&[0x0a, 0x81, 0x80, 4], &[0; 65_537][..]].concat(), 1).is_err());
    }

    #[test]
    fn damage_is_an_error() {
        for bytes in [
            &[0x0a][..],
            &[0x0a, 5, 1],
            &[0x08, 1],
            &[2, 0],
            &[0xff; 12],
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
        ] {
            assert!(fields(bytes).any(|field| field.is_err()), "{bytes:?}");
            assert!(fields(bytes).count() < 3, "{bytes:?}");
        }
    }
}
