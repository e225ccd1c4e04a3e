//! Whatever the bytes are, a hook is never put behind a change of arguments or stack.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, OpAccess, OpKind, Register,
};
use proptest::prelude::{
    Just, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
};

use super::{arm, x86};
use crate::config::AttachAt;

const AT: u64 = 0x7f00_0000_1000;
const ARGUMENTS: [Register; 7] = [
    Register::RDI,
    Register::RSI,
    Register::RDX,
    Register::RCX,
    Register::R8,
    Register::R9,
    Register::RSP,
];

/// Bytes that often are the beginning of a function, and often are nothing at all.
fn code() -> impl Strategy<Value = Vec<u8>> {
    let known: [&'static [u8]; 12] = [
        &[0xf3, 0x0f, 0x1e, 0xfa],                      // endbr64
        &[0x81, 0x3d, 0, 0, 0, 0, 0, 0xba, 0x1c, 0x32], // cmp [rip], value
        &[0x31, 0xc0],                                  // xor eax, eax
        &[0x85, 0xff],                                  // test edi, edi
        &[0x48, 0x8b, 0x05, 0, 0, 0, 0],                // mov rax, [rip]
        &[0x4c, 0x8d, 0x15, 0, 0, 0, 0],                // lea r10, [rip]
        &[0x48, 0x89, 0xf8],                            // mov rax, rdi
        &[0x74, 0x10],                                  // je
        &[0x0f, 0x84, 0, 1, 0, 0],                      // je, near
        &[0x55],                                        // push rbp
        &[0x41, 0x57],                                  // push r15
        &[0x90],                                        // nop
    ];
    let piece = prop_oneof![
        8 => prop::sample::select(known.to_vec()).prop_map(<[u8]>::to_vec),
        3 => prop::collection::vec(any::<u8>(), 1..6),
        1 => Just(vec![0x48, 0x83, 0xec, 0x08]), // sub rsp, 8
    ];
    prop::collection::vec(piece, 0..12).prop_map(|it| it.concat())
}

/// Judged by operands, which is another way than the one that is tested.
fn keeps_call(it: &iced_x86::Instruction) -> bool {
    let mut factory = InstructionInfoFactory::new();
    let writes = matches!(
        factory.info(it).op0_access(),
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    );
    let writes_argument = it.op_count() > 0
        && it.op0_kind() == OpKind::Register
        && ARGUMENTS.contains(&it.op0_register().full_register())
        && writes;
    let moves_stack = it.is_stack_instruction() || it.stack_pointer_increment() != 0;
    it.flow_control() == FlowControl::Next && !writes_argument && !moves_stack
}

proptest! {
    #[test]
    fn nothing_that_the_call_needs_changes_before_a_hook(code in code()) {
        let Ok(place) = x86::place(&code, AT, AttachAt::Cheapest) else { return Ok(()) };
        let end = AT + u64::from(place.skip);
        let mut at = AT;
        for it in Decoder::with_ip(64, &code, AT, DecoderOptions::NONE).iter() {
            if at >= end {
                break;
            }
            prop_assert!(!it.is_invalid() && keeps_call(&it), "{it:?} before +{}", place.skip);
            at = it.next_ip();
        }
        prop_assert_eq!(at.max(AT), end, "a hook in the middle of an instruction");
        prop_assert!(place.skip == 0 || usize::from(place.skip) < code.len());
        prop_assert!(!place.slow || place.skip == 0, "only an entry may be slow");
    }

    #[test]
    fn the_entry_is_the_entry(code in code()) {
        if let Ok(place) = x86::place(&code, AT, AttachAt::Entry) {
            prop_assert_eq!(place.skip, 0);
        }
    }

    #[test]
    fn only_marks_are_passed_over_on_aarch64(words in prop::collection::vec(word(), 0..12)) {
        let code: Vec<u8> = words.iter().flat_map(|it| it.to_le_bytes()).collect();
        let Ok(place) = arm::place(&code, AttachAt::Cheapest) else { return Ok(()) };
        prop_assert_eq!(place.skip % 4, 0);
        let passed = words.iter().take(usize::from(place.skip / 4));
        prop_assert!(passed.copied().all(|it| MARKS.contains(&it)), "{words:x?}");
    }
}

/// `nop`, and the four kinds of `bti`.
const MARKS: [u32; 5] = [0xd503_201f, 0xd503_241f, 0xd503_245f, 0xd503_249f, 0xd503_24df];

fn word() -> impl Strategy<Value = u32> {
    let adrp = 0xf000_c509;
    prop_oneof![
        4 => prop::sample::select(MARKS.to_vec()),
        2 => Just(adrp),
        1 => Just(0xd503_233f), // paciasp
        3 => any::<u32>(),
    ]
}
