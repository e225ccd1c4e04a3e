//! One thread as it calls the driver: what it was given, and the words that its calls pass.
#![expect(unsafe_code, reason = "is called back from C")]

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};

use crate::calls::{Argument, BATCH, Call, NESTED, RECURSIVE, SLOTS, Slot};
use crate::cuda::Cuda;
use crate::library::Words;

/// Larger than every copy, and than all that a thread pins.
pub(crate) const BUFFER_BYTES: usize = 64 << 10;

/// What the driver never gave out.
const UNKNOWN: u64 = 0x7abc_def0_0000;

/// Where structures are put together that are passed by pointer: the largest is `CUDA_MEMCPY3D`.
type Scratch = [u64; 28];

#[derive(Debug)]
pub(crate) struct Caller<'a> {
    cuda: &'a Cuda,
    known: Cell<Known>,
    /// Written by the driver.
    slots: [AtomicU64; SLOTS],
    /// For the thread to pin.
    own: Vec<u8>,
    told: Cell<u64>,
    /// Whether the driver has called back.
    nested: Cell<bool>,
    recursive: bool,
}

/// What a thread works with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    pub(crate) ordinal: i32,
    pub(crate) context: u64,
    /// Whether it is current.
    pub(crate) is_current: bool,
    pub(crate) function: u64,
    pub(crate) event: u64,
    pub(crate) pool: u64,
    /// Two buffers in a row.
    pub(crate) device_buffer: u64,
    pub(crate) host_buffer: u64,
    /// Addresses of strings.
    pub(crate) image: u64,
    pub(crate) kernel_name: u64,
}

impl<'a> Caller<'a> {
    pub(crate) fn new(cuda: &'a Cuda, known: Known, recursive: bool) -> Self {
        Self {
            cuda,
            known: Cell::new(known),
            slots: Default::default(),
            own: vec![0; BUFFER_BYTES],
            told: Cell::new(0),
            nested: Cell::new(false),
            recursive,
        }
    }

    pub(crate) fn known(&self) -> Known {
        self.known.get()
    }

    pub(crate) fn learn(&self, change: impl FnOnce(&mut Known)) {
        let mut known = self.known.get();
        change(&mut known);
        self.known.set(known);
    }

    /// Where its calls count apart.
    pub(crate) fn place(&self) -> Option<usize> {
        let known = self.known();
        if known.is_current { self.cuda.place_of(known.ordinal) } else { None }
    }

    pub(crate) fn held(&self, slot: Slot) -> u64 {
        self.slots[slot].load(Ordering::Relaxed)
    }

    pub(crate) fn told(&self) -> u64 {
        self.told.get()
    }

    pub(crate) fn is_nested(&self) -> bool {
        self.nested.get()
    }

    /// Makes a call whatever comes of it. A function that the driver lacks is left out.
    pub(crate) fn make(&self, call: &Call) -> Option<i32> {
        self.cuda.make(self, call)
    }

    /// Makes a call that must succeed.
    pub(crate) fn must(&self, call: &Call) -> anyhow::Result<()> {
        let symbol = call.symbol;
        let result = self.make(call).with_context(|| format!("the driver has no {symbol}"))?;
        match (result, self.told.get()) {
            (0, _) => Ok(()),
            (result, 0) => bail!("{symbol} returned {result}"),
            (result, bytes) => bail!("{symbol} of {bytes} bytes returned {result}"),
        }
    }

    /// The same with a size.
    pub(crate) fn must_with(&self, call: &Call, bytes: usize) -> anyhow::Result<()> {
        self.told.set(bytes as u64);
        let made = self.must(call);
        self.told.set(0);
        made
    }

    /// Puts the words of a call together, with what they point to, and calls it with them.
    pub(crate) fn with_words<T>(&self, call: &Call, then: impl FnOnce(&Words) -> T) -> T {
        let mut scratch: Scratch = [0; 28];
        let mut words: Words = [0; 14];
        let mut next = 0;
        for argument in call.arguments {
            // On x86-64 a structure of this size lies on the stack, where the words are 0 already.
            if *argument == Argument::IpcHandle && cfg!(target_arch = "x86_64") {
                continue;
            }
            words[next] = self.word(*argument, &mut scratch);
            next += 1;
        }
        then(&words)
    }

    fn word(&self, argument: Argument, scratch: &mut Scratch) -> u64 {
        let known = self.known();
        match argument {
            Argument::Nothing => 0,
            Argument::Number(number) => number,
            Argument::Place(slot) => {
                self.slots[slot].store(0, Ordering::Relaxed);
                address(self.slots[slot].as_ptr())
            }
            Argument::Held(slot) => self.held(slot),
            Argument::HeldPlus(slot, offset) => self.held(slot) + offset,
            Argument::DeviceMemory(buffer) => known.device_buffer + buffer * BUFFER_BYTES as u64,
            Argument::HostMemory => known.host_buffer,
            Argument::OwnMemory => address(self.own.as_ptr()),
            Argument::Kernel => known.function,
            Argument::Event => known.event,
            Argument::Pool => known.pool,
            Argument::Context => known.context,
            Argument::Ordinal => u64::try_from(known.ordinal).unwrap_or(u64::MAX),
            Argument::Image => known.image,
            Argument::KernelName => known.kernel_name,
            Argument::Told => self.told(),
            Argument::Unknown => UNKNOWN,
            Argument::Callback => address(called_back as *const c_void),
            Argument::CallbackData => address(std::ptr::from_ref(self)),
            Argument::Config
            | Argument::Properties
            | Argument::Plane(..)
            | Argument::Volume(..)
            | Argument::Sizes
            | Argument::IpcHandle => {
                fill(argument, known.ordinal, scratch);
                address(scratch.as_ptr())
            }
        }
    }

    fn nest(&self) {
        self.nested.set(true);
        for call in &NESTED {
            self.make(call);
        }
        if self.recursive {
            for call in &RECURSIVE {
                self.make(call);
            }
        }
        self.nested.set(false);
    }
}

/// Writes a structure as `cuda.h` lays it out.
fn fill(argument: Argument, ordinal: i32, scratch: &mut Scratch) {
    const ONES: u64 = 1 | 1 << 32;
    match argument {
        // Grid and block of 1 by 1 by 1.
        Argument::Config => scratch[..3].fill(ONES),
        // Pinned memory on a device.
        Argument::Properties => {
            scratch[0] = 1;
            scratch[1] = 1 | u64::try_from(ordinal).unwrap_or(0) << 32;
        }
        Argument::Plane(width, height, [from, to]) => {
            (scratch[2], scratch[9]) = (from, to);
            scratch[14..16].copy_from_slice(&[width, height]);
        }
        Argument::Volume(width, height, depth, [from, to]) => {
            (scratch[4], scratch[15]) = (from, to);
            scratch[22..25].copy_from_slice(&[width, height, depth]);
        }
        Argument::Sizes => scratch[..BATCH.len()].copy_from_slice(&BATCH),
        _ => {}
    }
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

/// What the driver calls from inside a wait: calls of the same thread, inside a call of it.
extern "C" fn called_back(data: *mut c_void) {
    // SAFETY: null, or the caller that gave its address; it waits below this call.
    if let Some(caller) = unsafe { data.cast::<Caller<'_>>().as_ref() } {
        caller.nest();
    }
}
