//! The guest inside rt's own file, as `make dist` packs it: sections of the running executable that no segment loads.
//!
//! | section | holds |
//! |---|---|
//! | `.rt.guest` | a line `NAME SIZE SHA256` for each file |
//! | `.rt.NAME` | that file, one zstd frame |
//!
//! A file that was damaged on its way here is an error, not a crash: every offset, size and digest is checked.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use ruzstd::decoding::StreamingDecoder;
use sha2::{Digest, Sha256};

use crate::sys::progress::Progress;

const INDEX: &str = ".rt.guest";
/// Bounds of what is read whole: the index, the table of sections and their names.
const MAX_TABLE: u64 = 64 << 10;
/// The largest file that is unpacked.
const MAX_FILE: u64 = 1 << 30;

/// A packed guest.
#[derive(Debug)]
pub struct Packed {
    binary: File,
    pub files: Vec<PackedFile>,
    /// Names this guest and no other: the digest of its index, in which its files' digests are.
    pub digest: String,
}

/// One file of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedFile {
    pub name: String,
    pub size: u64,
    sha256: String,
    at: Range<u64>,
}

impl Packed {
    /// The guest in this executable; `None` where it holds none.
    ///
    /// # Errors
    /// It cannot be read, or is damaged ([`io::ErrorKind::InvalidData`]).
    pub fn find(binary: File) -> io::Result<Option<Self>> {
        let sections = sections(&binary)?;
        let place = |name: &str| sections.iter().find(|(own, _)| own == name).map(|(_, at)| at.clone());
        let Some(at) = place(INDEX) else { return Ok(None) };
        let index = read(&binary, at)?;
        let digest = hex(&Sha256::digest(&index));
        let index = String::from_utf8(index).map_err(|_| damaged("its index is no text"))?;
        let file = |line: &str| {
            let mut words = line.split(' ');
            let name = words.next().filter(|name| !name.is_empty() && !name.contains(['/', '\0']))?;
            let size = words.next()?.parse().ok().filter(|size| *size <= MAX_FILE)?;
            let sha256 = words.next()?.to_owned();
            let at = place(&format!(".rt.{name}"))?;
            Some(PackedFile { name: name.into(), size, sha256, at })
        };
        let files = index.lines().map(file).collect::<Option<Vec<_>>>();
        let files = files.ok_or_else(|| damaged("its index names what is not there"))?;
        Ok(Some(Self { binary, files, digest }))
    }

    /// Unpacks one of the files.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] where it is not what was packed; else what writing says.
    pub fn unpack(
        &self,
        file: &PackedFile,
        to: &mut impl io::Write,
        progress: &mut Progress,
    ) -> io::Result<()> {
        let packed = Window { file: &self.binary, at: file.at.clone() };
        let mut unpacked = StreamingDecoder::new(packed).map_err(|error| damaged(&error.to_string()))?;
        let (mut hash, mut left, mut buffer) = (Sha256::new(), file.size, vec![0; 256 << 10]);
        loop {
            let count = unpacked.read(&mut buffer).map_err(|error| damaged(&error.to_string()))?;
            left = left.checked_sub(count as u64).ok_or_else(|| damaged("it is longer than it was"))?;
            if count == 0 {
                break;
            }
            hash.update(&buffer[..count]);
            to.write_all(&buffer[..count])?;
            progress.advance(count as u64);
        }
        if left == 0 && hex(&hash.finalize()) == file.sha256 {
            Ok(())
        } else {
            Err(damaged("its digest is another"))
        }
    }
}

fn damaged(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Part of a file, read from its beginning without moving the file's own offset.
struct Window<'a> {
    file: &'a File,
    at: Range<u64>,
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.at.end - self.at.start).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..most], self.at.start)?;
        self.at.start += count as u64;
        Ok(count)
    }
}

fn read(file: &File, at: Range<u64>) -> io::Result<Vec<u8>> {
    let length = at.end - at.start;
    if length > MAX_TABLE {
        return Err(damaged("one of its tables is too long"));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, at.start)?;
    Ok(bytes)
}

/// Names and places of the sections of a 64-bit little-endian ELF file (elf(5)); none for any other file.
fn sections(file: &File) -> io::Result<Vec<(String, Range<u64>)>> {
    let length = file.metadata()?.len();
    let mut header = [0; 64];
    match file.read_exact_at(&mut header, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Vec::new()),
        other => other?,
    }
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Ok(Vec::new());
    }
    let range = |start: u64, size: u64| {
        let end = start.checked_add(size).filter(|end| *end <= length);
        end.map(|end| start..end).ok_or_else(|| damaged("it ends too early"))
    };
    let (size, count) = (u64::from(u16_at(&header, 0x3a)), u64::from(u16_at(&header, 0x3c)));
    if count == 0 || size < 64 {
        return Ok(Vec::new());
    }
    let table = read(file, range(u64_at(&header, 0x28), size * count)?)?;
    let entries: Vec<&[u8]> = table.chunks_exact(size as usize).collect();
    // Of a section without content, such as .bss, the place may lie past the end.
    let place = |entry: &[u8]| range(u64_at(entry, 0x18), u64_at(entry, 0x20));
    let Some(names) = entries.get(usize::from(u16_at(&header, 0x3e))) else { return Ok(Vec::new()) };
    let names = read(file, place(names)?)?;
    let name = |entry: &[u8]| {
        let rest = names.get(u32_at(entry, 0) as usize..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == 0).unwrap_or(0);
        String::from_utf8_lossy(&rest[..end]).into_owned()
    };
    let own =
        entries.into_iter().map(|entry| (name(entry), entry)).filter(|(name, _)| name.starts_with(".rt."));
    own.map(|(name, entry)| Ok((name, place(entry)?))).collect()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
