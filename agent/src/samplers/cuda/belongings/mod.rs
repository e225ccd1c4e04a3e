//! What the kernel keeps for a program beside its row: allocations, contexts, and what it did on which
//! device. Pure: bytes in, values out, and when it may be removed.

pub(crate) mod driver;

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::keys::{DeviceKey, LiveKey, Part, Program};
use agent_ebpf::{COUNTERS, Row};

use crate::model::readings::CudaCounts;

/// By program: the device as in [`DeviceKey`], and what was done there.
pub(crate) type Parts = BTreeMap<Program, Vec<(u32, CudaCounts)>>;

/// UUIDs of devices as programs number them.
pub(crate) type Uuids = BTreeMap<(Program, u32), [u8; 16]>;

pub(crate) fn program(tgid: u32, row: &Row) -> Program {
    Program { program: row.program, tgid }
}

/// The program that a key begins with.
fn owner(key: &[u8]) -> Option<Program> {
    let program = u64::from_ne_bytes(key.get(..8)?.try_into().ok()?);
    let tgid = u32::from_ne_bytes(key.get(8..12)?.try_into().ok()?);
    Some(Program { program, tgid })
}

/// The generation of an allocation's key.
fn resets(key: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(key.get(12..14)?.try_into().ok()?))
}

/// The key of what is in a slot, and whose it is; `None` where the slot has another name.
fn named(slot: &[u8], name: u64) -> Option<(&[u8], Program)> {
    let key = slot.get(..size_of::<LiveKey>())?;
    let program = owner(key)?;
    let half = |at: usize| Some(u16::from_ne_bytes(key.get(at..at + 2)?.try_into().ok()?));
    let address = u64::from_ne_bytes(key.get(16..)?.try_into().ok()?);
    let (resets, space) = (half(12)?, half(14)?);
    let Program { program: number, tgid } = program;
    let it = LiveKey { program: number, tgid, resets, space, address };
    (name != 0 && it.name() == name).then_some((key, program))
}

fn device(key: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(key.get(12..16)?.try_into().ok()?))
}

fn device_key(key: DeviceKey) -> [u8; size_of::<DeviceKey>()] {
    let mut bytes = [0; size_of::<DeviceKey>()];
    bytes[..8].copy_from_slice(&key.program.to_ne_bytes());
    bytes[8..12].copy_from_slice(&key.tgid.to_ne_bytes());
    bytes[12..].copy_from_slice(&key.device.to_ne_bytes());
    bytes
}

fn part(value: &[u8]) -> Option<CudaCounts> {
    let mut counts = [0; COUNTERS];
    let words = value.get(..size_of::<Part>())?.chunks_exact(8);
    for (count, word) in counts.iter_mut().zip(words) {
        *count = u64::from_ne_bytes(word.try_into().ok()?);
    }
    Some(counts.into())
}

/// Which programs have a row, and how often each lost its memory.
#[derive(Debug, Default)]
pub(crate) struct Owners(BTreeMap<Program, u16>);

impl Owners {
    pub(crate) fn new(rows: &[(u32, Row)]) -> Self {
        let owner = |(tgid, row): &(u32, Row)| {
            #[expect(clippy::cast_possible_truncation, reason = "the keys hold the lower half")]
            let resets = row.resets as u16;
            (program(*tgid, row), resets)
        };
        Self(rows.iter().map(owner).collect())
    }

    pub(crate) fn has(&self, program: Program) -> bool {
        self.0.contains_key(&program)
    }

    /// Whether the program has lost its memory since an allocation of this generation. One that is
    /// newer than its row was made after the rows were read.
    fn has_lost(&self, program: Program, resets: u16) -> bool {
        self.0.get(&program).is_some_and(|now| now.wrapping_sub(resets).cast_signed() > 0)
    }
}

/// Programs without a row that still own something. The first time it may be that a row was made
/// after the rows were read, or that the end of the program was not reported yet.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    before: BTreeSet<Program>,
    now: BTreeSet<Program>,
}

