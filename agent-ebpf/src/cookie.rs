//! What a hook is told about its symbol, through the attach cookie.

use crate::Counter;

/// Counter in bits 0 to 7, position of an argument in 8 to 11, [`Cookie::narrow`] and
/// [`Cookie::in_thread_stream`] in 12 and 13, a shift in 14 and 15, an [`Op`] in 16 to 23, the
/// number of the library file in 24 to 39. The upper bits, from 48 on, hold the gate, plus 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie(pub u64);

/// What a call does, where one program serves several kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// Nothing that needs to be told.
    None,
    /// The first call of a process.
    Begin,
    /// `(pointer to the address, bytes, ..)`.
    Allocate,
    /// `(pointer to the address, pointer to the pitch, width, rows, ..)`.
    AllocatePitched,
    /// `(address, bytes, ..)`.
    Register,
    /// `(address or handle, ..)`.
    Free,
    /// Counts where it succeeds.
    Plain,
    /// Counts where it succeeds, and the time that it took.
    Timed,

    /// `(pointer to the handle, bytes, properties, ..)`.
    CreateHandle,
    /// `(pointer to the handle, address)`.
    RetainHandle,
    /// `(handle)`.
    ReleaseHandle,
    /// `(pointer, handle, ..)`.
    ExportHandle,
    /// `(address, bytes, offset, handle, ..)`.
    Map,
    /// `(address, bytes)`.
    Unmap,
    /// Maps, or unmaps, what a list says.
    MapArrays,

    /// All work of the context ends.
    WaitForContext,
    /// All work of a stream ends.
    WaitForStream,
    /// Some work ends.
    WaitForSome,

    /// `(pointer to the context, ..)`, and makes it current.
    CreateContext,
    /// `(pointer to the context, device)`.
    RetainContext,
    /// `(context)`.
    DestroyContext,
    /// `(device)`.
    ReleaseContext,
    /// `(device)`.
    ResetContext,
    /// `(context)`.
    SetContext,
    /// `(context)`.
    PushContext,
    PopContext,
    CreateStream,
    /// `(pointer to 16 bytes, device)`.
    Identify,

    /// Copies described by a structure.
    Plane,
    Volume,
    /// From a context to another one.
    PeerVolume,
}

const POSITION: u32 = 8;
const NARROW: u32 = 12;
const THREAD_STREAM: u32 = 13;
const SHIFT: u32 = 14;
const OP: u32 = 16;
const FILE: u32 = 24;
const GATE: u32 = 48;

/// Gates that there are: one for each governed group of each library file.
pub const GATES: u32 = 1_024;
/// Of each library file.
pub const GATES_OF_FILE: u32 = 8;
/// Which of them is that of context switches.
pub const SWITCHES: u32 = 3;
/// Library files that are told apart.
pub const FILES: u32 = GATES / GATES_OF_FILE;

impl Cookie {
    /// Adds 1 to `calls`.
    #[must_use]
    pub const fn count(calls: Counter) -> Self {
        Self(calls as u64)
    }

    /// Adds 1 to `calls` and the argument at `position` (from 0) to the counter after it.
    #[must_use]
    pub const fn sum(calls: Counter, position: u8) -> Self {
        assert!(position < 16, "there are four bits for it");
        Self(calls as u64 | (position as u64) << POSITION)
    }

    #[must_use]
    pub const fn op(calls: Counter, op: Op) -> Self {
        Self(calls as u64 | (op as u64) << OP)
    }

    /// The device is the argument at `position` (from 0).
    #[must_use]
    pub const fn at(self, position: u8) -> Self {
        assert!(position < 16, "there are four bits for it");
        Self(self.0 | (position as u64) << POSITION)
    }

    /// Sizes and device addresses have 32 bits, as in the first version of the interface.
    #[must_use]
    pub const fn narrow(self) -> Self {
        Self(self.0 | 1 << NARROW)
    }

    /// The default stream of this function is one for each thread.
    #[must_use]
    pub const fn in_thread_stream(self) -> Self {
        Self(self.0 | 1 << THREAD_STREAM)
    }

    /// What is summed counts elements of `1 << shift` bytes.
    #[must_use]
    pub const fn shifted(self, shift: u8) -> Self {
        assert!(shift < 4, "there are two bits for it");
        Self(self.0 | (shift as u64) << SHIFT)
    }

    /// The same hook in a library file, whose number is less than [`FILES`].
    #[must_use]
    pub const fn in_file(self, file: u32) -> Self {
        debug_assert!(file < FILES, "there are no more files");
        Self(self.0 | (file as u64) << FILE)
    }

    /// The same hook behind a gate, which is less than [`GATES`].
    #[must_use]
    pub const fn behind(self, gate: u32) -> Self {
        debug_assert!(gate < GATES, "there are no more gates");
        Self(self.0 | (gate as u64 + 1) << GATE)
    }

    /// `None` = the hook always counts.
    #[inline(always)]
    #[must_use]
    pub const fn gate(self) -> Option<u32> {
        let field = (self.0 >> GATE) as u32;
        if field == 0 { None } else { Some(field - 1) }
    }

    #[inline(always)]
    #[must_use]
    pub const fn file(self) -> u32 {
        (self.0 >> FILE & 0xffff) as u32
    }

    #[inline(always)]
    #[must_use]
    pub const fn counter(self) -> usize {
        (self.0 & 0xff) as usize
    }

    #[inline(always)]
    #[must_use]
    pub const fn position(self) -> u64 {
        self.0 >> POSITION & 0xf
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_narrow(self) -> bool {
        self.0 >> NARROW & 1 == 1
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_in_thread_stream(self) -> bool {
        self.0 >> THREAD_STREAM & 1 == 1
    }

    #[inline(always)]
    #[must_use]
    pub const fn shift(self) -> u64 {
        self.0 >> SHIFT & 3
    }

    #[inline(always)]
    #[must_use]
    pub const fn is(self, op: Op) -> bool {
        self.0 >> OP & 0xff == op as u64
    }
}

#[cfg(test)]
mod tests {
    use super::{Cookie, FILES, GATES, Op};
    use crate::Counter;

    #[test]
    fn a_cookie_carries_all_that_a_program_is_told() {
        let sum = Cookie::sum(Counter::PeerCalls, 4).shifted(2);
        assert_eq!(
            (sum.counter(), sum.position(), sum.shift()),
            (Counter::PeerCalls as usize, 4, 2)
        );
        assert!(!sum.is_narrow() && !sum.is_in_thread_stream() && sum.is(Op::None));
        let op = Cookie::op(Counter::Streams, Op::PeerVolume).at(3).narrow().in_thread_stream();
        assert_eq!((op.counter(), op.position(), op.shift()), (Counter::Streams as usize, 3, 0));
        assert!(op.is_narrow() && op.is_in_thread_stream() && op.is(Op::PeerVolume));
        let behind = op.behind(GATES - 1).in_file(FILES - 1);
        assert_eq!((op.file(), behind.file()), (0, FILES - 1));
        assert!(behind.is(Op::PeerVolume));
        assert_eq!((op.gate(), behind.gate()), (None, Some(GATES - 1)));
        assert_eq!((behind.counter(), behind.position()), (op.counter(), op.position()));
    }
}
