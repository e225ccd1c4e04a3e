//! The cheapest place in a function of aarch64.
//!
//! The kernel simulates branches, `adr` and `adrp`, steps what remains, and refuses what neither
//! works for: `arch/arm64/kernel/probes/decode-insn.c`. Nearly every function of the driver begins
//! with `adrp`, so that the entry is cheap. Only `bti` and `nop` are passed over: `paciasp` signs the
//! return address, and a return probe behind it would break the signature.

use super::MOST_PASSED;
use super::place::{Form, Passed, Place, Refusal};
use crate::config::AttachAt;

const BYTES: usize = 4;

/// What the kernel does with an instruction under a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Treatment {
    Simulated,
    /// Stepped, and harmless to arguments, stack and return address.
    Passable,
    Stepped,
    Refused,
}

/// Where to hook a function, given its bytes; an error holds the entry's instruction, where the
/// kernel accepts no probe.
pub(super) fn place(bytes: &[u8], wanted: AttachAt) -> Result<Place, Form> {
    let Some(first) = words(bytes).next() else { return Err(Form::Unknown) };
    let (treatment, name) = treatment(first);
    let form = Form::Arm(name);
    if treatment == Treatment::Refused {
        return Err(form);
    }
    Ok(match wanted {
        AttachAt::Entry => Place::configured(form, treatment != Treatment::Simulated),
        AttachAt::Cheapest => search(bytes).unwrap_or_else(|better| Place::stepped(form, better)),
    })
}

fn search(bytes: &[u8]) -> Result<Place, Refusal> {
    let mut passed = Passed::Nothing;
    for (index, word) in words(bytes).enumerate().take(MOST_PASSED) {
        let Ok(skip) = u8::try_from(index * BYTES) else { return Err(Refusal::None) };
        let (treatment, name) = treatment(word);
        let form = Form::Arm(name);
        match treatment {
            Treatment::Simulated if index > 0 && is_branch_target(bytes, index) => {
                return Err(Refusal::Loops { form, skip });
            }
            Treatment::Simulated => return Ok(Place::emulated(form, skip, passed)),
            Treatment::Passable => passed = passed.and(form),
            Treatment::Stepped | Treatment::Refused => {
                return Err(Refusal::NotPassed { form, skip });
            }
        }
    }
    Err(Refusal::None)
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    let (words, _rest) = bytes.as_chunks::<BYTES>();
    words.iter().map(|it| u32::from_le_bytes(*it))
}

/// Encodings are those of the Arm Architecture Reference Manual, section C4.1.
fn treatment(word: u32) -> (Treatment, &'static str) {
    use Treatment::{Passable, Refused, Simulated, Stepped};
    let is = |mask: u32, value: u32| word & mask == value;
    match word {
        _ if is(0x9f00_0000, 0x9000_0000) => (Simulated, "adrp"),
        _ if is(0x9f00_0000, 0x1000_0000) => (Simulated, "adr"),
        _ if is(0xfc00_0000, 0x1400_0000) => (Simulated, "b"),
        _ if is(0xfc00_0000, 0x9400_0000) => (Simulated, "bl"),
        _ if is(0xff00_0010, 0x5400_0000) => (Simulated, "b.cond"),
        _ if is(0x7e00_0000, 0x3400_0000) => (Simulated, "cbz"),
        _ if is(0x7e00_0000, 0x3600_0000) => (Simulated, "tbz"),
        _ if is(0xffff_fc1f, 0xd61f_0000) => (Simulated, "br"),
        _ if is(0xffff_fc1f, 0xd63f_0000) => (Simulated, "blr"),
        _ if is(0xffff_fc1f, 0xd65f_0000) => (Simulated, "ret"),
        0xd503_201f => (Passable, "nop"),
        _ if is(0xffff_ff3f, 0xd503_241f) => (Passable, "bti"),
        // Signing of the return address: stepped, and nothing behind it may be hooked.
        0xd503_233f | 0xd503_237f => (Stepped, "pacisp"),
        // Other hints, barriers, system registers, exceptions, branches with a signature.
        _ if is(0x1c00_0000, 0x1400_0000) => (Refused, "a system instruction"),
        // Older kernels simulated it, wrongly.
        _ if is(0x3b00_0000, 0x1800_0000) => (Refused, "ldr literal"),
        _ if is(0x3f00_0000, 0x0800_0000) => (Refused, "an exclusive access"),
        _ => (Stepped, "another instruction"),
    }
}

