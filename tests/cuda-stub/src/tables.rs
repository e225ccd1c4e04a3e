//! What this process has from the driver, by the value it was given.

use std::collections::{BTreeMap, BTreeSet};

/// Where device addresses begin: they look like the driver's, and no host memory is there.
const FIRST_ADDRESS: u64 = 0x7f2a_0000_0000;

/// Addresses are this far apart at least, as a driver's are.
const ALIGNMENT: u64 = 2 << 20;

/// Where the addresses begin that functions of the first version give out: they have 32 bits.
const FIRST_LOW_ADDRESS: u64 = 0x1000_0000;

const LOW_ALIGNMENT: u64 = 512;

/// Marks a value as a context; the device is in its low byte.
const CONTEXT_TAG: u64 = 0x55c7_0000_0000;

/// Where the handles of streams, events and pools begin.
const FIRST_HANDLE: u64 = 0x5522_0000;

/// Addresses, handles and contexts of one process.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    /// By device pointer or handle.
    allocations: BTreeMap<u64, Allocation>,
    addresses_used: u64,
    low_addresses_used: u64,
    /// Bytes of reserved addresses, by the first.
    reserved: BTreeMap<u64, u64>,
    /// By the first address.
    mapped: BTreeMap<u64, Mapping>,
    /// Of physical memory by handle: how often the handle is held, and how often it is mapped.
    holds: BTreeMap<u64, [u64; 2]>,
    contexts: BTreeMap<u64, usize>,
    contexts_made: u64,
    primary: BTreeMap<usize, Primary>,
    handles: BTreeSet<u64>,
    handles_made: u64,
    host: BTreeMap<usize, Pinned>,
}

/// Memory that this process asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allocation {
    pub(crate) device: usize,
    pub(crate) bytes: u64,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug)]
struct Mapping {
    bytes: u64,
    handle: u64,
}

/// What a value stands for: not every function that frees takes every kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Device,
    Managed,
    StreamOrdered,
    /// A handle, and no address.
    Physical,
    /// A handle of somebody else's memory.
    Imported,
    /// An address of somebody else's memory.
    Opened,
}

/// How host memory was pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pinned {
    Allocated,
    Registered,
}

#[derive(Clone, Copy, Debug)]
struct Primary {
    context: u64,
    users: u64,
}

/// What a primary context's owner must do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// Nobody retains it.
    NotRetained,
    StillUsed,
    Last,
}

impl Tables {
    pub(crate) fn add(&mut self, allocation: Allocation) -> u64 {
        let address = self.address(allocation.bytes);
        self.allocations.insert(address, allocation);
        if matches!(allocation.kind, Kind::Physical | Kind::Imported) {
            self.holds.insert(address, [1, 0]);
        }
        address
    }

    pub(crate) fn has_physical(&self, handle: u64) -> bool {
        self.holds.contains_key(&handle)
    }

    /// The handle of what is mapped at this address, held once more.
    pub(crate) fn retain_mapped(&mut self, at: u64) -> Option<u64> {
        let (start, mapping) = self.mapped.range(..=at).next_back()?;
        let handle = mapping.handle;
        let holds = self.holds.get_mut(&handle).filter(|_| at < start + mapping.bytes)?;
        holds[0] += 1;
        Some(handle)
    }

    /// `None` = it is not held. What is gone with it, if anything.
    pub(crate) fn release_handle(&mut self, handle: u64) -> Option<Option<Allocation>> {
        let holds = self.holds.get_mut(&handle).filter(|it| it[0] > 0)?;
        holds[0] -= 1;
        Some(self.drop_unheld(handle))
    }

    fn drop_unheld(&mut self, handle: u64) -> Option<Allocation> {
        self.holds.get(&handle).filter(|it| **it == [0, 0])?;
        self.holds.remove(&handle);
        self.allocations.remove(&handle)
    }

    /// The same with an address of 32 bits; `None` when all of them were given out.
    pub(crate) fn add_low(&mut self, allocation: Allocation) -> Option<u32> {
        let address = u32::try_from(FIRST_LOW_ADDRESS + self.low_addresses_used).ok()?;
        self.low_addresses_used += allocation.bytes.max(1).next_multiple_of(LOW_ALIGNMENT);
        self.allocations.insert(address.into(), allocation);
        Some(address)
    }

