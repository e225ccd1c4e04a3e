//! `libcuda.so.1` whose entries begin with a `push`, which the kernel emulates under a uprobe.
#![expect(unsafe_code, reason = "exports a C ABI")]

use std::arch::naked_asm;

#[cfg(target_arch = "x86_64")]
macro_rules! entry {
    ($($name:ident => $module:ident::$function:ident;)*) => {$(
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        extern "C" fn $name() {
            naked_asm!(
                "push rbp",
                "mov rbp, rsp",
                "pop rbp",
                "jmp {behaviour}",
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
