//! A container's seccomp profile in the kernel's own form: translated once, loaded by one system call.
//!
//! The translation is libseccomp's, and as runc's: a system call that is newer than the profile does not exist (ENOSYS), so that a
//! libc falls back to one that the profile's author knew. libcontainer, which translates too, takes the two values of a masked comparison for
//! each other, and loads a profile before steps of its own, which the profile would have to allow.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek};

use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};

/// A filter as the kernel takes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// SECCOMP_FILTER_FLAG_*.
    flags: u32,
    /// struct sock_filter, eight bytes each.
    program: Vec<u64>,
}

/// Translates a profile.
///
/// # Errors
/// For the user.
pub fn translate(profile: &LinuxSeccomp) -> Result<Filter, String> {
    let failed = |error: SeccompError| format!("cannot translate the seccomp profile: {error}");
    if profile.default_action() == LinuxSeccompAction::ScmpActNotify {
        return Err("seccomp: SCMP_ACT_NOTIFY cannot be the default action".to_owned());
    }
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut context = ScmpFilterContext::new(default).map_err(failed)?;
    for architecture in profile.architectures().iter().flatten() {
        context.add_arch(self::architecture(*architecture)).map_err(failed)?;
    }
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        // libseccomp refuses what changes nothing.
        if action != default {
            add(&mut context, rule, action).map_err(failed)?;
        }
    }
    let program =
        export(&context).map_err(|error| format!("cannot translate the seccomp profile: {error}"))?;
    let flags = profile.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
                // An executed process has one thread, and no listener that could wait.
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync
                | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
            }
    });
    let mut words = newer_calls(profile);
    words.extend(words_of(&program));
    Ok(Filter { flags: flags as u32, program: words })
}

/// Set in the number of a system call of x32, which has the architecture of x86-64.
const X32_BIT: u32 = 0x4000_0000;

/// The instructions, to stand before a program, that answer ENOSYS to each system call that is newer than those the profile names.
fn newer_calls(profile: &LinuxSeccomp) -> Vec<u64> {
    // linux/audit.h
    const AUDIT_I386: u32 = 0x4000_0003;
    const AUDIT_X86_64: u32 = 0xc000_003e;
    if !hides_newer_calls(profile) {
        return Vec::new();
    }
    let architectures = profile.architectures().as_deref().filter(|all| !all.is_empty());
    let mut instructions = Vec::new();
    for architecture in architectures.unwrap_or(&[Arch::ScmpArchNative]) {
        let (audit, highest) = match architecture {
            Arch::ScmpArchX86 => (AUDIT_I386, u32::MAX),
            Arch::ScmpArchNative | Arch::ScmpArchX86_64 => (AUDIT_X86_64, X32_BIT - 1),
            Arch::ScmpArchX32 => (AUDIT_X86_64, u32::MAX),
            _ => continue,
        };
        if let Some(last) = last_call(profile, self::architecture(*architecture)) {
            instructions.extend(refuse_between(audit, last, highest));
        }
    }
    instructions
}

/// A permissive default allows what is new, too; a profile may have ENOSYS for its default itself.
fn hides_newer_calls(profile: &LinuxSeccomp) -> bool {
    use LinuxSeccompAction::{ScmpActAllow, ScmpActLog, ScmpActTrace};
    !matches!(profile.default_action(), ScmpActAllow | ScmpActLog | ScmpActTrace)
        && profile.default_errno_ret() != Some(libc::ENOSYS as u32)
}

/// The highest number of a system call that the profile names.
fn last_call(profile: &LinuxSeccomp, architecture: ScmpArch) -> Option<u32> {
    let names = profile.syscalls().iter().flatten().flat_map(|rule| rule.names());
    // What an architecture has not is negative.
    let number = |name: &String| {
        u32::try_from(i32::from(ScmpSyscall::from_name_by_arch(name, architecture).ok()?)).ok()
    };
    names.filter_map(number).max()
}