    /// Takes out an allocation of one of these kinds.
    pub(crate) fn remove(&mut self, address: u64, kinds: &[Kind]) -> Option<Allocation> {
        let found = self.allocations.get(&address)?;
        if kinds.contains(&found.kind) { self.allocations.remove(&address) } else { None }
    }

    pub(crate) fn reserve(&mut self, bytes: u64) -> u64 {
        let address = self.address(bytes);
        self.reserved.insert(address, bytes);
        address
    }

    /// Whether this was reserved, and nothing is mapped there any more.
    pub(crate) fn free_reserved(&mut self, address: u64, bytes: u64) -> bool {
        let free = self.mapped.range(address..address + bytes).next().is_none();
        let right = free && self.reserved.get(&address) == Some(&bytes);
        if right {
            self.reserved.remove(&address);
        }
        right
    }

    /// Whether there is such memory, and the addresses are reserved and free.
    pub(crate) fn map(&mut self, at: u64, bytes: u64, handle: u64) -> bool {
        let memory = self.allocations.get(&handle);
        let is_memory = memory.is_some_and(|it| matches!(it.kind, Kind::Physical | Kind::Imported));
        let around = self.reserved.range(..=at).next_back();
        let is_reserved = around.is_some_and(|(start, size)| at + bytes <= start + size);
        let before = self.mapped.range(..at + bytes).next_back();
        let is_free = before.is_none_or(|(start, it)| start + it.bytes <= at);
        let right = bytes > 0 && is_memory && is_reserved && is_free;
        if right {
            self.mapped.insert(at, Mapping { bytes, handle });
            self.holds.entry(handle).or_default()[1] += 1;
        }
        right
    }

    /// Whether the range consists of whole mappings.
    pub(crate) fn is_mapped(&self, at: u64, bytes: u64) -> bool {
        let mut end = at;
        for (start, it) in self.mapped.range(at..at + bytes) {
            if *start != end {
                return false;
            }
            end += it.bytes;
        }
        bytes > 0 && end == at + bytes
    }

    /// As above; the mappings are gone then, and what nothing else held. `None` = it does not.
    pub(crate) fn unmap(&mut self, at: u64, bytes: u64) -> Option<Vec<Allocation>> {
        if !self.is_mapped(at, bytes) {
            return None;
        }
        let ended: Vec<Mapping> = self.mapped.range(at..at + bytes).map(|it| *it.1).collect();
        self.mapped.retain(|start, _| !(at..at + bytes).contains(start));
        let mut gone = Vec::new();
        for it in ended {
            if let Some(holds) = self.holds.get_mut(&it.handle) {
                holds[1] -= 1;
            }
            gone.extend(self.drop_unheld(it.handle));
        }
        Some(gone)
    }

    pub(crate) fn add_context(&mut self, device: usize) -> u64 {
        self.contexts_made += 1;
        let context = CONTEXT_TAG | (self.contexts_made << 8) | device as u64;
        self.contexts.insert(context, device);
        context
    }

    /// Ends a context. With the last one of its device go that device's allocations.
    pub(crate) fn remove_context(&mut self, context: u64) -> Option<usize> {
        let device = self.contexts.remove(&context)?;
        if !self.contexts.values().any(|it| *it == device) {
            self.allocations.retain(|_, it| it.device != device);
        }
        Some(device)
    }

    /// The device's primary context, one user more; `None` when it must be made first.
    pub(crate) fn retain_primary(&mut self, device: usize) -> Option<u64> {
        let primary = self.primary.get_mut(&device)?;
        primary.users += 1;
        Some(primary.context)
    }

    pub(crate) fn add_primary(&mut self, device: usize) -> u64 {
        let context = self.add_context(device);
        self.primary.insert(device, Primary { context, users: 1 });
        context
    }

    pub(crate) fn release_primary(&mut self, device: usize) -> Release {
        let Some(primary) = self.primary.get_mut(&device) else { return Release::NotRetained };
        primary.users -= 1;
        if primary.users > 0 { Release::StillUsed } else { Release::Last }
    }

    /// The primary context is gone, whoever retains it.
    pub(crate) fn drop_primary(&mut self, device: usize) -> bool {
        match self.primary.remove(&device) {
            Some(primary) => self.remove_context(primary.context).is_some(),
            None => false,
        }
    }

