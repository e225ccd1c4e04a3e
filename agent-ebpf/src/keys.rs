//! Keys and values of the maps beside the rows. What belongs to one program begins with that
//! program's identity, so that user space can remove it when the program has ended.

use core::mem::size_of;

use crate::COUNTERS;

/// A program of a process: `Row::program` and the tgid. Begins every key of `LIVE`, `CONTEXTS`,
/// `DEVICES` and `UUIDS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Program {
    pub program: u64,
    pub tgid: u32,
}

/// Key of `LIVE`: an allocation that was not freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LiveKey {
    pub program: u64,
    pub tgid: u32,
    /// `Row::resets`, cut: what was allocated before is gone.
    pub resets: u16,
    /// A [`space`].
    pub space: u16,
    /// A pointer or a handle.
    pub address: u64,
}

impl LiveKey {
    /// Names the allocation in `NAMES`. Two of one program never have the same name; two of different
    /// programs may, by chance.
    #[inline(always)]
    #[must_use]
    pub const fn name(&self) -> u64 {
        // Odd, and with its bits set as if by chance.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        let owner = (self.tgid as u64) << 32 | (self.resets as u64) << 16 | self.space as u64;
        (owner ^ self.program.wrapping_mul(SPREAD)).wrapping_mul(SPREAD) ^ self.address
    }
}

/// What the address of a [`LiveKey`] is: handles are no pointers.
pub mod space {
    pub const DEVICE: u16 = 0;
    pub const HANDLE: u16 = 1;
    pub const HOST: u16 = 2;
    /// Where physical memory is mapped: no allocation, but it keeps one.
    pub const MAPPING: u16 = 3;
}

/// Value of `LIVE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Live {
    pub bytes: u64,
    /// First counter of the kind of memory; of a mapping, the handle of what is mapped.
    pub kind: u64,
    /// References to a handle and mappings of its memory, which lives as long as there is one.
    pub holds: u64,
}

/// How many allocations have room in `SLOTS`. A power of 2.
pub const SLOTS: u32 = 4_096;

/// In how many slots, one after the other, an allocation may be. A power of 2.
pub const WAYS: u32 = 4;

/// The first slot in which an allocation of this name may be. Neighbours in the device's memory, which
/// begin at multiples of 512 bytes or of 2 MiB, are neighbours here: the processor has them at hand.
#[inline(always)]
#[must_use]
pub const fn first_slot(name: u64) -> u32 {
    name.wrapping_add(name >> 9).wrapping_add(name >> 21) as u32 & (SLOTS - WAYS)
}

/// Value of `SLOTS`. Means something where `NAMES` has the name of its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Slot {
    pub key: LiveKey,
    pub live: Live,
}

/// Key of `CONTEXTS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ContextKey {
    pub program: u64,
    pub tgid: u32,
    /// A [`by`].
    pub by: u32,
    pub name: u64,
}

/// What names a context in a [`ContextKey`].
pub mod by {
    /// Its handle.
    pub const HANDLE: u32 = 0;
    /// The device whose primary context it is: its ordinal plus 1.
    pub const DEVICE: u32 = 1;
}

/// Value of `CONTEXTS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Context {
    /// Its handle, where the key has the device.
    pub handle: u64,
    /// How often it is retained, where the key has the device.
    pub retained: u64,
    /// The ordinal of its device, plus 1, or [`crate::UNKNOWN_DEVICE`].
    pub device: u32,
    /// Not 0: memory may have been allocated in it.
    pub memory: u32,
}

/// Value of `SIGHTS`: from when on the work of a library file's processes is seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Sight {
    /// CLOCK_BOOTTIME ns. Of processes that are older not all work was seen; 0 = of none.
    pub since_ns: u64,
    /// From when on those may have work of which nothing is known.
    pub blind_ns: u64,
}

/// Key of `DEVICES` and `UUIDS`: a device as a program numbers it, plus 1, or
/// [`crate::UNKNOWN_DEVICE`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DeviceKey {
    pub program: u64,
    pub tgid: u32,
    pub device: u32,
}

/// Value of `DEVICES`: the part of a row's counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Part {
    pub counts: [u64; COUNTERS],
}

/// A call that has begun and not returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Call {
    /// Where the stack pointer will be when it has returned: tells it from the calls around it.
    pub stack: u64,
    /// CLOCK_BOOTTIME ns.
    pub start_ns: u64,
    /// What its program keeps until it returns.
    pub kept: [u64; 3],
}

/// Calls of one thread that may be under way, one inside the other. A power of 2.
pub const CALLS: usize = 4;
/// Contexts on one thread's stack. A power of 2.
pub const CONTEXTS: usize = 8;

/// Value of `THREADS`, by thread id with the tgid in the upper half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Thread {
    pub calls: [Call; CALLS],
    /// The one at `depth - 1` is current.
    pub contexts: [u64; CONTEXTS],
    pub under_way: u32,
    /// May be more than there is room for: then the current one is not known.
    pub depth: u32,
    /// What the gate of context switches held when `contexts` began: another value, and some may have
    /// been missed.
    pub sight: u64,
}

/// How many threads have room in `SEATS`. A power of 2.
pub const SEATS: u32 = 4_096;

/// Value of `SEATS`: room for one thread at a time, for as long as it lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Seat {
    /// Whose it is, as in the keys of `THREADS`; 0 = nobody's.
    pub holder: u64,
    pub thread: Thread,
}

const _: () = assert!(SEATS.is_power_of_two() && SLOTS.is_power_of_two() && WAYS.is_power_of_two());
const _: () = assert!(size_of::<LiveKey>() == 24);
const _: () = assert!(size_of::<Live>() == 24);
const _: () = assert!(size_of::<ContextKey>() == 24);
const _: () = assert!(size_of::<Context>() == 24);
const _: () = assert!(size_of::<Sight>() == 16);
const _: () = assert!(size_of::<DeviceKey>() == 16);
const _: () = assert!(size_of::<Part>() == 8 * COUNTERS);
const _: () = assert!(size_of::<Call>() == 40);
const _: () = assert!(size_of::<Thread>() == 40 * CALLS + 8 * CONTEXTS + 16);
const _: () = assert!(CALLS.is_power_of_two() && CONTEXTS.is_power_of_two());

// SAFETY: `repr(C)`, only integers, no padding: every bit pattern is a valid value.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for LiveKey {}
// SAFETY: as for `LiveKey`.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for Live {}
// SAFETY: as for `LiveKey`.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for ContextKey {}
// SAFETY: as for `LiveKey`.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for Context {}
// SAFETY: as for `LiveKey`.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for Sight {}
// SAFETY: as for `LiveKey`.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for DeviceKey {}
// SAFETY: as for `LiveKey`.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for Part {}
