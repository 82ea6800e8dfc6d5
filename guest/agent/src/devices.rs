//! Which devices a container may use: `linux.resources.devices` as a program on its cgroup.
//!
//! libcontainer leaves the rules out unless it is built with libbpf, so the program is written here: rules from last to
//! first, the first that speaks of the access decides, none means no. As with runc, the devices that every container has
//! follow the configuration's rules. Kernel: BPF_PROG_TYPE_CGROUP_DEVICE, Documentation/admin-guide/cgroup-v2.rst.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::{cgroup, sys};

const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

/// One rule. `None` is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

const fn allow(kind: i32, major: Option<i32>, minor: Option<i32>, access: i32) -> Rule {
    Rule { allow: true, kind: Some(kind), major, minor, access }
}

const ALL: i32 = MKNOD | READ | WRITE;
/// runc's AllowedDevices: any node may be made, these may be used.
const EVERY_CONTAINER: [Rule; 12] = [
    allow(CHARACTER, None, None, MKNOD),
    allow(BLOCK, None, None, MKNOD),
    allow(CHARACTER, Some(1), Some(3), ALL),
    allow(CHARACTER, Some(1), Some(8), ALL),
    allow(CHARACTER, Some(1), Some(7), ALL),
    allow(CHARACTER, Some(5), Some(0), ALL),
    allow(CHARACTER, Some(1), Some(5), ALL),
    allow(CHARACTER, Some(1), Some(9), ALL),
    allow(CHARACTER, Some(136), None, ALL),
    allow(CHARACTER, Some(5), Some(2), ALL),
    allow(CHARACTER, Some(5), Some(1), ALL),
    allow(CHARACTER, Some(10), Some(200), ALL),
];

/// Confines the container's cgroup to what `rules` and every container's own devices allow.
///
/// # Errors
/// The kernel's refusal.
pub fn confine(container: &str, rules: &[LinuxDeviceCgroup]) -> Result<(), String> {
    let rules: Vec<Rule> = rules.iter().filter_map(rule).chain(EVERY_CONTAINER).collect();
    let attach = || -> Result<(), Errno> {
        let group = File::open(cgroup::directory(container))
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        let program = load(&program(&rules))?;
        // union bpf_attr of BPF_PROG_ATTACH: target, program, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI.
        let attributes = [group.as_raw_fd() as u32, program.as_raw_fd() as u32, 6, 2];
        sys::bpf(8, &attributes).map(drop)
    };
    attach().map_err(|error| format!("cannot apply the device rules: {}", error.desc()))
}

/// `None` for a rule that speaks of no access or type that exists.
fn rule(from: &LinuxDeviceCgroup) -> Option<Rule> {
    let kind = match from.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(BLOCK),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHARACTER),
        Some(LinuxDeviceType::P) => return None,
    };
    // -1 is any, too.
    let number = |number: Option<i64>| {
        number.and_then(|number| i32::try_from(number).ok()).filter(|&number| number >= 0)
    };
    let access = match from.access().as_deref() {
        None | Some("") => ALL,
        Some(letters) => letters.chars().fold(0, |access, letter| {
            access
                | match letter {
                    'm' => MKNOD,
                    'r' => READ,
                    'w' => WRITE,
                    _ => 0,
                }
        }),
    };
    let result =
        Rule { allow: from.allow(), kind, major: number(from.major()), minor: number(from.minor()), access };
    (access != 0).then_some(result)
}

/// struct bpf_insn of linux/bpf.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: to | from << 4, offset, immediate }
}

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_UNEQUAL: u8 = 0x55;
const MOVE_NUMBER: u8 = 0xb7;
const EXIT: u8 = 0x95;

