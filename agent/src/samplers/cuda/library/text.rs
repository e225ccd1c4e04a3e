//! Whether processes have changed the text that memory hooks would go to.
//!
//! UCX writes a jump over the first bytes of the driver's memory functions in its own process. A
//! breakpoint that is set on top of that breaks the process, and a breakpoint that is there before
//! makes UCX give up its memory hooks, and with them its registration cache. The kernel says of each
//! page whether it is still the file's; what is in the page is not read. Breakpoints make a page the
//! process's own, too, and the kernel gives the file's back when the last one goes (since Linux 5.4,
//! "uprobe: use original page when all uprobes are removed"; not always at once). So this is asked
//! before the first hook of a file is set.

use std::collections::BTreeSet;
use std::io;

use crate::model::ids::ProcessId;
use crate::samplers::cuda::hooks::Group;
use crate::samplers::cuda::probe::Plan;
use crate::samplers::process::decode::{self, FileId, Mapping};
use crate::samplers::process::driver::{Pages, Proc};

/// The longest jump that UCX writes.
const PATCH_BYTES: u64 = 13;
/// The shortest. What UCX moves out of the way ends with the instruction that this reaches into, so
/// that a hook behind it is left alone.
const SHORT_PATCH_BYTES: u8 = 5;
/// Processes that are named; one is reason enough.
const MOST_NAMED: usize = 8;

/// What stands against hooks on the memory functions of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TextCheck {
    /// Processes in which a page of these functions is not the file's.
    pub(super) changed: Vec<ProcessId>,
    /// Processes that use UCX with this file, where the hooks would be in its way.
    pub(super) ucx: Vec<ProcessId>,
    /// Processes that could not be looked at.
    pub(super) unseen: usize,
    /// Some of them.
    pub(super) hidden: Vec<ProcessId>,
    /// The configuration wants none.
    pub(super) unwanted: bool,
}

impl TextCheck {
    pub(super) fn is_clean(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether UCX, where it starts after the hooks were set, finds one among the instructions that it
/// must move.
pub(super) fn is_in_the_way(plan: &Plan) -> bool {
    memory_entries(plan).any(|(_, skip)| skip < SHORT_PATCH_BYTES)
}

/// Looks at those of these processes that map the file.
pub(super) fn check(
    proc: &Proc,
    processes: impl Iterator<Item = u32>,
    file: FileId,
    plan: &Plan,
) -> TextCheck {
    let mut found = TextCheck::default();
    for tgid in processes {
        match check_process(proc, tgid, file, plan) {
            Ok(Some(process)) => found.add(proc, tgid, process),
            Ok(None) => {}
            Err(error) if is_hidden(&error) => found.hide(proc.process_id(tgid)),
            // It has ended.
            Err(_) => {}
        }
    }
    found
}

/// Whether the process is there and may not be looked at.
pub(super) fn is_hidden(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::FileTooLarge)
}

/// One process that maps the file.
#[derive(Clone, Copy, Debug)]
struct Mapper {
    changed: bool,
    in_the_way: bool,
}

impl TextCheck {
    pub(super) fn hide(&mut self, process: Option<ProcessId>) {
        self.unseen += 1;
        if self.hidden.len() < MOST_NAMED {
            self.hidden.extend(process);
        }
    }

    fn add(&mut self, proc: &Proc, tgid: u32, mapper: Mapper) {
        let Some(process) = proc.process_id(tgid) else { return };
        if mapper.changed && self.changed.len() < MOST_NAMED {
            self.changed.push(process);
        }
        if mapper.in_the_way && self.ucx.len() < MOST_NAMED {
            self.ucx.push(process);
        }
    }
}

/// `None` when it does not run code of the file.
fn check_process(proc: &Proc, tgid: u32, file: FileId, plan: &Plan) -> io::Result<Option<Mapper>> {
    let maps = proc.maps(tgid)?;
    let text: Vec<Mapping<'_>> =
        decode::mappings(&maps).filter(|it| it.file == file && it.executable).collect();
    if text.is_empty() {
        return Ok(None);
    }
    let uses_ucx = || decode::mappings(&maps).any(|it| decode::looks_like_ucx(it.path));
    let in_the_way = is_in_the_way(plan) && uses_ucx();
    let changed = match proc.pages(tgid) {
        Ok(pages) => is_changed(&pages, &text, plan)?,
        // Its owner may open that, and who may read the files of others.
        Err(error) if is_hidden(&error) => decode::has_own_copies(&proc.smaps(tgid)?, file),
        Err(error) => return Err(error),
    };
    Ok(Some(Mapper { changed, in_the_way }))
}

/// Whether a page of a memory function is not the file's.
fn is_changed(pages: &Pages, text: &[Mapping<'_>], plan: &Plan) -> io::Result<bool> {
    let first_and_last = |(entry, _)| [entry, entry + PATCH_BYTES - 1];
    let addresses = memory_entries(plan)
        .flat_map(first_and_last)
        .flat_map(|offset| text.iter().filter_map(move |it| it.address_of(offset)));
    // Many functions share a page.
    let addresses: BTreeSet<u64> = addresses.map(|it| it / pages.page_bytes).collect();
    let mut changed = false;
    for page in addresses {
        changed |= decode::is_own_copy(pages.entry(page * pages.page_bytes)?);
    }
    Ok(changed)
}

/// Where each memory function begins in the file, and how far behind that its hook is.
fn memory_entries(plan: &Plan) -> impl Iterator<Item = (u64, u8)> {
    let memory = plan.points.iter().filter(|it| it.hook.group == Group::Memory);
    memory.map(|it| (it.offset - u64::from(it.place.skip), it.place.skip))
}