/// Whether any branch of the function leads to the instruction number `target`.
fn is_branch_target(bytes: &[u8], target: usize) -> bool {
    let Ok(target) = i64::try_from(target) else { return true };
    (0..).zip(words(bytes)).any(|(at, word)| distance(word).is_some_and(|it| at + it == target))
}

/// How many instructions a relative branch goes.
fn distance(word: u32) -> Option<i64> {
    let (first, bits) = match word {
        _ if word & 0x7c00_0000 == 0x1400_0000 => (0, 26),
        _ if word & 0xff00_0010 == 0x5400_0000 || word & 0x7e00_0000 == 0x3400_0000 => (5, 19),
        _ if word & 0x7e00_0000 == 0x3600_0000 => (5, 14),
        _ => return None,
    };
    let above = 32 - bits;
    let shifted = (word >> first) << above;
    Some(i64::from(shifted.cast_signed() >> above))
}

#[cfg(test)]
mod tests {
    use super::{distance, place};
    use crate::config::AttachAt;

    const ADRP: u32 = 0xf000_c509;
    const BTI_C: u32 = 0xd503_245f;
    const NOP: u32 = 0xd503_201f;
    const PACIASP: u32 = 0xd503_233f;
    const STP: u32 = 0xa9bf_7bfd;
    const RET: u32 = 0xd65f_03c0;

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|it| it.to_le_bytes()).collect()
    }

    fn check(words: &[u32], skip: u8, slow: bool, reason: &str) {
        let found = place(&bytes(words), AttachAt::Cheapest).expect("the kernel accepts it");
        assert_eq!(
            (found.skip, found.slow, found.reason.to_string().as_str()),
            (skip, slow, reason)
        );
    }

    #[test]
    fn the_entry_is_cheap_where_it_is_simulated() {
        // As the driver's functions begin: adrp x9; movz; movk; ldr; cmp; b.eq.
        let driver = [ADRP, 0x5297_4008, 0x72a6_4388, 0xb948_a929, 0x6b08_013f, 0x5400_00a0];
        check(&driver, 0, false, "adrp at the entry");
        check(&[0x1400_0010], 0, false, "b at the entry");
        check(&[0xb400_0040], 0, false, "cbz at the entry");
        check(&[RET], 0, false, "ret at the entry");
    }

    #[test]
    fn marks_of_a_branch_target_are_passed_over_and_nothing_else() {
        check(&[BTI_C, ADRP], 4, false, "adrp at +4, after bti (4 bytes)");
        check(&[BTI_C, NOP, ADRP], 8, false, "adrp at +8, after 2 instructions (8 bytes)");
        let stepped = |form: &str| format!("entry: {form} must be single-stepped; {form} at +0");
        check(&[PACIASP, ADRP], 0, true, &format!("{} is not passed over", stepped("pacisp")));
        let store = format!("{} is not passed over", stepped("another instruction"));
        check(&[STP, ADRP], 0, true, &store);
        let signed = "entry: bti must be single-stepped; pacisp at +4 is not passed over";
        check(&[BTI_C, PACIASP, ADRP], 0, true, signed);
    }

    #[test]
    fn a_place_that_a_loop_returns_to_is_refused() {
        let back = 0x17ff_ffff; // b .-4
        let why = "entry: nop must be single-stepped; adrp at +4 is reached by a branch, too";
        check(&[NOP, ADRP, back], 0, true, why);
    }

    #[test]
    fn what_the_kernel_refuses_is_no_place() {
        let refused = |word: u32| place(&bytes(&[word]), AttachAt::Cheapest).is_err();
        assert!(refused(0xd420_0000), "brk");
        assert!(refused(0x5800_0040), "ldr literal");
        assert!(refused(0xd53b_d040), "mrs");
        assert!(refused(0xc85f_7c00), "ldxr");
        assert!(!refused(STP));
    }

    #[test]
    fn distances_are_signed() {
        assert_eq!(distance(0x17ff_ffff), Some(-1));
        assert_eq!(distance(0x1400_0010), Some(16));
        assert_eq!(distance(0x5400_00a0), Some(5));
        assert_eq!(distance(0x3607_ffe0), Some(-1));
        assert_eq!(distance(ADRP), None);
    }
}
