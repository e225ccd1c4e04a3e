//! What a process does on the node: the side of libcuda.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::clock;
use crate::node::{Life, Node};
use crate::slots::Usage;

/// A kernel runs at most this long; a longer one is cut, because its busy time must fit the ring.
const KERNEL_NS_MAX: u64 = 5_000_000_000;

/// A launch waits when the device has more than this queued, as a full hardware queue makes it wait.
const QUEUE_NS_MAX: u64 = 200_000_000;

const MIB: u64 = 1 << 20;

/// This process's place on the node. It ends with the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat(usize);

/// The device has not that much memory left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

impl Node {
    /// Gives the calling process a seat; `None` when the node has no slot left or its file cannot be
    /// locked.
    pub fn join(&self) -> Option<Seat> {
        let usable = |slot| match self.life(slot) {
            Life::Unused => true,
            Life::Alive(_) => false,
            Life::Dead { since_ns, .. } => !self.keeps(since_ns),
        };
        self.region().claim(usable).ok().flatten().map(Seat)
    }

    /// A context costs memory before anything is allocated in it.
    pub fn open_context(&self, seat: Seat, device: usize) -> Result<(), OutOfMemory> {
        let cost = self.scenario().map_or(0, |it| it.context_mib * MIB);
        self.allocate(seat, device, cost)?;
        self.usage(seat, device).contexts.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Ends one context. With the last one goes all memory that this process has on the device.
    pub fn close_context(&self, seat: Seat, device: usize) {
        let usage = self.usage(seat, device);
        let before = usage
            .contexts
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |it| Some(it.saturating_sub(1)));
        match before {
            Ok(2..) => {
                let cost = self.scenario().map_or(0, |it| it.context_mib * MIB);
                self.free(seat, device, cost);
            }
            Ok(_) | Err(_) => usage.memory_bytes.store(0, Ordering::Release),
        }
    }

    pub fn allocate(&self, seat: Seat, device: usize, bytes: u64) -> Result<(), OutOfMemory> {
        let usage = self.usage(seat, device);
        let capacity = self.memory(device).ok_or(OutOfMemory)?;
        if bytes > capacity.free_bytes {
            return Err(OutOfMemory);
        }
        usage.memory_bytes.fetch_add(bytes, Ordering::AcqRel);
        Ok(())
    }

    pub fn free(&self, seat: Seat, device: usize, bytes: u64) {
        let less = |held: u64| Some(held.saturating_sub(bytes));
        self.usage(seat, device)
            .memory_bytes
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, less)
            .expect("the closure always gives a value");
    }

    /// Queues one kernel. Returns at once unless the queue is full.
    pub fn launch(&self, seat: Seat, device: usize, duration: Duration) {
        let length =
            u64::try_from(duration.as_nanos()).map_or(KERNEL_NS_MAX, |it| it.min(KERNEL_NS_MAX));
        let state = &self.shared().devices[device];
        let start = loop {
            let now = clock::boot_ns();
            let free_at = state.free_at_ns.load(Ordering::Acquire);
            if free_at > now + QUEUE_NS_MAX {
                std::thread::sleep(Duration::from_nanos(free_at - now - QUEUE_NS_MAX));
                continue;
            }
            let start = free_at.max(now);
            let queued = state.free_at_ns.compare_exchange(
                free_at,
                start + length,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            if queued.is_ok() {
                break start;
            }
        };
        let usage = self.usage(seat, device);
        state.launched_ns.fetch_add(length, Ordering::AcqRel);
        state.busy.add(start, start + length);
        usage.launches.fetch_add(1, Ordering::Relaxed);
        self.shared().busy[device][seat.0].add(start, start + length);
        usage.queued_until_ns.fetch_max(start + length, Ordering::AcqRel);
    }

    /// Sleeps until everything that this process queued on the device is done.
    pub fn synchronize(&self, seat: Seat, device: usize) {
        loop {
            let until = self.usage(seat, device).queued_until_ns.load(Ordering::Acquire);
            match until.saturating_sub(clock::boot_ns()) {
                0 => return,
                left => std::thread::sleep(Duration::from_nanos(left)),
            }
        }
    }

    /// Whether everything that this process queued on the device is done.
    pub fn is_idle(&self, seat: Seat, device: usize) -> bool {
        self.usage(seat, device).queued_until_ns.load(Ordering::Acquire) <= clock::boot_ns()
    }

    /// Drops what a process that is gone had queued after `now`, as a driver does.
    pub(crate) fn cancel(&self, slot: usize, now: u64) {
        let shared = self.shared();
        for (index, (usage, device)) in shared.usage[slot].iter().zip(&shared.devices).enumerate() {
            if usage.queued_until_ns.load(Ordering::Acquire) <= now {
                continue;
            }
            let dropped = device.busy.take_after(now, &shared.busy[index][slot]);
            device.launched_ns.fetch_sub(dropped, Ordering::AcqRel);
            // The work of others keeps its place in the queue; only a queue without any is over.
            let others = device.busy.is_busy_after(now);
            if !others {
                device.free_at_ns.store(now, Ordering::Release);
            }
        }
    }

    fn usage(&self, seat: Seat, device: usize) -> &Usage {
        &self.shared().usage[seat.0][device]
    }
}
