//! What `/proc` and the ring say about processes. Bytes and text in, values out; nothing is read
//! here.

use std::mem::offset_of;

use agent_ebpf::{COUNTERS, Event, FLAGS, Record, Row};

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
    pub(crate) end: u64,
    pub(crate) executable: bool,
    /// In the file, of the first byte that is mapped.
    pub(crate) offset: u64,
    pub(crate) file: FileId,
    /// What the owner of the process wants us to see: good to look at, never to trust. Newlines are
    /// written as `\\012`.
    pub(crate) path: &'a str,
}

/// Start time in clock ticks since boot: field 22 of `/proc/PID/stat`. The second field is a name
/// in parentheses that may itself contain spaces and parentheses.
pub(crate) fn start_ticks(stat: &str) -> Option<u64> {
    let after_name = stat.rsplit_once(')')?.1;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The real user: the first number of the `Uid:` line of `/proc/PID/status`.
pub(crate) fn real_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|it| it.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// What it is called on every Linux since 3.8: its inode number is fixed in the kernel
/// (`PROC_PID_INIT_INO`).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Whether the target of `/proc/PID/ns/pid` is the namespace of the host, which numbers processes as
/// the kernel programs and the driver of the GPU do.
pub(crate) fn is_initial_pid_namespace(link: &str) -> bool {
    link == INITIAL_PID_NAMESPACE
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
    let (range, permissions, offset, device, inode) =
        (field()?, field()?, field()?, field()?, field()?);
    let (major, minor) = device.split_once(':')?;
    let file = FileId {
        major: u32::from_str_radix(major, 16).ok()?,
        minor: u32::from_str_radix(minor, 16).ok()?,
        inode: inode.parse().ok().filter(|it| *it != 0)?,
    };
    let (start, end) = range.split_once('-')?;
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        executable: permissions.as_bytes().get(2) == Some(&b'x'),
        offset: u64::from_str_radix(offset, 16).ok()?,
        file,
        path: rest.trim_start_matches(' '),
    })
}

impl Mapping<'_> {
    /// Where a byte of the file is in memory, if this mapping shows it.
    pub(crate) fn address_of(&self, offset: u64) -> Option<u64> {
        let inside = offset.checked_sub(self.offset)?;
        (inside < self.end - self.start).then(|| self.start + inside)
    }
}

/// What the kernel appends where the file has no name any more; a file may also be called so.
pub(crate) const DELETED: &str = " (deleted)";

/// The path itself, where the file is still called so.
pub(crate) fn path_of(mapped: &str) -> String {
    mapped.replace("\\012", "\n")
}

/// Whether a mapped file calls itself the CUDA driver library. Enough to withhold trust from a
/// process or to look at the file, never to attach.
pub(crate) fn looks_like_libcuda(path: &str) -> bool {
    file_name(path).starts_with("libcuda.so")
}