/// ENOSYS for the numbers above `last` up to `highest` (linux/filter.h, struct seccomp_data).
fn refuse_between(architecture: u32, last: u32, highest: u32) -> [u64; 6] {
    const NUMBER: u32 = 0;
    const ARCHITECTURE: u32 = 4;
    let load = |offset| instruction((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, offset);
    let jump =
        |test, yes, no, value| instruction((libc::BPF_JMP | test | libc::BPF_K) as u16, yes, no, value);
    [
        load(ARCHITECTURE),
        jump(libc::BPF_JEQ, 0, 4, architecture),
        load(NUMBER),
        jump(libc::BPF_JGT, 0, 2, last),
        jump(libc::BPF_JGT, 1, 0, highest),
        instruction(
            (libc::BPF_RET | libc::BPF_K) as u16,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
        ),
    ]
}

/// struct sock_filter.
fn instruction(code: u16, yes: u8, no: u8, value: u32) -> u64 {
    let [low, high] = code.to_ne_bytes();
    let [a, b, c, d] = value.to_ne_bytes();
    u64::from_ne_bytes([low, high, yes, no, a, b, c, d])
}

fn export(context: &ScmpFilterContext) -> std::io::Result<Vec<u8>> {
    let mut file = File::from(memfd_create(c"filter", MFdFlags::MFD_CLOEXEC)?);
    context.export_bpf(&file).map_err(std::io::Error::other)?;
    let mut program = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut program)?;
    Ok(program)
}

fn words_of(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default())).collect()
}

fn add(context: &mut ScmpFilterContext, rule: &LinuxSyscall, action: ScmpAction) -> Result<(), SeccompError> {
    let comparisons: Vec<ScmpArgCompare> = rule
        .args()
        .iter()
        .flatten()
        .map(|argument| {
            let (operator, value) =
                operator(argument.op(), argument.value(), argument.value_two().unwrap_or(0));
            ScmpArgCompare::new(argument.index() as u32, operator, value)
        })
        .collect();
    let mut indices = HashSet::new();
    let is_repeated = rule.args().iter().flatten().any(|argument| !indices.insert(argument.index()));
    for name in rule.names() {
        // A name that libseccomp does not know is of another architecture or of a newer kernel.
        let Ok(call) = ScmpSyscall::from_name(name) else { continue };
        if comparisons.is_empty() {
            context.add_rule(action, call)?;
        } else if is_repeated {
            // An argument can be compared once in a rule: as runc, each comparison becomes one of its own.
            for comparison in &comparisons {
                context.add_rule_conditional(action, call, std::slice::from_ref(comparison))?;
            }
        } else {
            context.add_rule_conditional(action, call, &comparisons)?;
        }
    }
    Ok(())
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, String> {
    let errno = errno.map_or(libc::EPERM, |errno| errno as i32);
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(
            errno.try_into().map_err(|_| format!("seccomp: {errno} is no number for SCMP_ACT_TRACE"))?,
        ),
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActNotify => {
            return Err("seccomp: SCMP_ACT_NOTIFY cannot be had for a process that is executed".to_owned());
        }
    })
}

/// The comparison and what is compared with. A masked one has its mask first (runtime-spec config-linux.md#seccomp).
fn operator(operator: LinuxSeccompOperator, first: u64, second: u64) -> (ScmpCompareOp, u64) {
    let comparison = match operator {
        LinuxSeccompOperator::ScmpCmpNe => ScmpCompareOp::NotEqual,
        LinuxSeccompOperator::ScmpCmpLt => ScmpCompareOp::Less,
        LinuxSeccompOperator::ScmpCmpLe => ScmpCompareOp::LessOrEqual,
        LinuxSeccompOperator::ScmpCmpEq => ScmpCompareOp::Equal,
        LinuxSeccompOperator::ScmpCmpGe => ScmpCompareOp::GreaterEqual,
        LinuxSeccompOperator::ScmpCmpGt => ScmpCompareOp::Greater,
        LinuxSeccompOperator::ScmpCmpMaskedEq => return (ScmpCompareOp::MaskedEqual(first), second),
    };
    (comparison, first)
}

