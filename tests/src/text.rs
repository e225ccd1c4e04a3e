//! What a process has in memory of a file that it runs code of.

use std::io::IoSliceMut;
use std::path::Path;

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

/// What the kernel puts where a hook is, on x86-64.
pub const BREAKPOINT: u8 = 0xcc;

/// One byte of a file as a process has it in memory.
pub fn byte_in_memory(tgid: u32, file: &Path, offset: u64) -> u8 {
    let mapping = mappings(tgid, file).into_iter().find(|it| it.holds(offset));
    let mapping = mapping.expect("it maps the whole library");
    let mut byte = [0];
    read(tgid, mapping.start + (offset - mapping.offset), &mut byte);
    byte[0]
}

/// How many bytes of a file's code are others in the memory of a process: one for each hook.
pub fn changed_bytes(tgid: u32, file: &Path) -> usize {
    let content = std::fs::read(file).expect("it maps the file, which is there");
    let of_mapping = |it: Mapping| {
        let from = usize::try_from(it.offset).expect("an offset fits");
        let original = &content[from.min(content.len())..];
        let mut memory = vec![0; usize::try_from(it.bytes).expect("a length fits")];
        read(tgid, it.start, &mut memory);
        memory.iter().zip(original).filter(|(now, then)| now != then).count()
    };
    mappings(tgid, file).into_iter().filter(|it| it.is_code).map(of_mapping).sum()
}

/// A part of a file in memory.
struct Mapping {
    start: u64,
    bytes: u64,
    /// In the file.
    offset: u64,
    is_code: bool,
}

impl Mapping {
    fn holds(&self, offset: u64) -> bool {
        (self.offset..self.offset + self.bytes).contains(&offset)
    }
}

fn mappings(tgid: u32, file: &Path) -> Vec<Mapping> {
    let maps = std::fs::read_to_string(format!("/proc/{tgid}/maps")).expect("it lives");
    let hexadecimal = |it: &str| u64::from_str_radix(it, 16).expect("the kernel writes numbers");
    let mapping = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = fields[0].split_once('-')?;
        let (start, end) = (hexadecimal(start), hexadecimal(end));
        let is_code = fields[1].contains('x');
        Some(Mapping { start, bytes: end - start, offset: hexadecimal(fields[2]), is_code })
    };
    let path = file.to_str().expect("a temporary path is text");
    maps.lines().filter(|it| it.ends_with(path)).filter_map(mapping).collect()
}

fn read(tgid: u32, address: u64, bytes: &mut [u8]) {
    let base = usize::try_from(address).expect("an address fits");
    let there = RemoteIoVec { base, len: bytes.len() };
    let pid = Pid::from_raw(i32::try_from(tgid).expect("a PID fits"));
    process_vm_readv(pid, &mut [IoSliceMut::new(bytes)], &[there]).expect("it is our child");
}
