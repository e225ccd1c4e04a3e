//! The cheapest program that a probe can run: it returns. Attached as the agent attaches its own, by
//! links for all processes that map the file.

use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use agent::samplers::cuda::bpf::driver::{self, Moment, Places};
use anyhow::Context;
use aya_obj::generated::bpf_insn;

/// Attached until it is dropped.
#[derive(Debug)]
pub(crate) struct Empty {
    _links: Vec<OwnedFd>,
}

impl Empty {
    /// `offsets` are places in the file. Returns first, as the agent does.
    pub(crate) fn attach(
        library: &Path,
        offsets: &[u64],
        moments: &[Moment],
    ) -> anyhow::Result<Self> {
        use std::os::unix::ffi::OsStrExt as _;
        let program = load().context("the kernel refuses an empty probe program")?;
        let path = CString::new(library.as_os_str().as_bytes()).context("a path with a NUL")?;
        let places = Places { offsets: offsets.to_vec(), cookies: vec![0; offsets.len()] };
        let links =
            moments.iter().map(|it| driver::link_multi(program.as_fd(), &path, &places, *it));
        let links = links.collect::<Result<_, _>>();
        Ok(Self { _links: links.with_context(|| format!("cannot attach to {path:?}"))? })
    }
}

/// `r0 = 0; exit`.
fn load() -> std::io::Result<OwnedFd> {
    let instruction = |code| bpf_insn {
        code,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(0, 0),
        off: 0,
        imm: 0,
    };
    driver::load_multi("empty", &[instruction(0xb7), instruction(0x95)], c"GPL")
}
