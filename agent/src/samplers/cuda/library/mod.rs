//! The libcuda files of this node: which exist, which are hooked, where, and why not.
//!
//! A file is one device and inode: all containers that bind-mount it are covered by one hook. Two
//! paths to one file are one library.

pub mod coverage;
pub(crate) mod driver;
mod hooked;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::driver::{Kernel, KernelError, Links};
use super::governor::cost::{self, CallCosts, GOVERNED, HitCosts};
use super::governor::driver::Target;
use super::governor::gates::Gates;
use super::hooks::Group;
use super::reason;
use crate::config::AttachAt;
use crate::model::units::BootNs;
use crate::samplers::process::decode::FileId;
use coverage::{LibraryCoverage, Totals};
use driver::{LibraryError, LibraryFile, Version};
use hooked::Hooked;

/// Files that stay hooked at one time, replaced ones included: their processes may run for weeks.
/// Beyond it the file that was hooked first is let go; its processes count as not fully hooked.
const MOST_FILES: usize = 16;
/// How long a file that could not be hooked is left alone while it does not change.
const RETRY_NS: u64 = 60_000_000_000;

/// Every file that was hooked, and every path that could not be.
#[derive(Debug)]
pub(crate) struct Libraries {
    paths: Vec<PathBuf>,
    attach_at: AttachAt,
    hooked: Vec<Hooked>,
    failed: BTreeMap<PathBuf, Failure>,
    /// What each path led to when it was last looked at.
    seen: BTreeMap<PathBuf, Version>,
}

#[derive(Debug)]
struct Failure {
    version: Version,
    at: BootNs,
    why: String,
}

