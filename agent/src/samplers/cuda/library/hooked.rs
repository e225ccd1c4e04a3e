//! One library file and the groups of hooks that are on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::coverage::LibraryCoverage;
use super::driver::LibraryFile;
use crate::samplers::cuda::driver::{Kernel, KernelError, Links};
use crate::samplers::cuda::hooks::Group;
use crate::samplers::cuda::probe::{Skipped, Why};
use crate::samplers::process::decode::FileId;

/// The file stays open: a group that was taken off is put back on the very bytes that were decoded,
/// whatever the path leads to by then.
#[derive(Debug)]
pub(super) struct Hooked {
    pub(super) path: PathBuf,
    library: LibraryFile,
    /// Groups that are on. A link detaches when it goes.
    links: BTreeMap<Group, Links>,
}

impl Hooked {
    /// All groups, or an error and none.
    pub(super) fn attach(
        kernel: &mut Kernel,
        path: &Path,
        library: LibraryFile,
    ) -> Result<Self, KernelError> {
        let mut hooked = Self { path: path.to_owned(), library, links: BTreeMap::new() };
        for group in Group::ALL {
            hooked.put_on(kernel, group)?;
        }
        Ok(hooked)
    }

    pub(super) fn put_on(&mut self, kernel: &mut Kernel, group: Group) -> Result<(), KernelError> {
        // A second link would count each call twice.
        if !self.links.contains_key(&group) {
            self.links.insert(group, kernel.attach(&self.library, group)?);
        }
        Ok(())
    }

    /// The hooks are gone when what is returned is dropped.
    pub(super) fn take_off(&mut self, group: Group) -> Option<Links> {
        self.links.remove(&group)
    }

    pub(super) fn library(&self) -> &LibraryFile {
        &self.library
    }

    /// Links to the kernel that hold the hooks.
    pub(super) fn links(&self) -> usize {
        self.links.values().map(Links::len).sum()
    }

    /// Those of them that a predecessor made: nothing was attached for them.
    pub(super) fn adopted(&self) -> usize {
        self.links.values().map(Links::adopted).sum()
    }

    pub(super) fn file(&self) -> FileId {
        self.library.id
    }

    pub(super) fn is_on(&self, group: Group) -> bool {
        self.links.contains_key(&group)
    }

    /// Whether no launch, copy or wait in this file goes unseen. Memory calls are another question:
    /// they say nothing about idleness.
    pub(super) fn sees_all_work(&self) -> bool {
        let unseen = |it: &Skipped| matches!(it.why, Why::Unreadable | Why::Refused(_));
        !self.library.plan.skipped.iter().any(unseen)
            && Group::ALL.iter().all(|it| *it == Group::Memory || self.is_on(*it))
    }

    pub(super) fn coverage(&self) -> LibraryCoverage {
        LibraryCoverage::new(&self.path, self.file(), &self.library.plan, |it| self.is_on(it))
    }
}
