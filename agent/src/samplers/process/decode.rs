//! What `/proc` and the ring say about processes. Bytes and text in, values out; nothing is read
//! here.

use std::mem::offset_of;

use agent_ebpf::{COUNTERS, Event, Record, Row};

/// A file as the kernel names it in `/proc/PID/maps`. Both numbers are needed: inode numbers are
/// unique within one file system only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    pub major: u32,
    pub minor: u32,
    pub inode: u64,
}

/// One line of `/proc/PID/maps` that maps a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping<'a> {
    pub(crate) start: u64,
    pub(crate) file: FileId,
    /// What the owner of the process wants us to see: good to look at, never to open.
    pub(crate) path: &'a str,
}

/// Start time in clock ticks since boot: field 22 of `/proc/PID/stat`. The second field is a name
/// in parentheses that may itself contain spaces and parentheses.
pub(crate) fn start_ticks(stat: &str) -> Option<u64> {
    let after_name = stat.rsplit_once(')')?.1;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The lines that map a file.
pub(crate) fn mappings(maps: &str) -> impl Iterator<Item = Mapping<'_>> {
    maps.lines().filter_map(mapping)
}

fn mapping(line: &str) -> Option<Mapping<'_>> {
    let mut rest = line;
    let mut field = || {
        let (first, more) = rest.split_once(' ')?;
        rest = more;
        Some(first)
    };
    let (range, _permissions, _offset, device, inode) =
        (field()?, field()?, field()?, field()?, field()?);
    let (major, minor) = device.split_once(':')?;
    let file = FileId {
        major: u32::from_str_radix(major, 16).ok()?,
        minor: u32::from_str_radix(minor, 16).ok()?,
        inode: inode.parse().ok().filter(|it| *it != 0)?,
    };
    let start = u64::from_str_radix(range.split_once('-')?.0, 16).ok()?;
    Some(Mapping { start, file, path: rest.trim_start_matches(' ') })
}

/// Whether a mapped file calls itself the CUDA driver library. Used only to withhold trust from a
/// process, never to attach.
pub(crate) fn looks_like_libcuda(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|it| it.starts_with("libcuda.so"))
}

/// A record of the ring; `None` for one that this version does not know.
pub(crate) fn record(bytes: &[u8]) -> Option<(Event, Record)> {
    if bytes.len() < size_of::<Record>() {
        return None;
    }
    let record = Record { event: word(bytes, 0)?, tgid: word(bytes, 4)?, row: row(&bytes[8..])? };
    let event = match record.event {
        1 => Event::Appeared,
        2 => Event::Awoke,
        3 => Event::Executed,
        4 => Event::Exited,
        _ => return None,
    };
    Some((event, record))
}

/// A row as the kernel holds it; `None` when there are too few bytes.
pub(crate) fn row(bytes: &[u8]) -> Option<Row> {
    let mut counts = [0; COUNTERS];
    for (index, count) in counts.iter_mut().enumerate() {
        *count = double(bytes, offset_of!(Row, counts) + 8 * index)?;
    }
    Some(Row {
        start_boottime_ns: double(bytes, offset_of!(Row, start_boottime_ns))?,
        last_launch_ns: double(bytes, offset_of!(Row, last_launch_ns))?,
        last_launch_tick: double(bytes, offset_of!(Row, last_launch_tick))?,
        pending_since_ns: double(bytes, offset_of!(Row, pending_since_ns))?,
        live_bytes: double(bytes, offset_of!(Row, live_bytes))?,
        peak_bytes: double(bytes, offset_of!(Row, peak_bytes))?,
        host_bytes: double(bytes, offset_of!(Row, host_bytes))?,
        cgroup_id: double(bytes, offset_of!(Row, cgroup_id))?,
        uid: word(bytes, offset_of!(Row, uid))?,
        flags: word(bytes, offset_of!(Row, flags))?,
        home: word(bytes, offset_of!(Row, home))?,
        unused: word(bytes, offset_of!(Row, unused))?,
        counts,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn double(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::{FileId, looks_like_libcuda, mappings, record, row, start_ticks};
    use agent_ebpf::{Counter, Event, Record, Row};

    #[test]
    fn the_start_time_is_found_whatever_the_process_calls_itself() {
        let rest = "S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 200 18446744";
        for name in ["bash", "a b", ") S 1 (", "tmux: server", ""] {
            assert_eq!(start_ticks(&format!("42 ({name}) {rest}")), Some(987_654), "{name}");
        }
        assert_eq!(start_ticks("42 (bash) S 1"), None);
        assert_eq!(start_ticks(""), None);
    }

    #[test]
    fn a_mapping_has_two_numbers_and_any_path() {
        let maps = "\
55d0c0000000-55d0c0001000 r--p 00000000 08:01 131 /usr/bin/a file
7f00a0000000-7f00a0021000 rw-p 00000000 00:00 0
7f00a1000000-7f00a1001000 r-xp 00002000 fd:1f 77                 /opt/x/libcuda.so.1 (deleted)
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0          [vsyscall]
garbage
";
        let found: Vec<_> = mappings(maps).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].path, "/usr/bin/a file");
        assert_eq!(found[1].file, FileId { major: 0xfd, minor: 0x1f, inode: 77 });
        assert_eq!(found[1].start, 0x7f00_a100_0000);
        assert!(looks_like_libcuda(found[1].path) && !looks_like_libcuda(found[0].path));
    }

    #[test]
    fn a_record_carries_the_whole_row() {
        let mut bytes = Vec::new();
        bytes.extend(4_u32.to_ne_bytes());
        bytes.extend(77_u32.to_ne_bytes());
        let words = size_of::<Row>() as u64 / 8;
        for word in 0..words {
            bytes.extend((100 + word).to_ne_bytes());
        }
        let (event, record) = record(&bytes).unwrap();
        assert_eq!((event, record.tgid), (Event::Exited, 77));
        assert_eq!(record.row.start_boottime_ns, 100);
        assert_eq!(record.row.last_launch_ns, 101);
        assert_eq!(record.row.counts[Counter::KernelLaunches as usize], 110);
        assert_eq!(record.row.counts[Counter::Streams as usize], 99 + words);
    }

    #[test]
    fn short_or_unknown_bytes_are_nothing() {
        assert_eq!(record(&[4, 0, 0, 0, 1, 0, 0, 0]), None);
        assert_eq!(record(&[9; size_of::<Record>()]), None);
        assert_eq!(row(&[0; size_of::<Row>() - 1]), None);
    }
}
