//! The cheapest program that a probe can run: it returns. Attached as the agent attaches its own,
//! by one link for all processes that map the file.

#![expect(unsafe_code, reason = "speaks to the kernel through bpf(2)")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::path::Path;

use anyhow::Context;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
const BPF_TRACE_UPROBE_MULTI: u32 = 48;
/// `r0 = 0; exit`.
const PROGRAM: [u64; 2] = [0xb7, 0x95];

/// Attached until it is dropped.
#[derive(Debug)]
pub(crate) struct Empty {
    _program: OwnedFd,
    _link: OwnedFd,
}

/// The beginnings of `union bpf_attr` for the two commands; the kernel takes the rest for zero.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log: [u64; 2],
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: RawFd,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    ref_ctr_offsets: u64,
    cookies: u64,
    count: u32,
    multi_flags: u32,
    pid: u32,
    padding: u32,
}

impl Empty {
    /// `offset` is a place in the file.
    pub(crate) fn attach(library: &Path, offset: u64) -> anyhow::Result<Self> {
        use std::os::unix::ffi::OsStrExt as _;
        let program = load().context("the kernel refuses an empty probe program")?;
        let path = CString::new(library.as_os_str().as_bytes()).context("a path with a NUL")?;
        let attribute = LinkCreate {
            prog_fd: program.as_raw_fd(),
            attach_type: BPF_TRACE_UPROBE_MULTI,
            path: path.as_ptr() as u64,
            offsets: &raw const offset as u64,
            count: 1,
            ..LinkCreate::default()
        };
        let link = create(BPF_LINK_CREATE, &attribute)
            .with_context(|| format!("cannot attach to {}+{offset:#x}", library.display()))?;
        Ok(Self { _program: program, _link: link })
    }
}

fn load() -> io::Result<OwnedFd> {
    let attribute = ProgLoad {
        prog_type: BPF_PROG_TYPE_KPROBE,
        insn_cnt: 2,
        insns: PROGRAM.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        expected_attach_type: BPF_TRACE_UPROBE_MULTI,
        ..ProgLoad::default()
    };
    create(BPF_PROG_LOAD, &attribute)
}

/// `attribute` is the beginning of the command's attribute; what it points to outlives the call.
fn create<T>(command: libc::c_int, attribute: &T) -> io::Result<OwnedFd> {
    let size = size_of::<T>();
    // SAFETY: the kernel reads `size` bytes, and pointers in them to values that outlive the call.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attribute, size) };
    let descriptor =
        RawFd::try_from(answer).ok().filter(|it| *it >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel made this descriptor for this call, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
