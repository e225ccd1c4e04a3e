//! Where the running kernel keeps what the eBPF programs read, found in the kernel's own type
//! information (BTF).
//!
//! Rust has no relocatable field access for eBPF, so that the offsets are looked up here and handed
//! to the object as constants. Bytes in, numbers out: `driver.rs` reads the file. The format is
//! described in the kernel's `Documentation/bpf/btf.rst`.

use agent_ebpf::Offsets;

/// Why the offsets could not be found.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum BtfError {
    #[error("is not BTF of this byte order")]
    Magic,
    #[error("ends in the middle of a type")]
    Truncated,
    #[error("has a type of kind {0}, which this version does not know")]
    Kind(u32),
    #[error("has no struct {0}")]
    NoStruct(&'static str),
    #[error("has no member {member} in struct {name}")]
    NoMember { name: &'static str, member: &'static str },
}

/// Looks up every offset; one that is missing makes all of them useless.
pub(crate) fn offsets(btf: &[u8]) -> Result<Offsets, BtfError> {
    let btf = Btf::parse(btf)?;
    let task = btf.structure("task_struct")?;
    let signal = btf.structure("signal_struct")?;
    Ok(Offsets {
        task_tgid: task.offset("tgid")?,
        task_group_leader: task.offset("group_leader")?,
        task_start_boottime: task.offset("start_boottime")?,
        task_self_exec_id: task.offset("self_exec_id")?,
        task_signal: task.offset("signal")?,
        signal_live: signal.offset("live")?,
        ..groups(&btf).unwrap_or_default()
    })
}

/// What leads from a task to the names of its group; without it, groups have no names.
fn groups(btf: &Btf<'_>) -> Result<Offsets, BtfError> {
    let node = btf.structure("kernfs_node")?;
    Ok(Offsets {
        task_cgroups: btf.structure("task_struct")?.offset("cgroups")?,
        cgroups_unified: btf.structure("css_set")?.offset("dfl_cgrp")?,
        cgroup_node: btf.structure("cgroup")?.offset("kn")?,
        node_name: node.offset("name")?,
        // Renamed in Linux 6.15.
        node_parent: node.offset("parent").or_else(|_renamed| node.offset("__parent"))?,
        ..Offsets::default()
    })
}

const MAGIC: u16 = 0xeb9f;
const TYPE_BYTES: usize = 12;
const MEMBER_BYTES: usize = 12;

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type starts in `types`; the index is its id minus 1.
    starts: Vec<u32>,
}

impl<'a> Btf<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let magic = bytes.get(..2).and_then(|it| it.try_into().ok()).map(u16::from_ne_bytes);
        if magic != Some(MAGIC) {
            return Err(BtfError::Magic);
        }
        let header = word(bytes, 4)? as usize;
        let section = |offset: usize| {
            let start = header + word(bytes, offset)? as usize;
            let end = start + word(bytes, offset + 4)? as usize;
            bytes.get(start..end).ok_or(BtfError::Truncated)
        };
        let types = section(8)?;
        Ok(Self { types, strings: section(16)?, starts: starts(types)? })
    }

    /// The struct that is defined under this name; a mere declaration has another kind.
    fn structure(&self, name: &'static str) -> Result<Structure<'_>, BtfError> {
        for start in &self.starts {
            let ty = Type::at(self.types, *start as usize)?;
            if ty.kind() == KIND_STRUCT && self.is_named(ty.name, name) {
                return Ok(Structure { btf: self, ty, name });
            }
        }
        Err(BtfError::NoStruct(name))
    }

    fn is_named(&self, offset: u32, name: &str) -> bool {
        let text = self.strings.get(offset as usize..).unwrap_or_default();
        text.strip_prefix(name.as_bytes()).is_some_and(|it| it.first() == Some(&0))
    }

    /// Bit offset of a member, also inside members without a name: the kernel may wrap parts of a
    /// struct so.
    fn member_bit(&self, ty: &Type, member: &str, depth: u32) -> Result<Option<u32>, BtfError> {
        for index in 0..ty.members() {
            let at = ty.start + TYPE_BYTES + index * MEMBER_BYTES;
            let (name, id, offset) =
                (word(self.types, at)?, word(self.types, at + 4)?, word(self.types, at + 8)?);
            let bit = if ty.has_bitfields() { offset & 0x00ff_ffff } else { offset };
            if self.is_named(name, member) {
                return Ok(Some(bit));
            }
            if name == 0
                && depth > 0
                && let Some(inner) = self.by_id(id)?.filter(Type::is_composite)
                && let Some(found) = self.member_bit(&inner, member, depth - 1)?
            {
                return Ok(Some(bit + found));
            }
        }
        Ok(None)
    }

    fn by_id(&self, id: u32) -> Result<Option<Type>, BtfError> {
        let Some(start) = (id as usize).checked_sub(1).and_then(|it| self.starts.get(it)) else {
            return Ok(None);
        };
        Type::at(self.types, *start as usize).map(Some)
    }
}

/// A struct by name, to ask for its members.
struct Structure<'a> {
    btf: &'a Btf<'a>,
    ty: Type,
    name: &'static str,
}

/// How deep members without a name may be nested; real ones are at most three deep.
const DEPTH: u32 = 8;