/// Why an existing file is not hooked.
#[derive(Debug, thiserror::Error)]
enum HookError {
    #[error(transparent)]
    Library(#[from] LibraryError),
    #[error("{}", reason::of(.0))]
    Attach(#[from] KernelError),
}

impl Libraries {
    pub(crate) fn new(paths: &[PathBuf], attach_at: AttachAt) -> Self {
        Self {
            paths: paths.to_vec(),
            attach_at,
            hooked: Vec::new(),
            failed: BTreeMap::new(),
            seen: BTreeMap::new(),
        }
    }

    /// Hooks what has appeared or was replaced since the last call. Looks at a file only when its
    /// version is new. Returns whether any was new.
    pub(crate) fn refresh(&mut self, kernel: &mut Kernel, at: BootNs) -> bool {
        let mut changed = false;
        for path in self.paths.clone() {
            let Some(version) = driver::version(&path) else {
                self.seen.remove(&path);
                self.failed.remove(&path);
                continue;
            };
            if self.seen.get(&path) == Some(&version) && !self.is_due(&path, at) {
                continue;
            }
            changed = true;
            self.seen.insert(path.clone(), version);
            self.failed.remove(&path);
            if let Err(error) = self.hook(kernel, &path) {
                tracing::warn!(library = %path.display(), "cannot trace CUDA calls: {error}");
                self.failed.insert(path, Failure { version, at, why: error.to_string() });
            }
        }
        changed
    }

    fn is_due(&self, path: &Path, at: BootNs) -> bool {
        let failure = self.failed.get(path);
        failure.is_some_and(|it| {
            self.seen.get(path) == Some(&it.version) && at.since(it.at) > RETRY_NS
        })
    }

    fn hook(&mut self, kernel: &mut Kernel, path: &Path) -> Result<(), HookError> {
        let mut library = LibraryFile::open(path, self.attach_at)?;
        if self.hooked.iter().any(|it| it.file() == library.id && it.path != path) {
            return Ok(()); // another path to the same file
        }
        // The same file with new contents: two links would count each call twice.
        self.hooked.retain(|it| it.file() != library.id);
        library.gates = Gates::free(&self.hooked.iter().map(|it| it.library().gates).collect());
        let hooked = Hooked::attach(kernel, path, library)?;
        if self.hooked.len() == MOST_FILES {
            self.hooked.remove(0);
        }
        let coverage = hooked.coverage();
        tracing::info!(
            library = %path.display(),
            hooks = coverage.attached(),
            slow = coverage.slow(),
            links = hooked.links(),
            adopted = hooked.adopted(),
            "tracing CUDA calls"
        );
        self.hooked.push(hooked);
        Ok(())
    }

    /// Every file with a hook on it, the longest hooked first.
    pub(crate) fn files(&self) -> impl Iterator<Item = FileId> {
        self.hooked.iter().map(Hooked::file)
    }

    /// Every file with a hook on it, and what a call of each group costs its caller.
    pub(crate) fn call_costs(&self, costs: HitCosts) -> BTreeMap<FileId, CallCosts> {
        let of = |it: &Hooked| cost::call_costs(costs, it.library().plan.points.iter());
        self.hooked.iter().map(|it| (it.file(), of(it))).collect()
    }

    /// Takes groups of one file off. Their calls do not count from now on; the hooks are gone when
    /// the links are dropped, which takes tens of milliseconds. `None` = the file was let go.
    pub(crate) fn take_off(
        &mut self,
        kernel: &mut Kernel,
        file: FileId,
        groups: &BTreeSet<Group>,
    ) -> Result<Option<Vec<Links>>, KernelError> {
        let Some(hooked) = self.find(file) else { return Ok(None) };
        for group in groups {
            kernel.set_gate(hooked.library().gates, *group, true)?;
        }
        Ok(Some(groups.iter().filter_map(|it| hooked.take_off(*it)).collect()))
    }

    /// Puts groups of one file on again. Does nothing where they are on, or the file was let go.
    pub(crate) fn put_on(
        &mut self,
        kernel: &mut Kernel,
        file: FileId,
        groups: &BTreeSet<Group>,
    ) -> Result<(), KernelError> {
        let Some(hooked) = self.find(file) else { return Ok(()) };
        groups.iter().try_for_each(|it| hooked.put_on(kernel, *it))
    }

    /// What puts the groups of a file on that are off.
    pub(crate) fn target(&mut self, file: FileId) -> Option<std::io::Result<Target>> {
        let hooked = self.find(file)?;
        let off = GOVERNED.into_iter().filter(|it| !hooked.is_on(*it)).collect();
        Some(hooked.library().target(&off))
    }

    fn find(&mut self, file: FileId) -> Option<&mut Hooked> {
        self.hooked.iter_mut().find(|it| it.file() == file)
    }

    /// Files in which no launch, copy or wait goes unseen.
    pub(crate) fn hooked_files(&self) -> BTreeSet<FileId> {
        self.hooked.iter().filter(|it| it.sees_all_work()).map(Hooked::file).collect()
    }

    pub(crate) fn totals(&self) -> Totals {
        self.hooked.iter().map(Hooked::coverage).fold(Totals::default(), |sum, it| Totals {
            attached: sum.attached + it.attached(),
            wanted: sum.wanted + it.wanted(),
            slow: sum.slow + it.slow(),
        })
    }

    /// Why nothing is hooked; `None` when something is.
    pub(crate) fn complaint(&self) -> Option<String> {
        if !self.hooked.is_empty() {
            return None;
        }
        Some(match self.failed.iter().next() {
            Some((path, failure)) => format!("{}: {}", path.display(), failure.why),
            None => format!(
                "no libcuda.so.1 at any of the {} paths of cuda.libraries: CUDA calls are not \
                 counted until one appears; looking again every few seconds",
                self.paths.len()
            ),
        })
    }

    pub(crate) fn coverage(&self) -> Vec<LibraryCoverage> {
        let refused =
            |(path, failure): (&PathBuf, &Failure)| LibraryCoverage::refused(path, &failure.why);
        self.hooked.iter().map(Hooked::coverage).chain(self.failed.iter().map(refused)).collect()
    }
}