pub mod tests {
    use std::io::Write;

    use super::*;

    /// An ELF file with these sections and nothing else.
    fn elf(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut names = vec![0];
        let mut content = Vec::new();
        let mut table = vec![0; 64];
        let mut entry = |name: usize, at: usize, size: usize| {
            let mut entry = [0; 64];
            entry[..4].copy_from_slice(&(name as u32).to_le_bytes());
            entry[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            entry[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
            table.extend(entry);
        };
        for (name, bytes) in sections {
            entry(names.len(), 64 + content.len(), bytes.len());
            names.extend(name.bytes().chain([0]));
            content.extend(*bytes);
        }
        entry(0, 64 + content.len(), names.len());
        content.extend(names);
        let mut header = [0; 64];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        header[0x28..0x30].copy_from_slice(&(64 + content.len() as u64).to_le_bytes());
        header[0x3a..0x3c].copy_from_slice(&64_u16.to_le_bytes());
        header[0x3c..0x3e].copy_from_slice(&(sections.len() as u16 + 2).to_le_bytes());
        header[0x3e..0x40].copy_from_slice(&(sections.len() as u16 + 1).to_le_bytes());
        [&header[..], &content, &table].concat()
    }

    fn compress(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// A binary that holds these files.
    pub fn binary(files: &[(&str, &[u8])]) -> Vec<u8> {
        let line = |(name, bytes): &(&str, &[u8])| {
            format!("{name} {} {}\n", bytes.len(), hex(&Sha256::digest(bytes)))
        };
        let index: String = files.iter().map(line).collect();
        let mut sections = vec![(".text".to_owned(), b"code".to_vec()), (INDEX.into(), index.into_bytes())];
        sections.extend(files.iter().map(|(name, bytes)| (format!(".rt.{name}"), compress(bytes))));
        elf(&sections.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect::<Vec<_>>())
    }

    pub fn packed(files: &[(&str, &[u8])]) -> Packed {
        Packed::find(file(&binary(files))).unwrap().unwrap()
    }

    #[test]
    fn what_was_packed_comes_out() {
        let content: Vec<u8> = (0..1_000_000_u32).flat_map(|number| (number / 7).to_le_bytes()).collect();
        let packed = packed(&[("vmlinux", &content), ("initramfs.cpio", b"small")]);
        let names: Vec<&str> = packed.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["vmlinux", "initramfs.cpio"]);
        let mut out = Vec::new();
        packed.unpack(&packed.files[0], &mut out, &mut Progress::new("test", 1)).unwrap();
        assert_eq!(out, content);
    }

    #[test]
    fn a_binary_without_a_guest_holds_none() {
        for bytes in [&b""[..], b"#!/bin/sh\n", &elf(&[(".text", b"code")]), &[0x7f; 64]] {
            assert!(Packed::find(file(bytes)).unwrap().is_none());
        }
        assert!(Packed::find(File::open("/proc/self/exe").unwrap()).unwrap().is_none());
    }

    #[test]
    fn damage_is_an_error() {
        let whole = binary(&[("vmlinux", &[7; 5000])]);
        for length in [63, 70, whole.len() / 2, whole.len() - 1] {
            let found = Packed::find(file(&whole[..length]));
            assert!(found.is_err() || found.unwrap().is_none(), "cut to {length}");
        }
        let lies = [
            (".rt.guest", &b"../vmlinux 1 x\n"[..]),
            (".rt.guest", b"vmlinux 9999999999999 x\n"),
            (".rt.guest", b"vmlinux\n"),
            (".rt.guest", b"missing 1 x\n"),
            (".rt.guest", b"\xff"),
        ];
        for lie in lies {
            assert!(Packed::find(file(&elf(&[lie, (".rt.vmlinux", b"")]))).is_err(), "{lie:?}");
        }
        let zeros = compress(&[0; 5000]);
        for index in ["vmlinux 4999 x\n", "vmlinux 5001 x\n", "vmlinux 5000 x\n"] {
            let binary = elf(&[(INDEX, index.as_bytes()), (".rt.vmlinux", &zeros)]);
            let packed = Packed::find(file(&binary)).unwrap().unwrap();
            let error =
                packed.unpack(&packed.files[0], &mut io::sink(), &mut Progress::new("test", 1)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{index}");
        }
    }
}
