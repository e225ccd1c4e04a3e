//! `libcuda.so.1` whose entries begin as the real driver's do: a comparison that the kernel must
//! single-step under a uprobe, and a jump that it can emulate.
#![expect(unsafe_code, reason = "exports a C ABI")]

use std::arch::naked_asm;
use std::sync::atomic::AtomicU32;

/// What the entries compare: the driver puts the marker here when it is torn down. This one never is.
static TORN_DOWN: AtomicU32 = AtomicU32::new(0);

#[cfg(target_arch = "x86_64")]
macro_rules! entry {
    ($($name:ident => $module:ident::$function:ident;)*) => {$(
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        extern "C" fn $name() {
            naked_asm!(
                "cmp dword ptr [rip + {torn_down}], 0x321cba00",
                "je 2f",
                "jmp {behaviour}",
                "2:",
                "mov eax, 4", // CUDA_ERROR_DEINITIALIZED
                "ret",
                torn_down = sym TORN_DOWN,
                behaviour = sym cuda_stub::$module::$function,
            )
        }
    )*};
}

#[cfg(target_arch = "aarch64")]
macro_rules! entry {
    ($($name:ident => $module:ident::$function:ident;)*) => {$(
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        extern "C" fn $name() {
            naked_asm!("b {behaviour}", behaviour = sym cuda_stub::$module::$function)
        }
    )*};
}

cuda_stub::symbols!(entry);
