//! What becomes of a record: applied, or quarantined with its reason. Pure.
//!
//! Form was checked when the record was decoded; here it is compared with what the ledger knows of its
//! instance. A record that is quarantined changes no sum: the time that it would have covered is posted
//! as `missing` when the next good tile of the instance arrives.

use crate::model::record::{CudaActivity, Share, Tile};

/// A tile with holders is at most this long; agents close them far earlier.
pub const MAX_TILE_NS: u64 = 3_600_000_000_000;

/// Longest span without holders, and longest hole that is filled: more is not an outage but a wrong
/// clock.
pub const MAX_BLIND_NS: u64 = 400 * 24 * 3_600_000_000_000;

/// Latest boot-time value: no machine runs 50 years, and it leaves room in signed 64 bits.
pub const MAX_BOOT_NS: u64 = 50 * 366 * 24 * 3_600_000_000_000;

/// How far an end may lie after the node's present by this collector's clock.
pub const MAX_AHEAD_NS: u64 = 60_000_000_000;

/// Why a record was set aside. It changes no sum, and the ledger keeps it with this reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Quarantine {
    /// The content does not have the hash that it was sealed with.
    HashMismatch,
    /// The content is not a record, or a field of it has no meaning here.
    Malformed,
    /// More holders, or longer, than any agent writes.
    TooLarge,
    /// The shares do not sum to the span.
    SharesDoNotSum,
    /// The classes do not sum to the span.
    ClassesDoNotSum,
    /// The parts of the energy do not sum to it, by share or by class.
    EnergyDoesNotSum,
    /// It covers time that is already covered.
    Overlap,
    /// Of a boot that a later one has replaced on this instance.
    SupersededBoot,
    /// It ends in the future.
    Future,
    /// The device belongs to another node that is connected and lists it.
    ForeignDevice,
    /// The node names more instances than any machine has.
    TooManyInstances,
}

/// What the ledger knows of the instance of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// No tile so far.
    Nothing,
    /// The last tile is of the same boot.
    SameBoot { end_ns: u64 },
    /// The last tile is of another boot; this one is new here.
    NewBoot,
    /// This boot was followed by another one.
    SupersededBoot,
}

/// What the collector knows of the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The node's boot time now, by this collector's clock since the Hello; `None` for another boot
    /// than that of the Hello.
    pub boot_now_ns: Option<u64>,
    /// Another connected node lists the device.
    pub foreign: bool,
}

/// A hole before the tile, to be posted as `missing`. Empty where the tile is contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    pub start_ns: u64,
    pub end_ns: u64,
}

/// Applied with the hole before it, or quarantined.
pub fn tile(tile: &Tile, known: Known, moment: Moment) -> Result<Hole, Quarantine> {
    span(tile.start_ns, tile.end_ns, moment)?;
    size(tile)?;
    conserves(tile)?;
    energy(tile)?;
    figures(tile)?;
    if moment.foreign {
        return Err(Quarantine::ForeignDevice);
    }
    let no_hole = Hole { start_ns: tile.start_ns, end_ns: tile.start_ns };
    match known {
        Known::SupersededBoot => Err(Quarantine::SupersededBoot),
        Known::SameBoot { end_ns } if tile.start_ns < end_ns => Err(Quarantine::Overlap),
        Known::SameBoot { end_ns } if tile.start_ns - end_ns > MAX_BLIND_NS => {
            Err(Quarantine::TooLarge)
        }
        Known::SameBoot { end_ns } => Ok(Hole { start_ns: end_ns, end_ns: tile.start_ns }),
        Known::Nothing | Known::NewBoot => Ok(no_hole),
    }
}

/// CUDA activity covers no exclusive time: only its form is checked.
pub fn cuda(activity: &CudaActivity, moment: Moment) -> Result<(), Quarantine> {
    span(activity.start_ns, activity.end_ns, moment)?;
    if activity.end_ns - activity.start_ns > MAX_BLIND_NS {
        return Err(Quarantine::TooLarge);
    }
    if activity.sums.watched_ns > activity.sums.span_ns {
        return Err(Quarantine::Malformed);
    }
    if moment.foreign { Err(Quarantine::ForeignDevice) } else { Ok(()) }
}

fn span(start_ns: u64, end_ns: u64, moment: Moment) -> Result<(), Quarantine> {
    if end_ns < start_ns {
        return Err(Quarantine::Malformed);
    }
    let latest = moment.boot_now_ns.map_or(MAX_BOOT_NS, |it| it.saturating_add(MAX_AHEAD_NS));
    if end_ns > latest.min(MAX_BOOT_NS) { Err(Quarantine::Future) } else { Ok(()) }
}

fn size(tile: &Tile) -> Result<(), Quarantine> {
    let held = tile.shares.iter().any(|(share, _)| matches!(share, Share::Tenant { .. }));
    let longest = if held { MAX_TILE_NS } else { MAX_BLIND_NS };
    if tile.span() > longest { Err(Quarantine::TooLarge) } else { Ok(()) }
}

/// C1: the shares sum to the span exactly, and so do the classes.
fn conserves(tile: &Tile) -> Result<(), Quarantine> {
    let span = u128::from(tile.span());
    let shares: u128 = tile.shares.iter().map(|it| u128::from(it.1)).sum();
    let classes: u128 = tile.classes.iter().copied().map(u128::from).sum();
    if shares != span {
        return Err(Quarantine::SharesDoNotSum);
    }
    if classes != span { Err(Quarantine::ClassesDoNotSum) } else { Ok(()) }
}

fn energy(tile: &Tile) -> Result<(), Quarantine> {
    let Some(energy) = &tile.energy else { return Ok(()) };
    let Some(split) = &energy.split else { return Ok(()) };
    let sum = |parts: &[u64]| parts.iter().copied().map(u128::from).sum::<u128>();
    let whole = u128::from(energy.mj);
    let conserves = sum(&split.shares) == whole && sum(&split.classes) == whole;
    if conserves { Ok(()) } else { Err(Quarantine::EnergyDoesNotSum) }
}

/// Parts of the span are not longer than it, and a MIG instance is a part of its device.
fn figures(tile: &Tile) -> Result<(), Quarantine> {
    let span = tile.span();
    let sm = tile.sm.is_none_or(|it| it.active_ns <= it.measured_ns && it.measured_ns <= span);
    let seen = tile.seen.is_none_or(|it| it.process_ns <= span && it.healthy_ns <= span);
    let slices = tile.slices.is_none_or(|it| it.instance > 0 && it.instance <= it.device);
    if sm && seen && slices { Ok(()) } else { Err(Quarantine::Malformed) }
}

impl Quarantine {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HashMismatch => "hash_mismatch",
            Self::Malformed => "malformed",
            Self::TooLarge => "too_large",
            Self::SharesDoNotSum => "shares_do_not_sum",
            Self::ClassesDoNotSum => "classes_do_not_sum",
            Self::EnergyDoesNotSum => "energy_does_not_sum",
            Self::Overlap => "overlap",
            Self::SupersededBoot => "superseded_boot",
            Self::Future => "future",
            Self::ForeignDevice => "foreign_device",
            Self::TooManyInstances => "too_many_instances",
        }
    }
}