/// Whether a mapped file calls itself the memory hooks of UCX, which change the first bytes of the
/// driver's memory functions.
pub(crate) fn looks_like_ucx(path: &str) -> bool {
    file_name(path).starts_with("libucm")
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// Whether what a file descriptor is open on is a device of the GPU's driver, by its name alone: it
/// may be anywhere in the process's mount namespace.
pub(crate) fn is_gpu_device(path: &str) -> bool {
    let name = file_name(path);
    name.starts_with("nvidia") || name == "dxg"
}

/// The bits of an entry of `/proc/PID/pagemap`, as the kernel's `admin-guide/mm/pagemap.rst` has them.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

/// Whether a page of a private file mapping is no longer the file's: it was written to. A page that
/// is in neither place will be read from the file.
pub(crate) fn is_own_copy(pagemap: u64) -> bool {
    pagemap & SWAPPED != 0 || pagemap & PRESENT != 0 && pagemap & OF_FILE == 0
}

/// Whether `/proc/PID/smaps` shows a page in the text of a file that is no longer the file's. Coarser
/// than single pages: somebody may have changed other functions.
pub(crate) fn has_own_copies(smaps: &str, file: FileId) -> bool {
    let mut in_text = false;
    for line in smaps.lines() {
        if let Some(size) = ["Anonymous:", "Swap:"].iter().find_map(|it| line.strip_prefix(it)) {
            if in_text && size.trim() != "0 kB" {
                return true;
            }
        } else if line.split_once(' ').is_some_and(|it| !it.0.ends_with(':')) {
            in_text = mapping(line).is_some_and(|it| it.file == file && it.executable);
        }
    }
    false
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
    let flags = offset_of!(Row, flags);
    Some(Row {
        start_boottime_ns: double(bytes, offset_of!(Row, start_boottime_ns))?,
        program: double(bytes, offset_of!(Row, program))?,
        live_bytes: double(bytes, offset_of!(Row, live_bytes))?,
        peak_bytes: double(bytes, offset_of!(Row, peak_bytes))?,
        host_bytes: double(bytes, offset_of!(Row, host_bytes))?,
        cgroup_id: double(bytes, offset_of!(Row, cgroup_id))?,
        contexts: double(bytes, offset_of!(Row, contexts))?,
        context: double(bytes, offset_of!(Row, context))?,
        uid: word(bytes, offset_of!(Row, uid))?,
        home: word(bytes, offset_of!(Row, home))?,
        resets: word(bytes, offset_of!(Row, resets))?,
        spilled: word(bytes, offset_of!(Row, spilled))?,
        flags: bytes.get(flags..flags + FLAGS)?.try_into().ok()?,
        pending_since_ns: double(bytes, offset_of!(Row, pending_since_ns))?,
        last_launch_ns: double(bytes, offset_of!(Row, last_launch_ns))?,
        last_launch_tick: double(bytes, offset_of!(Row, last_launch_tick))?,
        waits_ended: double(bytes, offset_of!(Row, waits_ended))?,
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
    use proptest::prelude::{any, proptest};

    use super::{
        FileId, has_own_copies, is_gpu_device, is_initial_pid_namespace, is_own_copy,
        looks_like_libcuda, looks_like_ucx, mappings, path_of, real_uid, record, row, start_ticks,
    };
    use agent_ebpf::{Counter, Event, Record, Row};

    #[test]
    fn the_start_time_is_found_whatever_the_process_calls_itself() {
        let rest = "S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 200 18446744";
        for name in ["bash", "a b", ") S 1 (", "tmux: server", ""] {
            assert_eq!(start_ticks(&format!("42 ({name}) {rest}")), Some(987_654), "{name}");
        }
        for broken in
            ["", "42 (bash", "42 (bash) S 1", "7 cat) S x x x x x x x x x x x x x x x x x x x"]
        {
            assert_eq!(start_ticks(broken), None, "{broken}");
        }
    }

    #[test]
    fn the_real_user_is_the_first_number() {
        assert_eq!(real_uid("Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t5"), Some(1000));
        assert_eq!(real_uid("Name:\tUid: 5"), None);
        assert_eq!(real_uid("Uid:\t\n"), None);
    }

    #[test]
    fn the_namespace_of_the_host_has_one_name() {
        assert!(is_initial_pid_namespace("pid:[4026531836]"));
        assert!(!is_initial_pid_namespace("pid:[4026532447]") && !is_initial_pid_namespace(""));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in any::<String>()) {
            assert!(start_ticks(&text).is_none() || text.contains(')'));
            assert!(real_uid(&text).is_none() || text.contains("Uid:"));
            assert!(mappings(&text).all(|it| it.file.inode != 0));
        }
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
        assert_eq!((found[1].end, found[1].offset), (0x7f00_a100_1000, 0x2000));
        assert!(found[1].executable && !found[0].executable);
        assert_eq!(found[1].address_of(0x2fff), Some(0x7f00_a100_0fff));
        assert_eq!((found[1].address_of(0x1fff), found[1].address_of(0x3000)), (None, None));
        assert!(looks_like_libcuda(found[1].path) && !looks_like_libcuda(found[0].path));
    }

    #[test]
    fn files_are_known_by_their_last_name() {
        let yes = ["/a b/libcuda.so.1", "/x/libcuda.so.550.1 (deleted)", "libcuda.so"];
        assert!(yes.into_iter().all(looks_like_libcuda));
        let no = ["/libcuda.so.1/x", "/x/libcudart.so.12", "/x/liblibcuda.so.1", ""];
        assert!(!no.into_iter().any(looks_like_libcuda));
        assert!(looks_like_ucx("/opt/ucx/libucm.so.0.0.0") && looks_like_ucx("/w/libucm-1f.so.0"));
        assert_eq!(path_of(r"/a\012b/libcuda.so.1"), "/a\nb/libcuda.so.1");
        assert!(is_gpu_device("/dev/nvidia0") && is_gpu_device("/dev/nvidia-caps/nvidia-cap1"));
        assert!(!is_gpu_device("/dev/null") && !is_gpu_device("socket:[7]"));
    }

    #[test]
    fn a_page_that_was_written_to_is_not_the_files() {
        let check = |bits: &[u64], own: bool| {
            let entry = bits.iter().fold(0, |entry, bit| entry | 1 << bit);
            assert_eq!(is_own_copy(entry), own, "{bits:?}");
        };
        check(&[63, 61], false);
        check(&[63], true);
        check(&[62], true);
        check(&[], false);
    }

    #[test]
    fn own_copies_count_in_the_text_of_the_file_only() {
        let file = FileId { major: 0xfd, minor: 0, inode: 7 };
        let check = |permissions: &str, inode: u32, anonymous: u32, expected: bool| {
            let smaps = format!(
                "1000-2000 {permissions} 00000000 fd:00 {inode}      /x/libcuda.so.1\n\
                 Size:                  4 kB\nAnonymous:             {anonymous} kB\n\
                 Swap:                  0 kB\nVmFlags: rd ex mr\n\
                 3000-4000 rw-p 00000000 00:00 0 \nAnonymous:             8 kB\n"
            );
            assert_eq!(has_own_copies(&smaps, file), expected, "{smaps}");
        };
        check("r-xp", 7, 4, true);
        check("r-xp", 7, 0, false);
        check("r-xp", 8, 4, false);
        check("rw-p", 7, 4, false);
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
        assert_eq!((record.row.program, record.row.last_launch_ns), (101, 113));
        assert_eq!((record.row.uid, record.row.home), (108, 0));
        assert_eq!(record.row.flags[8..], 111_u64.to_ne_bytes());
        assert_eq!((record.row.pending_since_ns, record.row.waits_ended), (112, 115));
        assert_eq!(record.row.counts[Counter::KernelLaunches as usize], 116);
        assert_eq!(record.row.counts[Counter::Exports as usize], 99 + words);
    }

    #[test]
    fn short_or_unknown_bytes_are_nothing() {
        assert_eq!(record(&[4, 0, 0, 0, 1, 0, 0, 0]), None);
        assert_eq!(record(&[9; size_of::<Record>()]), None);
        assert_eq!(row(&[0; size_of::<Row>() - 1]), None);
    }
}
