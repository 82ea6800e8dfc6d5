//! Where a guest has the code and constants of its agent: the pages of the file /init, which lies in the guest's memory for good and, since
//! the agent holds it there (`boot` of the agent), in one place.
//!
//! They are found by what is in them. A page that two places hold is left alone: one of them may be a copy, which somebody frees.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt;

const PAGE: usize = 4096;
/// An archive's file names are shorter, and the agent's program.
const MAX_NAME: u64 = 4096;
const MAX_PROGRAM: u64 = 64 << 20;

/// The guest memory that holds them, of the parts of `memory` in which there is something; `initramfs` is the guest's.
///
/// # Errors
/// Those of reading; of an archive or a program in another form nothing is found.
pub fn ranges(memory: &File, parts: &[(u64, u64)], initramfs: &File) -> io::Result<Vec<Range<u64>>> {
    let Some(program) = init(initramfs)? else { return Ok(Vec::new()) };
    let mut pages = constant_pages(&program);
    // Two with the same content are looked for once.
    pages.sort_unstable();
    pages.dedup();
    let mut places: Vec<(usize, u64)> = Vec::with_capacity(pages.len());
    let mut buffer = vec![0; 256 * PAGE];
    for (start, end) in parts {
        let mut at = *start;
        while at < *end {
            let piece = &mut buffer[..(end - at).min(256 * PAGE as u64) as usize];
            memory.read_exact_at(piece, at)?;
            for (offset, page) in piece.chunks_exact(PAGE).enumerate() {
                if let Ok(index) = pages.binary_search(&page) {
                    places.push((index, at + (offset * PAGE) as u64));
                }
            }
            at += piece.len() as u64;
        }
    }
    places.sort_unstable();
    let once = places.chunk_by(|one, other| one.0 == other.0).filter(|same| same.len() == 1);
    let mut found: Vec<u64> = once.map(|same| same[0].1).collect();
    found.sort_unstable();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for page in found {
        match ranges.last_mut() {
            Some(last) if last.end == page => last.end += PAGE as u64,
            _ => ranges.push(page..page + PAGE as u64),
        }
    }
    Ok(ranges)
}

/// The file `init` of an archive (Documentation/driver-api/early-userspace/buffer-format.rst): entries of a header of 110 characters, a name
/// and the content, the latter two filled up to multiples of four.
fn init(archive: &File) -> io::Result<Option<Vec<u8>>> {
    const HEADER: u64 = 110;
    let (mut at, end) = (0, archive.metadata()?.len());
    while at + HEADER <= end {
        let mut header = [0; HEADER as usize];
        archive.read_exact_at(&mut header, at)?;
        let field = |number: usize| {
            let digits = std::str::from_utf8(&header[6 + number * 8..][..8]).ok()?;
            u64::from_str_radix(digits, 16).ok()
        };
        let (Some(size), Some(name)) = (field(6), field(11)) else { return Ok(None) };
        if !header.starts_with(b"070701") || name > MAX_NAME || size > end {
            return Ok(None);
        }
        let mut path = vec![0; name as usize];
        archive.read_exact_at(&mut path, at + HEADER)?;
        let content = (at + HEADER + name).next_multiple_of(4);
        if path == b"init\0" {
            if size > MAX_PROGRAM {
                return Ok(None);
            }
            let mut program = vec![0; size as usize];
            return match archive.read_exact_at(&mut program, content) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
                other => other.map(|()| Some(program)),
            };
        }
        at = (content + size).next_multiple_of(4);
    }
    Ok(None)
}

