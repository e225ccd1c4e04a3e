//! What is in the kernel maps that this process holds, asked of the kernel and not of the product.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper here")]

use std::os::fd::RawFd;

use agent_ebpf::keys::{SEATS, SLOTS, Seat};

/// `BPF_MAP_LOOKUP_ELEM`.
const LOOKUP: libc::c_long = 1;
/// `BPF_MAP_GET_NEXT_KEY`.
const GET_NEXT_KEY: libc::c_long = 4;

/// `BPF_MAP_TYPE_HASH` and `BPF_MAP_TYPE_ARRAY`.
const HASH: &str = "1";
const ARRAY: &str = "2";

/// Size of a value, and how many there are, where the first word of a value says whether it is taken:
/// names of slots, and seats.
const PLACES: [(usize, u32); 2] = [(size_of::<u64>(), SLOTS), (size_of::<Seat>(), SEATS)];

/// The part of `union bpf_attr` that asks for a key, or for a value.
#[repr(C)]
struct Element {
    map_fd: u32,
    _unused: u32,
    key: u64,
    answer: u64,
}

/// Entries of all hash maps that this process has open, and places in arrays that are taken.
pub(crate) fn entries_in_maps() -> usize {
    let descriptors = std::fs::read_dir("/proc/self/fd").expect("every process has descriptors");
    let names = descriptors.flatten().filter_map(|it| it.file_name().into_string().ok());
    names.filter_map(|it| it.parse().ok()).filter_map(entries_of).sum()
}

/// `None` for what is no map, or holds the same number always.
fn entries_of(descriptor: RawFd) -> Option<usize> {
    let said = std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).ok()?;
    let field = |name: &str| said.lines().find_map(|it| it.strip_prefix(name)).map(str::trim);
    let value_size: usize = field("value_size:")?.parse().ok()?;
    let room: u32 = field("max_entries:")?.parse().ok()?;
    match field("map_type:")? {
        HASH => Some(keys_of(descriptor, field("key_size:")?.parse().ok()?)),
        ARRAY if PLACES.contains(&(value_size, room)) => {
            let mut value = vec![0; value_size];
            Some((0..room).filter(|it| is_taken(descriptor, *it, &mut value)).count())
        }
        _ => None,
    }
}

fn keys_of(descriptor: RawFd, key_size: usize) -> usize {
    let mut keys = [vec![0_u8; key_size], vec![0_u8; key_size]];
    let mut entries = 0;
    while next_key(descriptor, &mut keys, entries == 0) {
        entries += 1;
        keys.swap(0, 1);
    }
    entries
}

/// Whether a place is somebody's. `value` is as large as the map's.
fn is_taken(descriptor: RawFd, index: u32, value: &mut [u8]) -> bool {
    let at = (&raw const index).expose_provenance() as u64;
    let found = ask(LOOKUP, descriptor, at, value.as_mut_ptr().expose_provenance() as u64);
    assert!(found, "an array has every index");
    value.iter().take(size_of::<u64>()).any(|it| *it != 0)
}

/// Writes the key that follows the first one to the second; `false` when there is none.
fn next_key(descriptor: RawFd, keys: &mut [Vec<u8>; 2], is_first: bool) -> bool {
    let [key, next] = keys;
    let key = if is_first { 0 } else { key.as_ptr().expose_provenance() as u64 };
    ask(GET_NEXT_KEY, descriptor, key, next.as_mut_ptr().expose_provenance() as u64)
}

/// Both addresses are of as many bytes as the map's keys and values have.
fn ask(command: libc::c_long, descriptor: RawFd, key: u64, answer: u64) -> bool {
    let map_fd = u32::try_from(descriptor).expect("descriptors are positive");
    let attributes = Element { map_fd, _unused: 0, key, answer };
    let size = size_of::<Element>();
    // SAFETY: the attributes are those of both commands, and what they point to is large enough.
    unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attributes, size) == 0 }
}