impl Suspects {
    /// Whether what a program without a row owns may be removed.
    fn is_gone(&mut self, program: Program) -> bool {
        self.now.insert(program);
        self.before.contains(&program)
    }

    /// The maps were looked at once.
    fn turn(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.before.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::{Owners, Suspects, device, device_key, named, owner, part, resets};
    use agent_ebpf::keys::{DeviceKey, LiveKey, Program, SLOTS, WAYS, first_slot, space};
    use agent_ebpf::{COUNTERS, Counter, Row};

    const A: Program = Program { program: 7, tgid: 1 };

    #[test]
    fn keys_say_whose_they_are() {
        let key = device_key(DeviceKey { program: 7, tgid: 1, device: 3 });
        assert_eq!((owner(&key), device(&key)), (Some(A), Some(3)));
        assert_eq!(resets(&key), Some(3));
        assert_eq!(owner(&key[..11]), None);
    }

    #[test]
    fn a_slot_is_what_its_name_says() {
        let key =
            LiveKey { program: 7, tgid: 1, resets: 3, space: space::HOST, address: 0x7f00_1200 };
        let mut slot = [0; 40];
        slot[..8].copy_from_slice(&key.program.to_ne_bytes());
        slot[8..12].copy_from_slice(&key.tgid.to_ne_bytes());
        slot[12..14].copy_from_slice(&key.resets.to_ne_bytes());
        slot[14..16].copy_from_slice(&key.space.to_ne_bytes());
        slot[16..24].copy_from_slice(&key.address.to_ne_bytes());
        assert_eq!(named(&slot, key.name()), Some((&slot[..24], A)));
        assert_eq!(named(&slot, key.name() ^ 1), None);
        assert_eq!(named(&slot, 0), None);
        for other in [
            LiveKey { program: 8, ..key },
            LiveKey { tgid: 2, ..key },
            LiveKey { resets: 4, ..key },
            LiveKey { space: space::DEVICE, ..key },
            LiveKey { address: 0x7f00_1400, ..key },
        ] {
            assert_ne!(other.name(), key.name(), "{other:?}");
        }
    }

    #[test]
    fn neighbours_have_room_beside_each_other() {
        for stride in [512, 4_096, 65_536, 1 << 20, 2 << 20, 1] {
            let mut taken = vec![0; SLOTS as usize];
            for number in 0..u64::from(SLOTS / 16) {
                let address = 0x7f5e_0000_0000 + number * stride;
                let key = LiveKey { program: 7, tgid: 1, address, ..LiveKey::default() };
                taken[first_slot(key.name()) as usize] += 1;
            }
            let most = taken.iter().max().copied().unwrap_or(0);
            assert!(most <= WAYS, "{most} in one place, {stride} bytes apart");
        }
    }

    #[test]
    fn a_part_has_every_counter() {
        let bytes: Vec<u8> = (0..COUNTERS as u64).flat_map(u64::to_ne_bytes).collect();
        let counts = part(&bytes).unwrap();
        assert_eq!(counts[Counter::Exports], COUNTERS as u64 - 1);
        assert_eq!(part(&bytes[1..]), None);
    }

    #[test]
    fn what_was_lost_at_once_is_nobodys() {
        let row = Row { program: 7, resets: 65_537, ..Row::default() };
        let owners = Owners::new(&[(1, row)]);
        assert!(owners.has(A) && owners.has_lost(A, 0));
        assert!(!owners.has_lost(A, 1) && !owners.has_lost(A, 2));
        assert!(!owners.has(Program { tgid: 2, ..A }));
    }

    #[test]
    fn only_who_has_no_row_twice_is_gone() {
        let mut suspects = Suspects::default();
        assert!(!suspects.is_gone(A) && !suspects.is_gone(A));
        suspects.turn();
        assert!(suspects.is_gone(A));
        suspects.turn();
        suspects.turn();
        assert!(suspects.is_empty() && !suspects.is_gone(A));
    }
}
