//! The cheapest place in a function of x86-64.
//!
//! What the kernel emulates, steps and refuses is in its `arch/x86/kernel/uprobes.c`.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpAccess,
    OpKind, Register,
};

use super::MOST_PASSED;
use super::place::{Form, Operand, Passed, Place, Refusal};
use crate::config::AttachAt;

/// Where to hook a function, given its bytes and address; an error holds the entry's instruction,
/// where the kernel accepts no probe.
pub(super) fn place(bytes: &[u8], address: u64, wanted: AttachAt) -> Result<Place, Form> {
    let first = decoder(bytes, address).iter().next();
    let form = first.as_ref().map_or(Form::Unknown, form);
    let found = match wanted {
        AttachAt::Cheapest => search(bytes, address),
        AttachAt::Entry => Err(Refusal::None),
    };
    let refused = first.is_none_or(|it| is_refused(&it, bytes));
    match (found, wanted) {
        (Ok(place), _) => Ok(place),
        (Err(_), _) if refused => Err(form),
        (Err(better), AttachAt::Cheapest) => Ok(Place::stepped(form, better)),
        (Err(_), AttachAt::Entry) => {
            let slow = !first.is_some_and(|it| is_emulated(&it, bytes));
            Ok(Place::configured(form, slow))
        }
    }
}

/// The first emulated instruction that is reached exactly once per call, with arguments and stack
/// as the caller left them.
fn search(bytes: &[u8], address: u64) -> Result<Place, Refusal> {
    let mut factory = InstructionInfoFactory::new();
    let mut passed = Passed::Nothing;
    let mut end = 0;
    for instruction in decoder(bytes, address).iter().take(MOST_PASSED) {
        let Ok(skip) = u8::try_from(instruction.ip() - address) else { return Err(Refusal::None) };
        if instruction.is_invalid() {
            return Err(Refusal::Ends { skip });
        }
        let form = form(&instruction);
        if is_emulated(&instruction, &bytes[usize::from(skip)..]) {
            if skip > 0 && is_branch_target(bytes, address, instruction.ip()) {
                return Err(Refusal::Loops { form, skip });
            }
            return Ok(Place::emulated(form, skip, passed));
        }
        if instruction.flow_control() != FlowControl::Next {
            return Err(Refusal::Leaves { form, skip });
        }
        let info = factory.info(&instruction);
        let mut registers = info.used_registers().iter();
        if registers.any(|it| is_write(it.access()) && carries_call(it.register())) {
            return Err(Refusal::ChangesCall { form, skip });
        }
        if info.used_memory().iter().any(|it| is_write(it.access())) {
            return Err(Refusal::WritesMemory { form, skip });
        }
        passed = passed.and(form);
        end = instruction.next_ip() - address;
    }
    match u8::try_from(end) {
        Ok(skip) if usize::from(skip) == bytes.len() => Err(Refusal::Ends { skip }),
        _ => Err(Refusal::None),
    }
}

fn decoder(bytes: &[u8], address: u64) -> Decoder<'_> {
    Decoder::with_ip(64, bytes, address, DecoderOptions::NONE)
}

/// Relative branches and calls, push of a register, the one-byte nop. A prefix of 16 bits makes the
/// kernel give up, as does a prefix of a push that is not the plain REX.B.
fn is_emulated(instruction: &Instruction, bytes: &[u8]) -> bool {
    if prefixes(bytes).any(|it| it == OPERAND_16) || is_refused(instruction, bytes) {
        return false;
    }
    instruction.is_jcc_short_or_near()
        || instruction.is_jmp_short_or_near()
        || instruction.is_call_near()
        || is_plain_push(instruction, bytes)
        || is_short_nop(instruction)
}

fn is_plain_push(instruction: &Instruction, bytes: &[u8]) -> bool {
    let plain = instruction.len() == 1 || instruction.len() == 2 && bytes.first() == Some(&REX_B);
    instruction.code() == Code::Push_r64 && plain
}

fn is_short_nop(instruction: &Instruction) -> bool {
    instruction.len() == 1 && matches!(instruction.code(), Code::Nopw | Code::Nopd | Code::Nopq)
}

const OPERAND_16: u8 = 0x66;
const REX_B: u8 = 0x41;
/// Segments that mean nothing in 64 bits, and `lock`.
const REFUSED_PREFIXES: [u8; 5] = [0x26, 0x2e, 0x36, 0x3e, 0xf0];