fn architecture(architecture: Arch) -> ScmpArch {
    match architecture {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

impl Filter {
    /// For the way to the process: the flags, then the program.
    pub fn to_bytes(&self) -> Vec<u8> {
        [u64::from(self.flags)].iter().chain(&self.program).flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// `None` when there are no bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let words = words_of(bytes);
        let (flags, program) = words.split_first()?;
        Some(Self { flags: *flags as u32, program: program.to_vec() })
    }

    /// Applies the filter to this process, for ever. Needs CAP_SYS_ADMIN or no_new_privs.
    ///
    /// # Errors
    /// For the user.
    pub fn load(&self) -> Result<(), String> {
        crate::sys::load_filter(&self.program, self.flags)
            .map_err(|error| format!("cannot apply the seccomp profile: {}", crate::lookup::words(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(json: &str) -> LinuxSeccomp {
        serde_json::from_str(json).expect("a profile")
    }

    #[test]
    fn a_profile_becomes_a_program() {
        let filter = translate(&profile(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[
                {"names":["mkdir","nosuchcall"],"action":"SCMP_ACT_ERRNO","errnoRet":7},
                {"names":["personality"],"action":"SCMP_ACT_ERRNO","args":[
                    {"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":0,"value":2,"op":"SCMP_CMP_EQ"}]}]}"#,
        ))
        .expect("translated");
        assert_eq!(filter.flags, 2);
        assert!(filter.program.len() > 5);
        assert_eq!(Filter::from_bytes(&filter.to_bytes()), Some(filter));
        assert_eq!(Filter::from_bytes(&[]), None);
    }

    /// Docker's profile allows clone without the flags of namespaces so; the other way about it allows all.
    /// What the program answers: the only instructions that matter here are those of [`refuse_between`].
    fn answer(program: &[u64], architecture: u32, number: u32) -> Option<u32> {
        let (mut at, mut value) = (0, 0);
        loop {
            let [low, high, yes, no, a, b, c, d] = program.get(at)?.to_ne_bytes();
            let operand = u32::from_ne_bytes([a, b, c, d]);
            let jump = |taken: bool| at + 1 + usize::from(if taken { yes } else { no });
            at = match u32::from(u16::from_ne_bytes([low, high])) {
                0x20 => {
                    value = if operand == 0 { number } else { architecture };
                    at + 1
                }
                0x15 => jump(value == operand),
                0x25 => jump(value > operand),
                0x06 => return Some(operand),
                other => panic!("instruction {other:#x}"),
            };
        }
    }

    #[test]
    fn a_masked_comparison_has_its_mask_first() {
        assert_eq!(
            operator(LinuxSeccompOperator::ScmpCmpMaskedEq, 0x7e02_0000, 0),
            (ScmpCompareOp::MaskedEqual(0x7e02_0000), 0)
        );
    }

    #[test]
    fn newer_system_calls_do_not_exist() {
        const NO_SUCH_CALL: Option<u32> = Some(0x0005_0026);
        let json = |default: &str| {
            profile(&format!(
                r#"{{"defaultAction":"{default}","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],
                    "syscalls":[{{"names":["read","openat2"],"action":"SCMP_ACT_ALLOW"}}]}}"#
            ))
        };
        let program = newer_calls(&json("SCMP_ACT_ERRNO"));
        for architecture in [0xc000_003e, 0x4000_0003] {
            // openat2 is 437 in both.
            for known in [0, 1, 436, 437] {
                assert_eq!(answer(&program, architecture, known), None, "{known}");
            }
            for newer in [438, 500, X32_BIT - 1] {
                assert_eq!(answer(&program, architecture, newer), NO_SUCH_CALL, "{newer}");
            }
        }
        // Those of architectures that the profile does not name are libseccomp's to refuse.
        assert_eq!(answer(&program, 0xc000_003e, X32_BIT + 1), None);
        assert_eq!(answer(&program, 0xc000_00b7, 500), None);
        assert!(newer_calls(&json("SCMP_ACT_LOG")).is_empty());
        assert!(translate(&json("SCMP_ACT_ERRNO")).expect("translated").program.starts_with(&program));
    }

    #[test]
    fn what_nobody_could_answer_is_refused() {
        let error = translate(&profile(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}]}"#,
        ));
        assert!(error.expect_err("refused").contains("SCMP_ACT_NOTIFY"));
    }
}
