//! The process that uses the driver: it opens the library, asks it for functions, calls some, and says
//! what it was answered. It knows nothing of hooks.

#![expect(unsafe_code, reason = "calls C functions of a library that is opened at run time")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, c_int, c_void};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::trials::{Argument, ROOM_BYTES, TRIALS};

/// What the library answered.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answers {
    /// `CUresult` of each function that was called; all calls of one function gave the same.
    pub(crate) codes: BTreeMap<String, i32>,
    /// Of `cuDriverGetVersion`: 12040 is CUDA 12.4.
    pub(crate) version: i32,
    /// How often the driver named a function when asked, for names that are hooked.
    pub(crate) named: u32,
    /// Answers that are not the entry of an exported function, or of one that is not hooked.
    pub(crate) astray: BTreeSet<String>,
}

/// Of a process that has ended.
pub(crate) struct Ended {
    pub(crate) pid: u32,
    pub(crate) answers: Answers,
}

pub(crate) const CALL: &str = "--call";

/// Runs it to its end.
pub(crate) fn run(library: &Path, hooked: &[&str]) -> anyhow::Result<Ended> {
    let program = std::env::current_exe().context("this program has no path")?;
    let child = Command::new(program)
        .arg(CALL)
        .arg(library)
        .args(hooked)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start a process that calls the driver")?;
    let pid = child.id();
    let output = child.wait_with_output().context("cannot wait for a process of ours")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} {}", output.status, errors.trim());
    // Drivers may print: what we say is the last line.
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().context("it said nothing")?;
    let answers = serde_json::from_str(last).context("cannot read what it said")?;
    Ok(Ended { pid, answers })
}

/// In the process itself.
pub(crate) fn call(path: &Path, hooked: &[String]) -> anyhow::Result<Answers> {
    // SAFETY: the driver's library is made to be opened, and its initialisers are its own affair.
    let library = unsafe { libloading::Library::new(path) }.context("cannot open it")?;
    let driver = Driver { library };
    let (named, astray) = driver.ask(hooked);
    let (codes, version) = driver.make_trials()?;
    Ok(Answers { codes, version, named, astray })
}

/// All of them take at most so many integers and pointers.
const ARGUMENTS: usize = 11;
type Function =
    unsafe extern "C" fn(u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64) -> c_int;

struct Driver {
    library: libloading::Library,
}

/// Versions of CUDA in which functions changed; a caller names the one that it was built for.
const VERSIONS: [u64; 12] =
    [3020, 4000, 5000, 6050, 7000, 8000, 9020, 10010, 11020, 11040, 12000, 13000];
/// Legacy default stream, and one for each thread.
const FLAGS: [u64; 2] = [1, 2];

impl Driver {
    fn function(&self, symbol: &str) -> Option<Function> {
        // SAFETY: a function of the driver, called with integers and pointers only.
        unsafe { self.library.get::<Function>(symbol.as_bytes()) }.ok().map(|it| *it)
    }

    /// Asks for every hooked function in all ways that programs do. Returns how often there was an
    /// answer, and which were not hooked.
    fn ask(&self, hooked: &[String]) -> (u32, BTreeSet<String>) {
        let (mut named, mut astray) = (0, BTreeSet::new());
        let find = |name| self.function(name).map(|it| (name, it));
        // The older one has no last parameter, and does not look at ours.
        let asked = find("cuGetProcAddress_v2").or_else(|| find("cuGetProcAddress"));
        let Some((_, ask)) = asked else { return (named, astray) };
        let entries: BTreeMap<u64, &str> = hooked
            .iter()
            .filter_map(|it| Some((self.function(it)? as usize as u64, it.as_str())))
            .collect();
        let names: BTreeSet<&str> = hooked.iter().map(|it| base(it)).collect();
        for name in names {
            let text = CString::new(name).expect("a symbol has no zero byte");
            for (version, flags) in VERSIONS.into_iter().flat_map(|it| FLAGS.map(|flag| (it, flag)))
            {
                let (mut found, mut status) = (0_u64, 0_u64);
                let arguments = [
                    text.as_ptr() as u64,
                    (&raw mut found) as u64,
                    version,
                    flags,
                    (&raw mut status) as u64,
                ];
                if call_with(ask, &arguments) == 0 && found != 0 {
                    named += 1;
                    if !entries.contains_key(&found) {
                        astray.insert(format!("{name}: {}", exported(found)));
                    }
                }
            }
        }
        (named, astray)
    }

    fn make_trials(&self) -> anyhow::Result<(BTreeMap<String, i32>, i32)> {
        let mut codes = BTreeMap::new();
        let mut version = 0;
        for trial in &TRIALS {
            let Some(function) = self.function(trial.symbol) else { continue };
            let mut room = [0_u64; ROOM_BYTES / 8];
            let arguments: Vec<u64> = trial
                .arguments
                .iter()
                .map(|it| match it {
                    Argument::Value(value) => *value,
                    Argument::Room => room.as_mut_ptr() as u64,
                })
                .collect();
            let answers: BTreeSet<i32> =
                (0..trial.calls).map(|_| call_with(function, &arguments)).collect();
            let code = answers.first().copied().unwrap_or_default();
            ensure!(answers.len() == 1, "{} answers {answers:?}", trial.symbol);
            codes.insert(trial.symbol.to_owned(), code);
            if trial.symbol == "cuDriverGetVersion" {
                version = i32::try_from(room[0] & 0xffff_ffff).unwrap_or_default();
            }
        }
        Ok((codes, version))
    }
}

fn call_with(function: Function, arguments: &[u64]) -> c_int {
    let mut it = [0; ARGUMENTS];
    it[..arguments.len()].copy_from_slice(arguments);
    let [a, b, c, d, e, f, g, h, i, j, k] = it;
    // SAFETY: pointers among the arguments lead to room that outlives the call; what is beyond the
    // function's own parameters is not looked at.
    unsafe { function(a, b, c, d, e, f, g, h, i, j, k) }
}

/// As programs ask for it: without what tells variants apart.
fn base(symbol: &str) -> &str {
    let symbol = symbol.trim_end_matches("_ptsz").trim_end_matches("_ptds");
    match symbol.rsplit_once("_v") {
        Some((base, number)) if number.bytes().all(|it| it.is_ascii_digit()) => base,
        _ => symbol,
    }
}

/// What lies at an address, for people.
fn exported(address: u64) -> String {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: it looks the address up and reads nothing there; the structure is ours.
    let found = unsafe { libc::dladdr(address as *const c_void, &raw mut info) };
    if found == 0 || info.dli_sname.is_null() || info.dli_saddr as u64 != address {
        return "not the entry of an exported function".to_owned();
    }
    // SAFETY: not null, and the linker's names are C strings that stay.
    let name = unsafe { CStr::from_ptr(info.dli_sname) };
    format!("{}, which is not hooked", name.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::base;

    #[test]
    fn names_are_asked_for_without_their_variant() {
        assert_eq!(base("cuMemcpyHtoD_v2_ptds"), "cuMemcpyHtoD");
        assert_eq!(base("cuLaunchKernel_ptsz"), "cuLaunchKernel");
        assert_eq!(base("cuMemAlloc_v2"), "cuMemAlloc");
        assert_eq!(base("cuCtxCreate_v4"), "cuCtxCreate");
        assert_eq!(base("cuMem_vector"), "cuMem_vector");
    }
}
