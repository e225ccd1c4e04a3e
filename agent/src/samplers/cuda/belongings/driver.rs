//! The maps themselves.

use std::io;
use std::os::fd::BorrowedFd;

use agent_ebpf::keys::{Context, ContextKey, DeviceKey, Live, LiveKey, Part, Program, Slot};
use aya::Ebpf;
use aya::maps::{Array, Map};

use super::{Owners, Parts, Suspects, device, device_key, named, owner, part, resets};
use crate::samplers::cuda::bpf::driver::{self as bpf, Batch};
use crate::samplers::cuda::driver::{KernelError, descriptor, take};

/// Entries that are read at once.
const BATCH: usize = 256;

#[derive(Debug)]
pub(crate) struct Belongings {
    slots: Map,
    names: Map,
    live: Map,
    contexts: Map,
    devices: Map,
    uuids: Map,
    suspects: Suspects,
}

impl Belongings {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            slots: take(ebpf, "SLOTS")?,
            names: take(ebpf, "NAMES")?,
            live: take(ebpf, "LIVE")?,
            contexts: take(ebpf, "CONTEXTS")?,
            devices: take(ebpf, "DEVICES")?,
            uuids: take(ebpf, "UUIDS")?,
            suspects: Suspects::default(),
        })
    }

    /// What programs did elsewhere than on their first device.
    pub(crate) fn parts(&self) -> Result<Parts, KernelError> {
        let mut parts = Parts::new();
        let mut batch = Batch::new(size_of::<DeviceKey>(), size_of::<Part>(), BATCH);
        let scanned = batch.scan(map(&self.devices)?, |key, value| {
            if let (Some(owner), Some(device), Some(part)) = (owner(key), device(key), part(value))
            {
                parts.entry(owner).or_default().push((device, part));
            }
        });
        scanned.map_err(KernelError::Read)?;
        Ok(parts)
    }

    /// The name of a device, if the program has asked for it.
    pub(crate) fn uuid(&self, of: Program, device: u32) -> Result<Option<[u8; 16]>, KernelError> {
        let key = device_key(DeviceKey { program: of.program, tgid: of.tgid, device });
        let mut uuid = [0; 16];
        let found = bpf::get(map(&self.uuids)?, &key, &mut uuid).map_err(KernelError::Read)?;
        Ok(found.then_some(uuid))
    }

    /// Whether something may be left of programs that have ended.
    pub(crate) fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// Removes what belongs to programs that have ended, and have been reported. `is_alive`: for
    /// programs that found no row.
    pub(crate) fn sweep(
        &mut self,
        owners: &Owners,
        is_alive: impl Fn(Program) -> bool,
    ) -> Result<(), KernelError> {
        let suspects = &mut self.suspects;
        let mut is_gone = |program: Program| {
            !owners.has(program) && suspects.is_gone(program) && !is_alive(program)
        };
        let mut is_free = |key: &[u8], program: Program| {
            resets(key).is_some_and(|it| owners.has_lost(program, it)) || is_gone(program)
        };
        vacate(map(&self.slots)?, &mut self.names, &mut is_free)?;
        let live = (size_of::<LiveKey>(), size_of::<Live>());
        remove(map(&self.live)?, live, is_free)?;
        let context = (size_of::<ContextKey>(), size_of::<Context>());
        remove(map(&self.contexts)?, context, |_key, program| is_gone(program))?;
        let part = (size_of::<DeviceKey>(), size_of::<Part>());
        remove(map(&self.devices)?, part, |_key, program| is_gone(program))?;
        let uuid = (size_of::<DeviceKey>(), size_of::<[u8; 16]>());
        remove(map(&self.uuids)?, uuid, |_key, program| is_gone(program))?;
        self.suspects.turn();
        Ok(())
    }
}

/// Frees every slot whose allocation is not wanted any more. What an ended program had stays as it is
/// until then. The names are read first: a slot that is taken meanwhile is not what its name says.
fn vacate(
    slots: BorrowedFd<'_>,
    names: &mut Map,
    unwanted: &mut impl FnMut(&[u8], Program) -> bool,
) -> Result<(), KernelError> {
    let mut taken = Vec::new();
    let scanned =
        Batch::new(size_of::<u32>(), size_of::<u64>(), BATCH).scan(map(names)?, |_, it| {
            taken.push(it.try_into().map_or(0, u64::from_ne_bytes));
        });
    scanned.map_err(KernelError::Read)?;
    let mut free = Vec::new();
    let (mut index, mut batch) = (0_u32, Batch::new(size_of::<u32>(), size_of::<Slot>(), BATCH));
    let scanned = batch.scan(slots, |_, slot| {
        let name = taken.get(index as usize).copied().unwrap_or(0);
        if named(slot, name).is_some_and(|(key, program)| unwanted(key, program)) {
            free.push(index);
        }
        index += 1;
    });
    scanned.map_err(KernelError::Read)?;
    let mut names = Array::<_, u64>::try_from(names)?;
    for index in free {
        names.set(index, 0, 0)?;
    }
    Ok(())
}

/// Removes every entry that is not wanted any more.
fn remove(
    map: BorrowedFd<'_>,
    (key_bytes, value_bytes): (usize, usize),
    mut unwanted: impl FnMut(&[u8], Program) -> bool,
) -> Result<(), KernelError> {
    let mut keys = Vec::new();
    let scanned = Batch::new(key_bytes, value_bytes, BATCH).scan(map, |key, _value| {
        if owner(key).is_some_and(|it| unwanted(key, it)) {
            keys.push(key.to_vec());
        }
    });
    let removed: io::Result<Vec<bool>> =
        scanned.and_then(|()| keys.iter().map(|it| bpf::remove(map, it)).collect());
    removed.map_err(KernelError::Read)?;
    Ok(())
}

fn map(map: &Map) -> Result<BorrowedFd<'_>, KernelError> {
    descriptor(map).ok_or(KernelError::NoMap("of programs"))
}
