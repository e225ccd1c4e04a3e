//! `libcuda.so.1` whose entries begin as the real driver's do: a comparison that the kernel must
//! single-step under a uprobe, and a jump that it can emulate.
#![expect(unsafe_code, reason = "exports a C ABI")]

/// What the entries compare: a driver puts a marker here when it is torn down. This one never is.
#[cfg(target_arch = "x86_64")]
static TORN_DOWN: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

include!(concat!(env!("OUT_DIR"), "/entries.rs"));