    /// A stream, an event or a pool.
    pub(crate) fn add_handle(&mut self) -> u64 {
        self.handles_made += 1;
        let handle = FIRST_HANDLE + self.handles_made * 16;
        self.handles.insert(handle);
        handle
    }

    pub(crate) fn has_handle(&self, handle: u64) -> bool {
        self.handles.contains(&handle)
    }

    pub(crate) fn drop_handle(&mut self, handle: u64) -> bool {
        self.handles.remove(&handle)
    }

    /// `false` when it is pinned already.
    pub(crate) fn pin(&mut self, address: usize, how: Pinned) -> bool {
        let new = !self.host.contains_key(&address);
        self.host.entry(address).or_insert(how);
        new
    }

    /// Whether it was pinned in this way.
    pub(crate) fn unpin(&mut self, address: usize, how: Pinned) -> bool {
        let right = self.host.get(&address) == Some(&how);
        if right {
            self.host.remove(&address);
        }
        right
    }

    fn address(&mut self, bytes: u64) -> u64 {
        let address = FIRST_ADDRESS + self.addresses_used;
        self.addresses_used += bytes.max(1).next_multiple_of(ALIGNMENT);
        address
    }
}

/// The device of a context; `None` for a value that is not one.
pub(crate) fn device_of(context: u64) -> Option<usize> {
    let device = usize::try_from(context & 0xff).ok()?;
    (context & 0xffff_0000_0000 == CONTEXT_TAG).then_some(device)
}

#[cfg(test)]
mod tests {
    use super::{Allocation, Kind, Pinned, Tables};

    #[test]
    fn memory_is_freed_once_and_as_what_it_is() {
        let mut tables = Tables::default();
        let memory = tables.add(Allocation { device: 0, bytes: 7, kind: Kind::Managed });
        assert!(tables.remove(memory, &[Kind::Device, Kind::Physical]).is_none());
        assert_eq!(
            tables.remove(memory, &[Kind::Device, Kind::Managed]).map(|it| it.bytes),
            Some(7)
        );
        assert!(tables.remove(memory, &[Kind::Managed]).is_none());
        assert!(tables.pin(4_096, Pinned::Registered) && !tables.pin(4_096, Pinned::Allocated));
        assert!(!tables.unpin(4_096, Pinned::Allocated) && tables.unpin(4_096, Pinned::Registered));
    }

    #[test]
    fn physical_memory_lives_while_it_is_held_or_mapped() {
        let mut tables = Tables::default();
        let memory = tables.add(Allocation { device: 0, bytes: 99, kind: Kind::Physical });
        let start = tables.reserve(99);
        assert!(tables.map(start, 99, memory));
        assert_eq!(tables.retain_mapped(start + 98), Some(memory));
        assert_eq!(tables.retain_mapped(start + 99), None);
        assert!(tables.release_handle(memory).is_some_and(|it| it.is_none()));
        assert!(tables.release_handle(memory).is_some_and(|it| it.is_none()), "it is mapped");
        assert!(tables.release_handle(memory).is_none() && tables.has_physical(memory));
        let gone = tables.unmap(start, 99).unwrap();
        assert_eq!(gone.first().map(|it| it.bytes), Some(99));
        assert!(!tables.has_physical(memory));
    }

    #[test]
    fn memory_is_mapped_where_addresses_are_reserved_and_free() {
        let mut tables = Tables::default();
        let memory = tables.add(Allocation { device: 0, bytes: 99, kind: Kind::Physical });
        let start = tables.reserve(99);
        assert!(tables.map(start, 40, memory));
        assert!(!tables.map(start + 39, 10, memory), "taken");
        assert!(!tables.map(start + 90, 10, memory), "beyond the reservation");
        assert!(!tables.map(start + 40, 10, memory + 1), "of no memory");
        assert!(tables.map(start + 40, 50, memory));
        assert!(tables.unmap(start, 50).is_none(), "half a mapping");
        assert!(!tables.free_reserved(start, 99), "in use");
        assert!(tables.unmap(start, 90).is_some_and(|it| it.is_empty()), "its handle is held");
        assert!(tables.unmap(start, 90).is_none());
        assert!(!tables.free_reserved(start, 98) && tables.free_reserved(start, 99));
    }
}