/// Legacy prefixes, which come before all else.
fn prefixes(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let is_prefix = |it: &u8| {
        REFUSED_PREFIXES.contains(it)
            || matches!(it, 0x64 | 0x65 | 0x67 | 0xf2 | 0xf3) // fs, gs, address, repeat
            || *it == OPERAND_16
    };
    bytes.iter().copied().take_while(is_prefix)
}

/// Whether the kernel accepts no probe on it, or what it does is not known: one such place would
/// fail a whole link. Exchanging r8 and rax, which has the opcode of the nop, is taken for one.
fn is_refused(instruction: &Instruction, bytes: &[u8]) -> bool {
    let traps = matches!(
        instruction.flow_control(),
        FlowControl::Interrupt | FlowControl::Exception | FlowControl::XbeginXabortXend
    );
    let is_exchange = matches!(instruction.code(), Code::Xchg_r64_RAX | Code::Xchg_r32_EAX)
        && instruction.op0_register().full_register() == Register::R8;
    let system = matches!(instruction.code(), Code::Syscall | Code::Sysenter);
    let prefixed = prefixes(bytes).any(|it| REFUSED_PREFIXES.contains(&it));
    prefixed || traps || system || is_exchange || instruction.is_privileged()
}

fn carries_call(register: Register) -> bool {
    matches!(
        register.full_register(),
        Register::RDI
            | Register::RSI
            | Register::RDX
            | Register::RCX
            | Register::R8
            | Register::R9
            | Register::RSP
    )
}

