//! What was found about one library.

use std::fmt;

use agent::model::readings::CudaCounts;
use agent::status::Library;
use serde::Serialize;

use crate::child::Answers;

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) library: Library,
    /// CUDA version of the driver, as it says itself: 12040 is CUDA 12.4.
    pub(crate) version: Option<i32>,
    pub(crate) note: Option<&'static str>,
    pub(crate) checks: Vec<Check>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Check {
    name: &'static str,
    ok: bool,
    found: String,
}

impl Report {
    pub(crate) fn new(library: Library) -> Self {
        Self { library, version: None, note: None, checks: Vec::new() }
    }

    /// Nothing that was checked is wrong, and something was.
    pub(crate) fn is_good(&self) -> bool {
        self.library.error.is_none() && self.checks.iter().all(|it| it.ok)
    }

    /// Symbols that this driver has.
    pub(crate) fn hooked(&self) -> Vec<&str> {
        let hooks = self.library.hooks.iter();
        hooks
            .filter(|it| it.offset.is_some() || it.same_as.is_some())
            .map(|it| &*it.symbol)
            .collect()
    }
}

impl Check {
    pub(crate) fn of_hooks(library: &Library) -> Self {
        let slow: usize = library.groups.iter().map(|it| it.slow).sum();
        let missing: usize = library.groups.iter().map(|it| it.missing).sum();
        Self {
            name: "every function that this driver has is hooked",
            ok: library.attached == library.wanted,
            found: format!(
                "{} of {}, {slow} of them slow; this driver lacks {missing}",
                library.attached, library.wanted
            ),
        }
    }

    pub(crate) fn of_addresses(answers: &Answers) -> Self {
        let astray: Vec<&str> = answers.astray.iter().map(String::as_str).collect();
        let found = if astray.is_empty() {
            format!("{} answers, all of them hooked entries", answers.named)
        } else {
            format!("of {} answers these are not hooked: {}", answers.named, astray.join("; "))
        };
        Self {
            name: "cuGetProcAddress leads to hooked functions",
            ok: answers.named > 0 && astray.is_empty(),
            found,
        }
    }

    pub(crate) fn of_answers(traced: &Answers, plain: &Answers) -> Self {
        let changed =
            plain.codes.iter().filter(|(symbol, code)| traced.codes.get(*symbol) != Some(*code));
        let changed: Vec<&str> = changed.map(|(symbol, _)| symbol.as_str()).collect();
        let init = plain.codes.get("cuInit").copied().unwrap_or_default();
        let found = if changed.is_empty() {
            format!("{} functions, cuInit answers {init}", plain.codes.len())
        } else {
            format!("these answer otherwise: {}", changed.join(", "))
        };
        Self {
            name: "calls return with hooks what they return without",
            ok: traced == plain,
            found,
        }
    }

    pub(crate) fn of_counts(expected: CudaCounts, counted: CudaCounts) -> Self {
        let found = if expected == counted {
            format!("{} launches and all else exact", counted.launches())
        } else {
            format!("expected {expected:?}, counted {counted:?}")
        };
        Self { name: "what is counted is what was called", ok: expected == counted, found }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.library)?;
        for hook in &self.library.hooks {
            writeln!(f, "{hook}")?;
        }
        if let Some(version) = self.version {
            writeln!(f, "CUDA {}.{}", version / 1000, version % 1000 / 10)?;
        }
        if let Some(note) = self.note {
            writeln!(f, "{note}")?;
        }
        for check in &self.checks {
            let state = if check.ok { "ok" } else { "WRONG" };
            writeln!(f, "{state:<6} {}: {}", check.name, check.found)?;
        }
        Ok(())
    }
}
