//! What this process has from the driver: allocations and contexts, by the value it was given.

use std::collections::BTreeMap;

/// Where device addresses begin: they look like the driver's, and no host memory is there.
const FIRST_ADDRESS: u64 = 0x7f2a_0000_0000;

/// Addresses are this far apart at least, as a driver's are.
const ALIGNMENT: u64 = 2 << 20;

/// Marks a value as a context; the device is in its low byte.
const CONTEXT_TAG: u64 = 0x55c7_0000_0000;

/// Addresses, allocation handles and contexts of one process.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    /// By device pointer or allocation handle.
    allocations: BTreeMap<u64, Allocation>,
    next_address: u64,
    contexts: BTreeMap<u64, usize>,
    contexts_made: u64,
    primary: BTreeMap<usize, Primary>,
    /// Pinned host memory, by address.
    pub(crate) host: std::collections::BTreeSet<usize>,
}

/// Device memory of this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allocation {
    pub(crate) device: usize,
    pub(crate) bytes: u64,
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
        address
    }

    pub(crate) fn remove(&mut self, address: u64) -> Option<Allocation> {
        self.allocations.remove(&address)
    }

    /// An address that is nobody's: of imported memory, or of a reservation.
    pub(crate) fn address(&mut self, bytes: u64) -> u64 {
        let address = FIRST_ADDRESS + self.next_address;
        self.next_address += bytes.max(1).next_multiple_of(ALIGNMENT);
        address
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
}

/// The device of a context; `None` for a value that is not one.
pub(crate) fn device_of(context: u64) -> Option<usize> {
    let device = usize::try_from(context & 0xff).ok()?;
    (context & 0xffff_0000_0000 == CONTEXT_TAG).then_some(device)
}
