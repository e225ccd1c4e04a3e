//! The uprobe programs of the object, loaded so that one link attaches each to many places.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use aya_obj::relocation::EbpfRelocationError;
use aya_obj::{Object, ParseError, ProgramSection};

use super::driver::{self, Moment, Places};

/// Why the programs cannot be attached to many places at once.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MultiError {
    #[error("cannot read the eBPF object: {0}")]
    Parse(#[from] ParseError),
    #[error("cannot link the eBPF object: {0}")]
    Relocate(#[from] EbpfRelocationError),
    #[error("cannot load the eBPF program {name}: {source}")]
    Load { name: String, source: io::Error },
    #[error("this kernel has no links to many places (uprobe_multi, Linux 6.6)")]
    Unsupported,
    #[error("the eBPF object has no program {0}")]
    NoProgram(&'static str),
    #[error("cannot attach the eBPF program {name}: {source}")]
    Attach { name: &'static str, source: io::Error },
}

/// Loaded programs by name.
#[derive(Debug)]
pub(crate) struct Programs {
    by_name: BTreeMap<String, OwnedFd>,
}

impl Programs {
    /// Loads the `wanted` uprobe programs of `object` on top of maps that exist already.
    pub(crate) fn load<'a>(
        object: &[u8],
        maps: impl Iterator<Item = (&'a str, BorrowedFd<'a>)>,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Self, MultiError> {
        let mut object = Object::parse(object)?;
        let definitions = object.maps.clone();
        let maps = maps.filter_map(|(name, descriptor)| {
            Some((name, descriptor.as_raw_fd(), definitions.get(name)?))
        });
        let text = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_maps(maps, &text)?;
        object.relocate_calls(&text)?;
        let mut by_name = BTreeMap::new();
        for (name, program) in &object.programs {
            if !is_uprobe(&program.section) || !wanted(name) {
                continue;
            }
            let function = &object.functions[&program.function_key()];
            let loaded = driver::load_multi(name, &function.instructions, &program.license)
                .map_err(|source| MultiError::Load { name: name.clone(), source })?;
            // After the first: to load all takes a while.
            if by_name.is_empty() && !driver::has_multi(loaded.as_fd()) {
                return Err(MultiError::Unsupported);
            }
            by_name.insert(name.clone(), loaded);
        }
        Ok(Self { by_name })
    }

    pub(crate) fn attach(
        &self,
        name: &'static str,
        path: &CStr,
        places: &Places,
        moment: Moment,
    ) -> Result<OwnedFd, MultiError> {
        let program = self.by_name.get(name).ok_or(MultiError::NoProgram(name))?;
        driver::link_multi(program.as_fd(), path, places, moment)
            .map_err(|source| MultiError::Attach { name, source })
    }
}

fn is_uprobe(section: &ProgramSection) -> bool {
    matches!(section, ProgramSection::UProbe { .. } | ProgramSection::URetProbe { .. })
}
