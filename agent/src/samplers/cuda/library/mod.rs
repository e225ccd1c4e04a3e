//! The libcuda files of this node: which exist, which are hooked, where, and why not.
//!
//! A file is one device and inode: all containers that bind-mount it are covered by one hook. Two
//! paths to one file are one library.

pub(crate) mod driver;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::driver::{Kernel, KernelError, Links};
use super::hooks::Group;
use super::probe::{Plan, Why};
use super::reason;
use crate::model::units::BootNs;
use crate::samplers::process::decode::FileId;
use driver::{LibraryError, LibraryFile, Version};

/// Files that stay hooked at one time, replaced ones included: their processes may run for weeks.
/// Beyond it the file that was hooked first is let go; its processes count as not fully hooked.
const MOST_FILES: usize = 16;
/// How long a file that could not be hooked is left alone while it does not change.
const RETRY_NS: u64 = 60_000_000_000;

/// One library file, for people.
#[derive(Clone, Debug)]
pub struct LibraryCoverage {
    pub path: PathBuf,
    /// `None` when it could not be hooked at all; `error` says why.
    pub file: Option<FileId>,
    pub hooks: Vec<HookCoverage>,
    pub error: Option<String>,
}

/// One wanted function of one library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookCoverage {
    pub symbol: &'static str,
    pub state: HookState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookState {
    Attached {
        /// Offset in the file.
        offset: u64,
        /// Bytes from the entry of the function.
        skip: u8,
        /// The kernel must single-step the instruction there.
        slow: bool,
    },
    /// This driver has no such function: no program can call it.
    Missing,
    /// Another name of a function that is attached.
    SameAs(&'static str),
    /// The symbol points outside the file.
    Unreadable,
}

/// Sums over all files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) attached: u32,
    pub(crate) wanted: u32,
    pub(crate) slow: u32,
}

/// Every file that was hooked, and every path that could not be.
#[derive(Debug)]
pub(crate) struct Libraries {
    paths: Vec<PathBuf>,
    hooked: Vec<Hooked>,
    failed: BTreeMap<PathBuf, Failure>,
    /// What each path led to when it was last looked at.
    seen: BTreeMap<PathBuf, Version>,
}

#[derive(Debug)]
struct Hooked {
    file: FileId,
    coverage: LibraryCoverage,
    /// Detaches when it goes.
    _links: BTreeMap<Group, Links>,
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
    pub(crate) fn new(paths: &[PathBuf]) -> Self {
        Self {
            paths: paths.to_vec(),
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
        let library = LibraryFile::open(path)?;
        if self.hooked.iter().any(|it| it.file == library.id && it.coverage.path != path) {
            return Ok(()); // another path to the same file
        }
        // The same file with new contents: two links would count each call twice.
        self.hooked.retain(|it| it.file != library.id);
        let mut links = BTreeMap::new();
        for group in Group::ALL {
            links.insert(group, kernel.attach(&library, group)?);
        }
        if self.hooked.len() == MOST_FILES {
            self.hooked.remove(0);
        }
        let coverage = coverage(path, library.id, &library.plan);
        tracing::info!(
            library = %path.display(),
            hooks = coverage.attached(),
            slow = coverage.slow(),
            "tracing CUDA calls"
        );
        self.hooked.push(Hooked { file: library.id, coverage, _links: links });
        Ok(())
    }

    /// Files whose every call is counted.
    pub(crate) fn hooked_files(&self) -> BTreeSet<FileId> {
        let whole = |it: &&Hooked| it.coverage.attached() == it.coverage.wanted();
        self.hooked.iter().filter(whole).map(|it| it.file).collect()
    }

    pub(crate) fn totals(&self) -> Totals {
        self.hooked.iter().fold(Totals::default(), |sum, it| Totals {
            attached: sum.attached + it.coverage.attached(),
            wanted: sum.wanted + it.coverage.wanted(),
            slow: sum.slow + it.coverage.slow(),
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
        let failed = self.failed.iter().map(|(path, failure)| LibraryCoverage {
            path: path.clone(),
            file: None,
            hooks: Vec::new(),
            error: Some(failure.why.clone()),
        });
        self.hooked.iter().map(|it| it.coverage.clone()).chain(failed).collect()
    }
}

impl LibraryCoverage {
    #[must_use]
    pub fn attached(&self) -> u32 {
        self.count(|it| matches!(it, HookState::Attached { .. }))
    }

    /// Functions that this driver has; one that it lacks cannot be called.
    #[must_use]
    pub fn wanted(&self) -> u32 {
        self.count(|it| !matches!(it, HookState::Missing | HookState::SameAs(_)))
    }

    #[must_use]
    pub fn slow(&self) -> u32 {
        self.count(|it| matches!(it, HookState::Attached { slow: true, .. }))
    }

    fn count(&self, holds: impl Fn(&HookState) -> bool) -> u32 {
        let count = self.hooks.iter().filter(|it| holds(&it.state)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

fn coverage(path: &Path, file: FileId, plan: &Plan) -> LibraryCoverage {
    let attached = plan.points.iter().map(|it| HookCoverage {
        symbol: it.hook.symbol,
        state: HookState::Attached { offset: it.offset, skip: it.place.skip, slow: it.place.slow },
    });
    let skipped = plan.skipped.iter().map(|it| HookCoverage {
        symbol: it.symbol,
        state: match it.why {
            Why::Missing => HookState::Missing,
            Why::SameAs(other) => HookState::SameAs(other),
            Why::Unreadable => HookState::Unreadable,
        },
    });
    LibraryCoverage {
        path: path.to_owned(),
        file: Some(file),
        hooks: attached.chain(skipped).collect(),
        error: None,
    }
}
