//! What is in the kernel maps that this process holds, asked of the kernel and not of the product.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper here")]

use std::os::fd::RawFd;

/// `BPF_MAP_GET_NEXT_KEY`.
const GET_NEXT_KEY: libc::c_long = 4;

/// `BPF_MAP_TYPE_HASH`.
const HASH: &str = "1";

/// The part of `union bpf_attr` that asks for a key.
#[repr(C)]
struct NextKey {
    map_fd: u32,
    _unused: u32,
    key: u64,
    next_key: u64,
}

/// Entries of all hash maps that this process has open.
pub(crate) fn entries_in_hash_maps() -> usize {
    let descriptors = std::fs::read_dir("/proc/self/fd").expect("every process has descriptors");
    let names = descriptors.flatten().filter_map(|it| it.file_name().into_string().ok());
    names.filter_map(|it| it.parse().ok()).filter_map(entries_of).sum()
}

/// `None` for what is not a hash map.
fn entries_of(descriptor: RawFd) -> Option<usize> {
    let said = std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).ok()?;
    let field = |name: &str| said.lines().find_map(|it| it.strip_prefix(name)).map(str::trim);
    if field("map_type:")? != HASH {
        return None;
    }
    let key_size: usize = field("key_size:")?.parse().ok()?;
    let mut keys = [vec![0_u8; key_size], vec![0_u8; key_size]];
    let mut entries = 0;
    while next_key(descriptor, &mut keys, entries == 0) {
        entries += 1;
        keys.swap(0, 1);
    }
    Some(entries)
}

/// Writes the key that follows the first one to the second; `false` when there is none.
fn next_key(descriptor: RawFd, keys: &mut [Vec<u8>; 2], is_first: bool) -> bool {
    let [key, next] = keys;
    let attributes = NextKey {
        map_fd: u32::try_from(descriptor).expect("descriptors are positive"),
        _unused: 0,
        key: if is_first { 0 } else { key.as_ptr().expose_provenance() as u64 },
        next_key: next.as_mut_ptr().expose_provenance() as u64,
    };
    let size = size_of::<NextKey>();
    // SAFETY: the attributes are those of this command, and both keys are as long as the map's.
    unsafe { libc::syscall(libc::SYS_bpf, GET_NEXT_KEY, &raw const attributes, size) == 0 }
}
