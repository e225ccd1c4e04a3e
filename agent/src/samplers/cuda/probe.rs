//! Where in a file to hook each driver function, decided from the file's bytes. Nothing is attached
//! or opened here.
//!
//! The trap is the cost of a hook, and its price depends on the instruction under it: the kernel
//! emulates a few, and single-steps all others, which costs ten times as much and more in virtual
//! machines. Nearly every function of the driver starts with a compare that must be stepped, followed
//! by a conditional jump that need not be. So the hook goes to the first cheap instruction that is
//! always reached exactly once per call, and before which arguments and stack are as the caller left
//! them. Nothing is assumed about a driver version: every function is decoded.

use std::collections::BTreeMap;

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpAccess,
    Register,
};
use object::elf;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{Endianness, Object, ObjectSymbol, ReadRef, SymbolKind};

use super::hooks::{HOOKS, Hook, REQUIRED};

/// Why a file is not hooked at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("is not a 64-bit ELF file: {0}")]
    Elf(#[from] object::Error),
    #[error("is for another processor (ELF machine {0})")]
    Machine(u16),
    #[error("is not the CUDA driver: its SONAME is {found:?}, expected \"libcuda.so.1\"")]
    Soname { found: String },
    #[error("is not the CUDA driver: it has no function {0}")]
    Incomplete(&'static str),
}

/// What to attach in one library.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) points: Vec<Point>,
    pub(crate) skipped: Vec<Skipped>,
}

/// One place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Point {
    pub(crate) hook: &'static Hook,
    /// Offset in the file.
    pub(crate) offset: u64,
    pub(crate) place: Place,
}

/// A place relative to the entry of its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Bytes from the entry.
    pub(crate) skip: u8,
    /// The kernel must single-step the instruction there.
    pub(crate) slow: bool,
}

/// A function that gets no hook of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Skipped {
    pub(crate) symbol: &'static str,
    pub(crate) why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// This driver does not have it.
    Missing,
    /// Another name for a function that is hooked already; a second hook would count twice.
    SameAs(&'static str),
    /// Its symbol points outside the file.
    Unreadable,
}

const SONAME: &str = "libcuda.so.1";

/// Reads the symbols and decodes every wanted function.
pub(crate) fn plan<'data, R: ReadRef<'data>>(data: R) -> Result<Plan, ProbeError> {
    let file = ElfFile64::<Endianness, R>::parse(data)?;
    let machine = file.elf_header().e_machine(file.endian());
    if machine != elf::EM_X86_64 && machine != elf::EM_AARCH64 {
        return Err(ProbeError::Machine(machine));
    }
    check_soname(&file, data)?;
    let symbols = wanted_symbols(&file);
    if let Some(missing) = REQUIRED.iter().find(|it| !symbols.contains_key(*it)) {
        return Err(ProbeError::Incomplete(missing));
    }
    let code = Code64 { segments: segments(&file), machine, data };
    Ok(code.plan(&symbols))
}

fn check_soname<'data, R: ReadRef<'data>>(
    file: &ElfFile64<'data, Endianness, R>,
    data: R,
) -> Result<(), ProbeError> {
    let (endian, sections) = (file.endian(), file.elf_section_table());
    let mut found = String::new();
    if let Some((entries, strings)) = sections.dynamic(endian, data)? {
        let strings = sections.strings(endian, data, strings)?;
        let offset = entries
            .iter()
            .find(|it| it.d_tag.get(endian) == elf::DT_SONAME)
            .and_then(|it| u32::try_from(it.d_val.get(endian)).ok());
        let name = offset.and_then(|it| strings.get(it).ok()).unwrap_or_default();
        found = String::from_utf8_lossy(name).into_owned();
    }
    if found == SONAME { Ok(()) } else { Err(ProbeError::Soname { found }) }
}

/// Address and size by name.
type Symbols = BTreeMap<&'static str, (u64, u64)>;

fn wanted_symbols<'data, R: ReadRef<'data>>(file: &ElfFile64<'data, Endianness, R>) -> Symbols {
    let wanted: BTreeMap<&[u8], &'static str> =
        HOOKS.iter().map(|it| (it.symbol.as_bytes(), it.symbol)).collect();
    file.dynamic_symbols()
        .filter(|it| it.is_definition() && it.kind() == SymbolKind::Text)
        .filter_map(|it| {
            let name = wanted.get(it.name_bytes().ok()?)?;
            Some((*name, (it.address(), it.size())))
        })
        .collect()
}