impl Structure<'_> {
    /// In bytes.
    fn offset(&self, member: &'static str) -> Result<u32, BtfError> {
        let missing = BtfError::NoMember { name: self.name, member };
        self.btf.member_bit(&self.ty, member, DEPTH)?.map(|it| it / 8).ok_or(missing)
    }
}

#[derive(Clone, Copy)]
struct Type {
    start: usize,
    name: u32,
    info: u32,
}

impl Type {
    fn at(types: &[u8], start: usize) -> Result<Self, BtfError> {
        Ok(Self { start, name: word(types, start)?, info: word(types, start + 4)? })
    }

    fn kind(&self) -> u32 {
        (self.info >> 24) & 0x1f
    }

    fn members(&self) -> usize {
        (self.info & 0xffff) as usize
    }

    fn has_bitfields(&self) -> bool {
        self.info >> 31 == 1
    }

    fn is_composite(&self) -> bool {
        matches!(self.kind(), KIND_STRUCT | KIND_UNION)
    }

    /// Bytes of this type in the type section.
    fn length(&self) -> Result<usize, BtfError> {
        let more = match self.kind() {
            // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
            2 | 7 | 8 | 9 | 10 | 11 | 12 | 16 | 18 => 0,
            // Integer, variable, declaration tag.
            1 | 14 | 17 => 4,
            // Array.
            3 => 12,
            // Struct, union, data section, 64-bit enumeration.
            KIND_STRUCT | KIND_UNION | 15 | 19 => 12 * self.members(),
            // Enumeration, function prototype.
            6 | 13 => 8 * self.members(),
            other => return Err(BtfError::Kind(other)),
        };
        Ok(TYPE_BYTES + more)
    }
}

fn starts(types: &[u8]) -> Result<Vec<u32>, BtfError> {
    let mut starts = Vec::new();
    let mut at = 0;
    while at < types.len() {
        starts.push(u32::try_from(at).map_err(|_too_long| BtfError::Truncated)?);
        at += Type::at(types, at)?.length()?;
    }
    Ok(starts)
}

fn word(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    let found = bytes.get(at..at + 4).and_then(|it| it.try_into().ok());
    found.map(u32::from_ne_bytes).ok_or(BtfError::Truncated)
}

#[cfg(test)]
mod tests {
    use super::{BtfError, offsets};

    /// Writes BTF by hand: types by members `(name, type id, byte offset)`.
    #[derive(Default)]
    struct Writer {
        types: Vec<u8>,
        strings: Vec<u8>,
    }

    impl Writer {
        fn name(&mut self, name: &str) -> u32 {
            if self.strings.is_empty() {
                self.strings.push(0);
            }
            if name.is_empty() {
                return 0;
            }
            let at = u32::try_from(self.strings.len()).unwrap();
            self.strings.extend(name.as_bytes());
            self.strings.push(0);
            at
        }

        fn structure(&mut self, name: &str, members: &[(&str, u32, u32)]) {
            let name = self.name(name);
            let info = 4 << 24 | u32::try_from(members.len()).unwrap();
            self.words(&[name, info, 0]);
            for (member, id, offset) in members {
                let member = self.name(member);
                self.words(&[member, *id, offset * 8]);
            }
        }

        fn words(&mut self, words: &[u32]) {
            self.types.extend(words.iter().flat_map(|it| it.to_ne_bytes()));
        }

        fn finish(self) -> Vec<u8> {
            let length = |it: &[u8]| u32::try_from(it.len()).unwrap();
            let mut out = Vec::new();
            out.extend(0xeb9f_u16.to_ne_bytes());
            out.extend([1, 0]);
            for it in [24, 0, length(&self.types), length(&self.types), length(&self.strings)] {
                out.extend(it.to_ne_bytes());
            }
            [out, self.types, self.strings].concat()
        }
    }

    fn kernel(signal: &str) -> Vec<u8> {
        let mut btf = Writer::default();
        btf.words(&[0, 1 << 24, 4, 32]); // 1: an integer
        btf.structure("", &[("tgid", 1, 4), ("group_leader", 1, 16)]); // 2: no name
        btf.structure(
            "task_struct",
            &[
                ("thread_info", 1, 0),
                ("", 2, 64),
                ("start_boottime", 1, 200),
                ("self_exec_id", 1, 240),
                (signal, 1, 300),
            ],
        );
        btf.structure("signal_struct", &[("sigcnt", 1, 0), ("live", 1, 4)]);
        btf.finish()
    }

    #[test]
    fn members_are_found_also_inside_members_without_a_name() {
        let found = offsets(&kernel("signal")).unwrap();
        assert_eq!((found.task_tgid, found.task_group_leader), (68, 80));
        assert_eq!((found.task_start_boottime, found.task_signal), (200, 300));
        assert_eq!(found.task_self_exec_id, 240);
        assert_eq!(found.signal_live, 4);
    }

    #[test]
    fn what_is_missing_is_named() {
        let missing = BtfError::NoMember { name: "task_struct", member: "signal" };
        assert_eq!(offsets(&kernel("sighand")), Err(missing));
        assert_eq!(offsets(b"not BTF at all"), Err(BtfError::Magic));
        let mut empty = Writer::default();
        empty.name("x");
        assert_eq!(offsets(&empty.finish()), Err(BtfError::NoStruct("task_struct")));
        let whole = kernel("signal");
        for end in 0..whole.len() {
            offsets(&whole[..end]).expect_err("a part is not enough");
        }
    }
}