fn is_write(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

/// Whether any branch of the function leads to `target`: a hook there would count loops, too.
fn is_branch_target(bytes: &[u8], address: u64, target: u64) -> bool {
    decoder(bytes, address).iter().any(|it| it.near_branch_target() == target)
}

fn form(instruction: &Instruction) -> Form {
    if instruction.is_invalid() {
        return Form::Unknown;
    }
    let short = instruction.is_jcc_short() || instruction.is_jmp_short();
    let operand = match (instruction.op_count(), instruction.op0_kind()) {
        (0, _) => Operand::None,
        (_, OpKind::Register) => Operand::Register(instruction.op0_register()),
        (_, OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64) => {
            Operand::Relative(if short { 8 } else { 32 })
        }
        (_, OpKind::Memory) => Operand::Memory,
        _ => Operand::Value,
    };
    Form::X86 { mnemonic: instruction.mnemonic(), operand }
}

#[cfg(test)]
mod tests {
    use super::place;
    use crate::config::AttachAt;
    use crate::samplers::cuda::probe::place::Place;

    const AT: u64 = 0x10_0000;
    const CMP: [u8; 10] = [0x81, 0x3d, 0x10, 0x20, 0x30, 0x00, 0x00, 0xba, 0x1c, 0x32];

    fn cheapest(bytes: &[u8]) -> Place {
        place(bytes, AT, AttachAt::Cheapest).expect("the kernel accepts it")
    }

    fn check(bytes: &[u8], skip: u8, reason: &str) {
        let found = cheapest(bytes);
        assert_eq!((found.skip, found.slow), (skip, false), "{reason}");
        assert_eq!(found.reason.to_string(), reason);
    }

    fn check_slow(bytes: &[u8], reason: &str) {
        let found = cheapest(bytes);
        assert_eq!((found.skip, found.slow), (0, true), "{reason}");
        assert_eq!(found.reason.to_string(), format!("entry: {reason}"));
    }

    #[test]
    fn cheap_instructions_are_found_behind_harmless_ones() {
        let behind_cmp = |it: &[u8]| [&CMP[..], it].concat();
        check(&behind_cmp(&[0x74, 0x20, 0xc3]), 10, "je rel8 at +10, after cmp (10 bytes)");
        check(&behind_cmp(&[0x75, 0x20, 0xc3]), 10, "jne rel8 at +10, after cmp (10 bytes)");
        let near = [0x0f, 0x84, 0x00, 0x01, 0x00, 0x00, 0xc3];
        check(&behind_cmp(&near), 10, "je rel32 at +10, after cmp (10 bytes)");
        let endbr64 = [0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0xc3];
        check(&endbr64, 4, "push rbp at +4, after endbr64 (4 bytes)");
        check(&[0x55, 0x48, 0x89, 0xe5, 0xc3], 0, "push rbp at the entry");
        check(&[0x41, 0x57, 0xc3], 0, "push r15 at the entry");
        check(&[0x90, 0xc3], 0, "nop at the entry");
        check(&[0xe9, 0x00, 0x01, 0x00, 0x00], 0, "jmp rel32 at the entry");
        check(&[0xb8, 1, 0, 0, 0, 0x55, 0xc3], 5, "push rbp at +5, after mov (5 bytes)");
        check(&[0x31, 0xc0, 0x53, 0xc3], 2, "push rbx at +2, after xor (2 bytes)");
        let two = [0x31, 0xc0, 0x31, 0xdb, 0x53, 0xc3];
        check(&two, 4, "push rbx at +4, after 2 instructions (4 bytes)");
    }

    #[test]
    fn the_entry_is_taken_where_nothing_may_be_passed() {
        let changes = |form: &str| {
            format!("{form} must be single-stepped; {form} at +0 changes an argument or the stack")
        };
        check_slow(&[0x48, 0x83, 0xec, 0x08, 0x55, 0xc3], &changes("sub rsp"));
        check_slow(&[0x48, 0x89, 0xf7, 0x55, 0xc3], &changes("mov rdi"));
        check_slow(&[0xba, 1, 0, 0, 0, 0x55, 0xc3], &changes("mov edx"));
        check_slow(&[0x6a, 0x01, 0xc3], &changes("push value"));
        check_slow(&[0x66, 0x55, 0xc3], &changes("push bp"));
        check_slow(&[0x48, 0x55, 0xc3], &changes("push rbp"));
        check_slow(
            &[0x89, 0x08, 0x55, 0xc3],
            "mov [memory] must be single-stepped; mov [memory] at +0 writes to memory",
        );
        check_slow(&[0xc3], "ret must be single-stepped; ret at +0 may leave the function");
        check_slow(
            &[0x0f, 0x1f, 0x40, 0x00, 0xc3],
            "nop [memory] must be single-stepped; ret at +4 may leave the function",
        );
        check_slow(
            &[0x31, 0xc0, 0x48, 0x83, 0xec, 0x08, 0x55],
            "xor eax must be single-stepped; sub rsp at +2 changes an argument or the stack",
        );
        check_slow(&CMP, "cmp [memory] must be single-stepped; no instruction at +10");
    }

    #[test]
    fn a_place_that_a_loop_returns_to_is_refused() {
        // xor eax, eax; L: push rbx; pop rbx; jmp L
        let code = [0x31, 0xc0, 0x53, 0x5b, 0xeb, 0xfc];
        let why = "xor eax must be single-stepped; push rbx at +2 is reached by a branch, too";
        check_slow(&code, why);
    }

    #[test]
    fn what_the_kernel_refuses_is_never_a_place() {
        let refused = |bytes: &[u8]| {
            place(bytes, AT, AttachAt::Cheapest).expect_err("the kernel refuses it").to_string()
        };
        assert_eq!(refused(&[]), "no instruction");
        assert_eq!(refused(&[0x06, 0x55]), "no instruction");
        assert_eq!(refused(&CMP[..6]), "no instruction");
        assert_eq!(refused(&[0x2e, 0xc3]), "ret");
        assert_eq!(refused(&[0xcc]), "int3");
        assert_eq!(refused(&[0x0f, 0x05]), "syscall");
        assert_eq!(refused(&[0x49, 0x90, 0xc3]), "xchg r8");
        // A refused entry is no obstacle where a cheap place is behind it.
        let long_nop = [0x2e, 0x0f, 0x1f, 0x40, 0x00, 0x55];
        check(&long_nop, 5, "push rbp at +5, after nop (5 bytes)");
        // A branch with a hint is refused, and cannot be passed.
        assert_eq!(refused(&[0x3e, 0x74, 0x05, 0x55]), "je rel8");
    }

    #[test]
    fn the_entry_is_taken_where_the_configuration_says_so() {
        let entry = |bytes: &[u8]| place(bytes, AT, AttachAt::Entry).expect("it is accepted");
        let slow = entry(&[&CMP[..], &[0x74, 0x20]].concat());
        assert_eq!((slow.skip, slow.slow), (0, true));
        assert!(slow.reason.to_string().contains("attach_at"), "{}", slow.reason);
        let quick = entry(&[0x55, 0xc3]);
        assert_eq!((quick.skip, quick.slow), (0, false));
    }
}