/// A part of the file that is mapped for execution.
struct Segment {
    address: u64,
    offset: u64,
    length: u64,
}

fn segments<'data, R: ReadRef<'data>>(file: &ElfFile64<'data, Endianness, R>) -> Vec<Segment> {
    let endian = file.endian();
    let executable = file
        .elf_program_headers()
        .iter()
        .filter(|it| it.p_type(endian) == elf::PT_LOAD && it.p_flags(endian) & elf::PF_X != 0);
    executable
        .map(|it| Segment {
            address: it.p_vaddr(endian),
            offset: it.p_offset(endian),
            length: it.p_filesz(endian),
        })
        .collect()
}

/// How much of a function is looked at; the driver's entry points are much shorter.
const FUNCTION_BYTES: u64 = 16 * 1024;
/// What is looked at where the symbol has no size.
const UNSIZED_BYTES: u64 = 64;

struct Code64<R> {
    segments: Vec<Segment>,
    machine: u16,
    data: R,
}

impl<'data, R: ReadRef<'data>> Code64<R> {
    fn plan(&self, symbols: &Symbols) -> Plan {
        let mut plan = Plan { points: Vec::new(), skipped: Vec::new() };
        let mut names: BTreeMap<u64, &'static str> = BTreeMap::new();
        for hook in &HOOKS {
            match self.point(hook, symbols, &names) {
                Ok((address, point)) => {
                    names.insert(address, hook.symbol);
                    plan.points.push(point);
                }
                Err(why) => plan.skipped.push(Skipped { symbol: hook.symbol, why }),
            }
        }
        plan
    }

    fn point(
        &self,
        hook: &'static Hook,
        symbols: &Symbols,
        names: &BTreeMap<u64, &'static str>,
    ) -> Result<(u64, Point), Why> {
        let (address, size) = *symbols.get(hook.symbol).ok_or(Why::Missing)?;
        if let Some(name) = names.get(&address) {
            return Err(Why::SameAs(name));
        }
        let (offset, bytes) = self.function(address, size).ok_or(Why::Unreadable)?;
        let place = match self.machine {
            elf::EM_X86_64 => place(bytes, address),
            // Every instruction that a function may start with there is stepped.
            _ => Place { skip: 0, slow: true },
        };
        Ok((address, Point { hook, offset: offset + u64::from(place.skip), place }))
    }

    /// Offset in the file and bytes of a function.
    fn function(&self, address: u64, size: u64) -> Option<(u64, &'data [u8])> {
        let segment = self
            .segments
            .iter()
            .find(|it| address >= it.address && address - it.address < it.length)?;
        let inside = address - segment.address;
        let size = if size == 0 { UNSIZED_BYTES } else { size };
        let length = size.min(FUNCTION_BYTES).min(segment.length - inside);
        let offset = segment.offset.checked_add(inside)?;
        Some((offset, self.data.read_bytes_at(offset, length).ok()?))
    }
}

/// How many instructions may be passed over.
const MOST_PASSED: usize = 8;

/// The cheapest place in an x86-64 function; its entry, marked slow, where there is none.
pub(crate) fn place(bytes: &[u8], address: u64) -> Place {
    let entry = Place { skip: 0, slow: true };
    let mut factory = InstructionInfoFactory::new();
    for instruction in decoder(bytes, address).iter().take(MOST_PASSED) {
        let at = instruction.ip();
        if instruction.is_invalid() {
            return entry;
        }
        if is_emulated(&instruction, bytes, address) {
            let reached_once = at == address || !is_branch_target(bytes, address, at);
            let skip = u8::try_from(at - address);
            return match skip {
                Ok(skip) if reached_once => Place { skip, slow: false },
                _ => entry,
            };
        }
        if !leaves_call_intact(&mut factory, &instruction) {
            return entry;
        }
    }
    entry
}

fn decoder(bytes: &[u8], address: u64) -> Decoder<'_> {
    Decoder::with_ip(64, bytes, address, DecoderOptions::NONE)
}

/// What `arch/x86/kernel/uprobes.c` emulates: relative branches and calls, push of a register, the
/// one-byte nop. A 16-bit operand prefix makes it give up.
fn is_emulated(instruction: &Instruction, bytes: &[u8], address: u64) -> bool {
    let offset = usize::try_from(instruction.ip() - address).unwrap_or(usize::MAX);
    if bytes.get(offset) == Some(&0x66) {
        return false;
    }
    instruction.is_jcc_short_or_near()
        || instruction.is_jmp_short_or_near()
        || instruction.is_call_near()
        || instruction.code() == Code::Push_r64 && instruction.len() <= 2
        || is_short_nop(instruction)
}

