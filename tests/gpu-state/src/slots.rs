//! The layout of the mapped file: one part per device, one slot per process. Zeroed memory is a node
//! on which nothing has happened.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::ring::Ring;

/// Devices of a node; a scenario with more is refused.
pub(crate) const DEVICES: usize = 16;

/// Processes at one time, the dead ones whose memory the driver still keeps included.
pub(crate) const SLOTS: usize = 256;

#[derive(Debug)]
#[repr(C)]
pub(crate) struct Shared {
    /// `region::TAG`; another one belongs to another layout.
    pub(crate) tag: AtomicU64,
    /// When the first library opened the folder.
    pub(crate) created_ns: AtomicU64,
    /// CLOCK_REALTIME minus CLOCK_BOOTTIME at that moment. Fixed, so that one sample keeps one time.
    pub(crate) epoch_offset_ns: AtomicU64,
    pub(crate) devices: [Device; DEVICES],
    /// Apart from what they use, and that apart from when: whoever looks who is there has few of the
    /// pages in its memory.
    pub(crate) slots: [Slot; SLOTS],
    pub(crate) usage: [[Usage; DEVICES]; SLOTS],
    pub(crate) busy: [[Ring; SLOTS]; DEVICES],
}

#[derive(Debug)]
#[repr(C)]
pub(crate) struct Device {
    /// When the last queued kernel ends.
    pub(crate) free_at_ns: AtomicU64,
    /// Sum of the durations of all kernels that were ever launched.
    pub(crate) launched_ns: AtomicU64,
    /// The highest energy that was ever reported: the counter never goes back.
    pub(crate) energy_mj: AtomicU64,
    pub(crate) busy: Ring,
}

/// One process. It owns the slot as long as it holds the lock on the slot's byte of the file, which
/// the kernel takes away when the process exits or executes another program.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Slot {
    /// As the process sees itself; 0 = never used.
    pub(crate) pid: AtomicU32,
    _pad: u32,
    /// When somebody first saw that the owner is gone; 0 = not seen.
    pub(crate) dead_since_ns: AtomicU64,
}

/// What one process has on one device.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Usage {
    pub(crate) contexts: AtomicU64,
    pub(crate) memory_bytes: AtomicU64,
    pub(crate) launches: AtomicU64,
    /// When the last kernel of this process ends.
    pub(crate) queued_until_ns: AtomicU64,
}

impl Shared {
    /// Empties a slot for its next owner.
    pub(crate) fn reset(&self, slot: usize) {
        for (usage, rings) in self.usage[slot].iter().zip(&self.busy) {
            if usage.launches.load(Ordering::Relaxed) > 0 {
                rings[slot].clear();
            }
            for word in
                [&usage.contexts, &usage.memory_bytes, &usage.launches, &usage.queued_until_ns]
            {
                word.store(0, Ordering::Relaxed);
            }
        }
        self.slots[slot].dead_since_ns.store(0, Ordering::Release);
    }
}
