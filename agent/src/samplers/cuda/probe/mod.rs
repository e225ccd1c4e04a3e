//! Where in a file to hook each driver function, decided from the file's bytes. Nothing is attached
//! or opened here.
//!
//! The trap is the cost of a hook, and its price depends on the instruction under it: the kernel
//! emulates a few, and single-steps all others, which costs ten times as much and more in virtual
//! machines. Nearly every function of the driver starts with a compare that must be stepped, followed
//! by a conditional jump that need not be. So the hook goes to the first cheap instruction that is
//! always reached exactly once per call, and before which arguments and stack are as the caller left
//! them. Nothing is assumed about a driver version: every function is decoded.

mod arm;
pub(super) mod place;
mod x86;

use std::collections::BTreeMap;

use object::elf;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{Endianness, Object, ObjectSymbol, ReadRef, SymbolKind};

use super::hooks::{self, Group, Hook, REQUIRED};
use crate::config::{AttachAt, HookChoice};
use place::{Form, Place};

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

/// A function that gets no hook of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Skipped {
    pub(crate) symbol: &'static str,
    pub(crate) group: Group,
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
    /// The kernel accepts no probe on the instruction that it begins with.
    Refused(Form),
}

const SONAME: &str = "libcuda.so.1";

/// Reads the symbols and decodes every wanted function.
pub(crate) fn plan<'data, R: ReadRef<'data>>(
    data: R,
    choice: HookChoice,
) -> Result<Plan, ProbeError> {
    let file = ElfFile64::<Endianness, R>::parse(data)?;
    let machine = file.elf_header().e_machine(file.endian());
    if machine != elf::EM_X86_64 && machine != elf::EM_AARCH64 {
        return Err(ProbeError::Machine(machine));
    }
    check_soname(&file, data)?;
    let hooks: Vec<&'static Hook> = hooks::wanted(choice).collect();
    let symbols = wanted_symbols(&file, &hooks);
    if let Some(missing) = REQUIRED.iter().find(|it| !symbols.contains_key(*it)) {
        return Err(ProbeError::Incomplete(missing));
    }
    let attach_at = choice.attach_at;
    let code = Code64 { segments: segments(&file), machine, attach_at, data };
    Ok(code.plan(&hooks, &symbols))
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

fn wanted_symbols<'data, R: ReadRef<'data>>(
    file: &ElfFile64<'data, Endianness, R>,
    hooks: &[&'static Hook],
) -> Symbols {
    let wanted: BTreeMap<&[u8], &'static str> =
        hooks.iter().map(|it| (it.symbol.as_bytes(), it.symbol)).collect();
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
/// How many instructions may be passed over.
const MOST_PASSED: usize = 8;

struct Code64<R> {
    segments: Vec<Segment>,
    machine: u16,
    attach_at: AttachAt,
    data: R,
}

impl<'data, R: ReadRef<'data>> Code64<R> {
    fn plan(&self, hooks: &[&'static Hook], symbols: &Symbols) -> Plan {
        let mut plan = Plan { points: Vec::new(), skipped: Vec::new() };
        let mut names: BTreeMap<u64, &'static str> = BTreeMap::new();
        for hook in hooks {
            match self.point(hook, symbols, &names) {
                Ok((address, point)) => {
                    names.insert(address, hook.symbol);
                    plan.points.push(point);
                }
                Err(why) => {
                    plan.skipped.push(Skipped { symbol: hook.symbol, group: hook.group, why })
                }
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
            elf::EM_X86_64 => x86::place(bytes, address, self.attach_at),
            _ => arm::place(bytes, self.attach_at),
        };
        let place = place.map_err(Why::Refused)?;
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

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use super::{ProbeError, plan};
    use crate::config::HookChoice;

    #[test]
    fn bytes_that_are_no_library_are_refused() {
        let bytes = &b"\x7fELF and nothing more"[..];
        let error = plan(bytes, HookChoice::default()).expect_err("it is no library");
        assert!(matches!(error, ProbeError::Elf(_)), "{error}");
    }
}