fn is_short_nop(instruction: &Instruction) -> bool {
    instruction.len() == 1 && matches!(instruction.code(), Code::Nopw | Code::Nopd | Code::Nopq)
}

/// Whether the registers that carry arguments, the stack and all memory are after the instruction
/// what they were before, and the next instruction follows.
fn leaves_call_intact(factory: &mut InstructionInfoFactory, instruction: &Instruction) -> bool {
    if instruction.flow_control() != FlowControl::Next {
        return false;
    }
    let info = factory.info(instruction);
    let mut registers = info.used_registers().iter();
    let changes_call =
        registers.any(|it| is_write(it.access()) && carries_call(it.register().full_register()));
    !changes_call && !info.used_memory().iter().any(|it| is_write(it.access()))
}

fn carries_call(register: Register) -> bool {
    matches!(
        register,
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

#[cfg(test)]
mod tests {
    use super::{Place, ProbeError, place, plan};

    const AT: u64 = 0x10_0000;

    fn check(name: &str, bytes: &[u8], skip: u8, slow: bool) {
        assert_eq!(place(bytes, AT), Place { skip, slow }, "{name}");
    }

    const CMP: [u8; 10] = [0x81, 0x3d, 0x10, 0x20, 0x30, 0x00, 0x00, 0xba, 0x1c, 0x32];

    #[test]
    fn cheap_instructions_are_found_behind_harmless_ones() {
        check("cmp, je rel8", &[&CMP[..], &[0x74, 0x20, 0xc3]].concat(), 10, false);
        check("cmp, jne rel8", &[&CMP[..], &[0x75, 0x20, 0xc3]].concat(), 10, false);
        let near = [0x0f, 0x84, 0x00, 0x01, 0x00, 0x00, 0xc3];
        check("cmp, je rel32", &[&CMP[..], &near].concat(), 10, false);
        check("endbr64, push rbp", &[0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0xc3], 4, false);
        check("push rbp", &[0x55, 0x48, 0x89, 0xe5, 0xc3], 0, false);
        check("push r15", &[0x41, 0x57, 0xc3], 0, false);
        check("nop", &[0x90, 0xc3], 0, false);
        check("jmp rel32", &[0xe9, 0x00, 0x01, 0x00, 0x00], 0, false);
        check("mov eax, 1; push rbp", &[0xb8, 1, 0, 0, 0, 0x55, 0xc3], 5, false);
        check("xor eax, eax; push rbx", &[0x31, 0xc0, 0x53, 0xc3], 2, false);
    }

    #[test]
    fn the_entry_is_taken_where_nothing_may_be_passed() {
        check("sub rsp, 8; push", &[0x48, 0x83, 0xec, 0x08, 0x55, 0xc3], 0, true);
        check("mov rdi, rsi; push", &[0x48, 0x89, 0xf7, 0x55, 0xc3], 0, true);
        check("mov edx, 1; push", &[0xba, 1, 0, 0, 0, 0x55, 0xc3], 0, true);
        check("mov [rax], ecx; push", &[0x89, 0x08, 0x55, 0xc3], 0, true);
        check("ret", &[0xc3], 0, true);
        check("push imm", &[0x6a, 0x01, 0xc3], 0, true);
        check("push word", &[0x66, 0x55, 0xc3], 0, true);
        check("long nop, then ret", &[0x0f, 0x1f, 0x40, 0x00, 0xc3], 0, true);
        check("not an instruction", &[0x06, 0x55], 0, true);
        check("cut off", &CMP[..6], 0, true);
        check("nothing", &[], 0, true);
    }

    #[test]
    fn bytes_that_are_no_library_are_refused() {
        let error = plan(&b"\x7fELF and nothing more"[..]).expect_err("it is no library");
        assert!(matches!(error, ProbeError::Elf(_)), "{error}");
    }

    #[test]
    fn a_place_that_a_loop_returns_to_is_refused() {
        // xor eax, eax; L: push rbx; pop rbx; jmp L
        check("loop", &[0x31, 0xc0, 0x53, 0x5b, 0xeb, 0xfc], 0, true);
    }
}