/// The whole pages of an executable that nobody writes to (elf(5)), but for those that are the same byte throughout.
fn constant_pages(program: &[u8]) -> Vec<&[u8]> {
    const LOAD: u64 = 1;
    const WRITE: u64 = 2;
    let number = |at: u64, size: usize| {
        let at = usize::try_from(at).ok()?;
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(program.get(at..at.checked_add(size)?)?);
        Some(u64::from_le_bytes(bytes))
    };
    let segment = |header: u64| {
        let is_constant = number(header, 4)? == LOAD && number(header.checked_add(4)?, 4)? & WRITE == 0;
        let (offset, size) = (number(header.checked_add(8)?, 8)?, number(header.checked_add(32)?, 8)?);
        let (start, end) = (offset as usize, offset.checked_add(size)? as usize);
        let pages = program.get(start.checked_next_multiple_of(PAGE)?..end / PAGE * PAGE);
        is_constant.then_some(pages.unwrap_or_default())
    };
    let (Some(table), Some(length), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else {
        return Vec::new();
    };
    let headers = (0..count).filter_map(|index| table.checked_add(index * length));
    let pages = headers.filter_map(segment).flat_map(|pages| pages.chunks_exact(PAGE));
    pages.filter(|page| page.iter().any(|byte| *byte != page[0])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An executable: a page of headers, `pages` of code, and one of data.
    fn program(pages: &[[u8; PAGE]]) -> Vec<u8> {
        let mut program = vec![0; PAGE];
        let mut put = |at: usize, bytes: &[u8]| program[at..at + bytes.len()].copy_from_slice(bytes);
        put(32, &64u64.to_le_bytes());
        put(54, &56u16.to_le_bytes());
        put(56, &2u16.to_le_bytes());
        let code = (pages.len() * PAGE) as u64;
        for (header, flags, offset, size) in
            [(64, 5u32, PAGE as u64, code), (120, 6, PAGE as u64 + code, 4096)]
        {
            put(header, &1u32.to_le_bytes());
            put(header + 4, &flags.to_le_bytes());
            put(header + 8, &offset.to_le_bytes());
            put(header + 32, &size.to_le_bytes());
        }
        program.extend(pages.concat());
        program.extend([[3; 8], [4; 8]].concat().repeat(PAGE / 16));
        program
    }

    /// Like no other of another number.
    fn page(number: u8) -> [u8; PAGE] {
        std::array::from_fn(|index| if index % 2 == 0 { number } else { 0x90 })
    }

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = Vec::new();
        for (name, content) in files {
            let mut fields = [0u64; 13];
            (fields[6], fields[11]) = (content.len() as u64, name.len() as u64 + 1);
            archive.extend(b"070701");
            fields.iter().for_each(|field| archive.extend(format!("{field:08x}").bytes()));
            archive.extend(name.bytes().chain([0]));
            archive.resize(archive.len().next_multiple_of(4), 0);
            archive.extend(*content);
            archive.resize(archive.len().next_multiple_of(4), 0);
        }
        archive
    }

    fn file(content: &[u8]) -> File {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(content, 0).expect("written");
        file
    }

    /// The first page of each range, and the first behind it.
    fn found(memory: &[[u8; PAGE]], archive: &[u8]) -> Vec<(u64, u64)> {
        let memory = memory.concat();
        let parts = [(0, memory.len() as u64)];
        let ranges = ranges(&file(&memory), &parts, &file(archive)).expect("it is read");
        ranges.iter().map(|range| (range.start / PAGE as u64, range.end / PAGE as u64)).collect()
    }

    #[test]
    fn pages_are_found_by_what_is_in_them() {
        let archive =
            archive(&[("dev", b""), ("init", &program(&[page(1), page(2), [0xcc; PAGE], page(4), page(4)]))]);
        let data: [u8; PAGE] = std::array::from_fn(|index| if index % 16 < 8 { 3 } else { 4 });
        let memory = [page(9), page(2), page(1), [0xcc; PAGE], data, page(1)];
        // The first is there twice, and the data is written to.
        assert_eq!(found(&memory, &archive), [(1, 2)]);
        assert_eq!(found(&memory[..4], &archive), [(1, 3)]);
        assert_eq!(found(&[page(4)], &archive), [(0, 1)]);
    }

    #[test]
    fn nothing_is_found_of_what_has_another_form() {
        let good = archive(&[("init", &program(&[page(1)]))]);
        assert_eq!(found(&[page(1)], &good), [(0, 1)]);
        let without = archive(&[("sbin/init", &program(&[page(1)]))]);
        let script = archive(&[("init", b"#!/bin/sh\n")]);
        let mut header = program(&[page(1)]);
        header[64 + 8..64 + 16].fill(0xff);
        let far = archive(&[("init", &header)]);
        let mut damaged = good.clone();
        damaged[6 + 6 * 8] = b'x';
        for bad in [&b""[..], b"070701", &good[..200], &without, &script, &far, &damaged, &[b'0'; 300]] {
            assert_eq!(found(&[page(1)], bad), [], "{} bytes", bad.len());
        }
    }
}
