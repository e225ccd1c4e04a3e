//! Overwrites the entries of driver functions in this process with a jump, as UCX does to see every
//! allocation ("bistro" hooks). What the jump covered is run elsewhere, so that calls still work.
#![expect(unsafe_code, reason = "writes code")]

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind, Register};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect};

use crate::cuda::Cuda;
use crate::library::Entry;

/// The functions that are patched.
const PATCHED: [&str; 2] = ["cuMemAlloc_v2", "cuMemFree_v2"];

/// `movabs r11, address; jmp r11`.
const JUMP_BYTES: usize = 13;

/// `jne` over such a jump.
const OVER_JUMP: [u8; 2] = [0x75, 13];

/// Enough for what a jump of this length covers, each instruction written out.
const ROOM: usize = 4_096;

/// How often a patched function was reached through its patch.
static INTERCEPTED: AtomicU64 = AtomicU64::new(0);

pub(crate) fn intercepted() -> u64 {
    INTERCEPTED.load(Ordering::Relaxed)
}

/// Patches what is patched, unless something there cannot be moved: a breakpoint, for one.
pub(crate) fn patch(cuda: &Cuda) -> anyhow::Result<()> {
    let entries = PATCHED.map(|it| cuda.entry(it).with_context(|| format!("there is no {it}")));
    let mut moved = Vec::new();
    for entry in entries {
        let entry = entry?;
        let code = relocate(entry).with_context(|| format!("cannot move {}", entry.name))?;
        moved.push((entry, code));
    }
    for (entry, code) in moved {
        overwrite(entry, &jump_to(place(&code)?))?;
    }
    Ok(())
}

/// The instructions that the jump will cover, counted and made independent of where they are, and a
/// jump to what follows them.
fn relocate(entry: &Entry) -> anyhow::Result<Vec<u8>> {
    let start = entry.address as *const u8;
    // SAFETY: a function of a library, which is padded to more than is read here.
    let bytes = unsafe { std::slice::from_raw_parts(start, JUMP_BYTES + 16) };
    let mut decoder = Decoder::with_ip(64, bytes, entry.address as u64, DecoderOptions::NONE);
    let mut code = counting();
    let mut covered = 0;
    while covered < JUMP_BYTES {
        let instruction = decoder.decode();
        let length = instruction.len();
        let own = &bytes[covered..covered + length];
        covered += length;
        match moved(&instruction, own)? {
            Moved::Goes(bytes) => code.extend(bytes),
            Moved::Ends(bytes) => {
                code.extend(bytes);
                return Ok(code);
            }
        }
    }
    code.extend(jump_to((entry.address + covered) as u64));
    Ok(code)
}

/// An instruction at its new place.
enum Moved {
    /// The next one follows.
    Goes(Vec<u8>),
    /// Nothing after it is reached.
    Ends(Vec<u8>),
}

fn moved(instruction: &Instruction, own: &[u8]) -> anyhow::Result<Moved> {
    let near = instruction.near_branch_target();
    Ok(match instruction.code() {
        Code::Jmp_rel32_64 | Code::Jmp_rel8_64 => Moved::Ends(jump_to(near).to_vec()),
        Code::Je_rel32_64 | Code::Je_rel8_64 => {
            let mut bytes = OVER_JUMP.to_vec();
            bytes.extend(jump_to(near));
            Moved::Goes(bytes)
        }
        Code::Cmp_rm32_imm32 if instruction.memory_base() == Register::RIP => {
            // `movabs r11, address; cmp dword ptr [r11], immediate`.
            let mut bytes = load_r11(instruction.memory_displacement64()).to_vec();
            bytes.extend([0x41, 0x81, 0x3b]);
            bytes.extend(instruction.immediate32().to_le_bytes());
            Moved::Goes(bytes)
        }
        _ if is_anywhere(instruction) => Moved::Goes(own.to_vec()),
        other => bail!("{other:?} at {:#x} cannot be run elsewhere", instruction.ip()),
    })
}

/// Whether an instruction does the same wherever it is.
fn is_anywhere(instruction: &Instruction) -> bool {
    let moves = (0..instruction.op_count())
        .any(|it| matches!(instruction.op_kind(it), OpKind::NearBranch64 | OpKind::NearBranch32));
    let is_breakpoint = matches!(instruction.code(), Code::Int3 | Code::Int_imm8 | Code::INVALID);
    !moves && !is_breakpoint && !instruction.is_ip_rel_memory_operand()
}

/// `lock inc qword ptr [INTERCEPTED]`.
fn counting() -> Vec<u8> {
    let mut code = load_r11(INTERCEPTED.as_ptr().expose_provenance() as u64).to_vec();
    code.extend([0xf0, 0x49, 0xff, 0x03]);
    code
}

/// `movabs r11, value`: a register that no caller expects to keep its value.
fn load_r11(value: u64) -> [u8; 10] {
    let mut bytes = [0x49, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes[2..].copy_from_slice(&value.to_le_bytes());
    bytes
}

fn jump_to(address: u64) -> [u8; JUMP_BYTES] {
    let mut bytes = [0; JUMP_BYTES];
    bytes[..10].copy_from_slice(&load_r11(address));
    bytes[10..].copy_from_slice(&[0x41, 0xff, 0xe3]);
    bytes
}

/// Puts code where it can be run; it stays there.
fn place(code: &[u8]) -> anyhow::Result<u64> {
    let room = NonZeroUsize::new(ROOM).expect("not zero");
    let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping, which is never unmapped.
    let start = unsafe { mmap_anonymous(None, room, writable, MapFlags::MAP_PRIVATE) }?;
    // SAFETY: the mapping is larger than any code that `relocate` makes, and nobody else's yet.
    unsafe { start.cast::<u8>().copy_from_nonoverlapping(NonNull::from(code).cast(), code.len()) };
    // SAFETY: nothing refers to the mapping but the jumps that are made next.
    unsafe { mprotect(start, ROOM, ProtFlags::PROT_READ | ProtFlags::PROT_EXEC) }?;
    Ok(start.as_ptr().expose_provenance() as u64)
}

fn overwrite(entry: &Entry, jump: &[u8; JUMP_BYTES]) -> anyhow::Result<()> {
    let page = 4_096;
    let first = entry.address / page * page;
    let length = (entry.address + JUMP_BYTES).next_multiple_of(page) - first;
    let pages = NonNull::new(first as *mut c_void).context("a function at 0")?;
    let all = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE | ProtFlags::PROT_EXEC;
    // SAFETY: pages of the library's code, which stay executable.
    unsafe { mprotect(pages, length, all) }.context("cannot make code writable")?;
    // SAFETY: this process's own copy of these pages, writable now; what is overwritten was moved.
    unsafe { (entry.address as *mut u8).copy_from_nonoverlapping(jump.as_ptr(), JUMP_BYTES) };
    // SAFETY: as before.
    unsafe { mprotect(pages, length, ProtFlags::PROT_READ | ProtFlags::PROT_EXEC) }
        .context("cannot make code unwritable")
}
