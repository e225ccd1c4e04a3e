//! What is hooked in each library file, for people: function by function, and why not.

use std::path::{Path, PathBuf};

use crate::samplers::cuda::hooks::Group;
use crate::samplers::cuda::probe::place::{Form, Place, Reason};
use crate::samplers::cuda::probe::{Plan, Why};
use crate::samplers::process::decode::FileId;

/// One library file.
#[derive(Clone, Debug)]
pub struct LibraryCoverage {
    pub path: PathBuf,
    /// `None` when it could not be hooked at all; `error` says why.
    pub file: Option<FileId>,
    pub hooks: Vec<HookCoverage>,
    pub error: Option<String>,
    /// The process that led to it; `None` = a configured path did.
    pub found_in: Option<String>,
    /// Why its memory functions are not hooked, where hooks could do harm.
    pub held_back: Option<String>,
}

/// One wanted function of one library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookCoverage {
    pub symbol: &'static str,
    pub group: Group,
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
        /// Why there.
        reason: Reason,
    },
    /// Its group is off at this moment.
    Off,
    /// This driver has no such function: no program can call it.
    Missing,
    /// Another name of a function that is attached.
    SameAs(&'static str),
    /// The symbol points outside the file.
    Unreadable,
    /// The kernel accepts no probe on the instruction that the function begins with.
    Refused(Form),
}

/// Sums over all files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) attached: u32,
    pub(crate) wanted: u32,
    pub(crate) slow: u32,
}

impl LibraryCoverage {
    /// `is_on` says whether the hooks of a group are attached.
    pub(super) fn new(
        path: &Path,
        file: FileId,
        plan: &Plan,
        is_on: impl Fn(Group) -> bool,
    ) -> Self {
        let points = plan.points.iter().map(|it| HookCoverage {
            symbol: it.hook.symbol,
            group: it.hook.group,
            state: if is_on(it.hook.group) {
                let Place { skip, slow, reason } = it.place;
                HookState::Attached { offset: it.offset, skip, slow, reason }
            } else {
                HookState::Off
            },
        });
        let skipped = plan.skipped.iter().map(|it| HookCoverage {
            symbol: it.symbol,
            group: it.group,
            state: match it.why {
                Why::Missing => HookState::Missing,
                Why::SameAs(other) => HookState::SameAs(other),
                Why::Unreadable => HookState::Unreadable,
                Why::Refused(form) => HookState::Refused(form),
            },
        });
        let hooks = points.chain(skipped).collect();
        Self { file: Some(file), hooks, ..Self::nothing(path) }
    }

    /// A file that could not be hooked.
    pub(super) fn refused(path: &Path, error: &str) -> Self {
        Self { error: Some(error.to_owned()), ..Self::nothing(path) }
    }

    fn nothing(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            file: None,
            hooks: Vec::new(),
            error: None,
            found_in: None,
            held_back: None,
        }
    }

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
