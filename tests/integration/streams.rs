//! Standard streams: rt's own are the process's, byte for byte, both ways at once.

use std::fs::{File, OpenOptions};
use std::io::Read;

use crate::shell::{Bundle, Input};

/// Bytes that do not repeat at any distance that a buffer has: the block's length is a prime number.
fn noise(length: usize) -> Vec<u8> {
    const BLOCK: usize = 65_537;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let block = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    });
    let block: Vec<u8> = block.take(BLOCK).collect();
    let mut bytes = block.repeat(length.div_ceil(BLOCK));
    bytes.truncate(length);
    bytes
}

#[test]
fn every_byte_passes_unchanged() {
    let all: Vec<u8> = (0..=255).cycle().take(1000).collect();
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/cat"]);
    bundle.call().stdin(Input::Bytes(all.clone())).end().code(0).stdout(&all).stderr("");
    bundle.args(&["/bin/sh", "-c", "cat >&2"]);
    bundle.call().stdin(Input::Bytes(all.clone())).end().code(0).stdout("").stderr(&all);
}

#[test]
fn full_duplex_with_more_than_all_buffers_hold() {
    let bytes = noise(64 << 20);
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/cat"]);
    let ended = bundle.call().stdin(Input::Bytes(bytes.clone())).end();
    ended.code(0).stderr("");
    assert_eq!(ended.stdout.len(), bytes.len());
    assert!(ended.stdout == bytes, "the bytes are others");
}

#[test]
fn both_outputs_at_once() {
    const LENGTH: usize = 16 << 20;
    let mut bundle = Bundle::new();
    let ended = bundle.sh(&format!(
        "head -c {LENGTH} /dev/zero | tr '\\0' e >&2 & head -c {LENGTH} /dev/zero | tr '\\0' o; wait"
    ));
    ended.code(0);
    assert!(ended.stdout == vec![b'o'; LENGTH], "{} bytes", ended.stdout.len());
    assert!(ended.stderr == vec![b'e'; LENGTH], "{} bytes", ended.stderr.len());
}

#[test]
fn a_process_that_does_not_read_is_not_in_the_way() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/echo", "done"]);
    bundle.call().stdin(Input::Bytes(noise(8 << 20))).end().says(&["done"]);
    bundle.args(&["/bin/head", "-c", "10"]);
    let bytes = noise(8 << 20);
    bundle.call().stdin(Input::Bytes(bytes.clone())).end().code(0).stdout(&bytes[..10]);
}

#[test]
fn a_conversation_is_not_held_back_by_buffers() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sh", "-c", "while read line; do echo \"you said $line\"; done; echo bye"]);
    let mut running = bundle.call().stdin(Input::Open).start();
    for word in ["one", "two", "three"] {
        running.write(format!("{word}\n"));
        running.says(&format!("you said {word}\n"));
    }
    // The end of the input arrives, too.
    running.end().says(&["you said one", "you said two", "you said three", "bye"]);
}

#[test]
fn streams_may_be_files() {
    let mut bundle = Bundle::new();
    let input = bundle.file("input", "from a file\n");
    let output = bundle.file("output", "before\n");
    bundle.args(&["/bin/cat"]);
    let append = OpenOptions::new().append(true).open(&output).unwrap();
    bundle.call().stdin(Input::File(File::open(input).unwrap())).stdout(append).end().code(0).stderr("");
    assert_eq!(std::fs::read_to_string(output).unwrap(), "before\nfrom a file\n");
}

/// runc gives a process /dev/null for a stream that its caller had closed.
#[test]
fn closed_streams_are_empty() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sh", "-c", "cat; echo read; echo err >&2"]);
    bundle.call().through("exec \"$@\" <&-").end().code(0).stdout("read\n").stderr("err\n");
    bundle.call().through("exec \"$@\" >&-").end().code(0).stdout("").stderr("err\n");
    bundle.call().through("exec \"$@\" 2>&-").end().code(0).stdout("read\n").stderr("");
    bundle.call().through("exec \"$@\" <&- >&- 2>&-").end().code(0).stdout("").stderr("");
}

/// `rt … | head -n 1`: the process is told by SIGPIPE, as it would be without rt.
#[test]
fn a_reader_that_goes_away_ends_the_writer() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut bundle = Bundle::new();
    // Not the first process of its PID namespace, which SIGPIPE would not end.
    bundle.args(&["/bin/sh", "-c", "yes; echo $? >&2"]);
    let running = bundle.call().stdout(File::from(std::os::fd::OwnedFd::from(writer))).start();
    let mut first = [0; 4];
    reader.read_exact(&mut first).unwrap();
    drop(reader);
    running.end().code(0).stderr("141\n");
    assert_eq!(&first, b"y\ny\n");
}

#[test]
fn a_slow_reader_loses_nothing() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sh", "-c", "head -c 4000000 /dev/zero; echo end"]);
    let running = bundle.call().stdout(File::from(std::os::fd::OwnedFd::from(writer))).start();
    // Until all buffers between are full.
    std::thread::sleep(std::time::Duration::from_secs(2));
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).map(|_| all)
    });
    running.end().code(0);
    let all = reader.join().unwrap().unwrap();
    assert_eq!(all.len(), 4_000_004);
    assert!(all.ends_with(b"\0end\n"));
}

/// Nobody but the process writes to its streams, not even a warning of rt's.
#[test]
fn without_a_log_nothing_is_added() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sh", "-c", "echo out; echo err >&2"]);
    bundle.call().no_log().end().code(0).stdout("out\n").stderr("err\n");
}

/// Standard streams can be opened again by name, also by a process that is not root.
#[test]
fn streams_can_be_opened_by_name() {
    let mut bundle = Bundle::new();
    bundle.config["process"]["user"] = serde_json::json!({"uid": 1000, "gid": 1001});
    bundle.args(&["/bin/sh", "-c", "echo out >/dev/stdout; echo err >/proc/self/fd/2; cat /dev/stdin"]);
    let ended = bundle.call().stdin(Input::Bytes(b"in\n".into())).end();
    ended.code(0).stdout("out\nin\n").stderr("err\n");
}

#[test]
fn in_a_pipeline() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sh", "-c", "tr a-z A-Z"]);
    bundle.call().through("echo hello | \"$@\" | cat -").end().says(&["HELLO"]);
}