/// The program: register 1 is struct bpf_cgroup_dev_ctx, 2 the type, 3 the access, 4 major, 5 minor.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut code = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE, 3, 2, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut body = Vec::new();
        if let Some(kind) = rule.kind {
            body.push(instruction(JUMP_UNEQUAL, 2, 0, 0, kind));
        }
        // An allowance must cover the whole of the access, a denial touches any part of it.
        body.push(instruction(MOVE, 1, 3, 0, 0));
        if rule.allow {
            body.push(instruction(AND, 1, 0, 0, !rule.access & ALL));
            body.push(instruction(JUMP_UNEQUAL, 1, 0, 0, 0));
        } else {
            body.push(instruction(AND, 1, 0, 0, rule.access));
            body.push(instruction(JUMP_EQUAL, 1, 0, 0, 0));
        }
        for (register, number) in [(4, rule.major), (5, rule.minor)] {
            if let Some(number) = number {
                body.push(instruction(JUMP_UNEQUAL, register, 0, 0, number));
            }
        }
        body.push(instruction(MOVE_NUMBER, 0, 0, 0, i32::from(rule.allow)));
        body.push(instruction(EXIT, 0, 0, 0, 0));
        let length = body.len();
        for (place, step) in body.iter_mut().enumerate() {
            if step.code == JUMP_UNEQUAL || step.code == JUMP_EQUAL {
                step.offset = (length - place - 1) as i16;
            }
        }
        code.extend(body);
    }
    code.push(instruction(MOVE_NUMBER, 0, 0, 0, 0));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

fn load(code: &[Instruction]) -> nix::Result<OwnedFd> {
    let licence = c"Apache-2.0";
    let pointer = |address: u64| [address as u32, (address >> 32) as u32];
    let (code_at, licence_at) = (pointer(code.as_ptr() as u64), pointer(licence.as_ptr() as u64));
    // union bpf_attr of BPF_PROG_LOAD: BPF_PROG_TYPE_CGROUP_DEVICE, count, instructions, licence, no log.
    let attributes =
        [15, code.len() as u32, code_at[0], code_at[1], licence_at[0], licence_at[1], 0, 0, 0, 0, 0, 0];
    sys::bpf_object(5, &attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with the program.
    fn run(code: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let context = [(access << 16) | kind, major, minor];
        let (mut registers, mut at) = ([0i64; 11], 0usize);
        loop {
            let step = code[at];
            let (to, from) = ((step.registers & 15) as usize, (step.registers >> 4) as usize);
            let number = i64::from(step.immediate);
            at += 1;
            let mut jump = |taken: bool| {
                if taken {
                    at += step.offset as usize;
                }
            };
            match step.code {
                LOAD_WORD => registers[to] = i64::from(context[step.offset as usize / 4]),
                MOVE => registers[to] = registers[from],
                AND => registers[to] &= number,
                SHIFT_RIGHT => registers[to] >>= number,
                JUMP_EQUAL => jump(registers[to] == number),
                JUMP_UNEQUAL => jump(registers[to] != number),
                MOVE_NUMBER => registers[to] = number,
                EXIT => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    fn rules(json: &str) -> Vec<Rule> {
        let parsed: Vec<LinuxDeviceCgroup> = serde_json::from_str(json).expect("rules");
        parsed.iter().filter_map(rule).chain(EVERY_CONTAINER).collect()
    }

    #[test]
    fn without_rules_only_the_usual_devices() {
        let code = program(&rules("[]"));
        assert!(run(&code, CHARACTER, READ | WRITE, 1, 3));
        assert!(run(&code, CHARACTER, READ | WRITE, 136, 7));
        assert!(run(&code, BLOCK, MKNOD, 8, 0));
        assert!(!run(&code, BLOCK, READ, 8, 0));
        assert!(!run(&code, BLOCK, MKNOD | READ, 8, 0));
        assert!(!run(&code, CHARACTER, READ, 10, 229));
    }

    #[test]
    fn later_rules_count_more() {
        let code = program(&rules(
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"r"},
                {"allow":true,"type":"b","major":8,"access":"rwm"},{"allow":false,"type":"b","major":8,"minor":1,"access":"w"}]"#,
        ));
        assert!(run(&code, CHARACTER, READ, 10, 229));
        assert!(!run(&code, CHARACTER, READ | WRITE, 10, 229));
        assert!(run(&code, BLOCK, READ | WRITE, 8, 0));
        assert!(!run(&code, BLOCK, READ | WRITE, 8, 1));
        assert!(run(&code, BLOCK, READ, 8, 1));
    }

    #[test]
    fn everything_when_everything_is_allowed() {
        let code = program(&rules(r#"[{"allow":true,"type":"a","major":-1,"minor":-1}]"#));
        assert!(run(&code, BLOCK, ALL, 300, 70000));
        assert!(run(&code, CHARACTER, ALL, 10, 1));
    }
}
