//! The system calls themselves. Layouts are those of `include/uapi/linux/bpf.h`; the kernel takes
//! what is left out at the end for zero.

#![expect(unsafe_code, reason = "the kernel is spoken to through pointers here")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_insn, bpf_link_type, bpf_prog_type};

/// A program for uprobes that can be attached to many places by one link.
pub fn load_multi(name: &str, instructions: &[bpf_insn], license: &CStr) -> io::Result<OwnedFd> {
    let mut attribute = ProgLoad {
        prog_type: bpf_prog_type::BPF_PROG_TYPE_KPROBE as u32,
        insn_cnt: count(instructions.len())?,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        expected_attach_type: bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32,
        ..ProgLoad::default()
    };
    let room = attribute.prog_name.len() - 1;
    for (to, from) in attribute.prog_name[..room].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: the attribute points to instructions and license, which outlive the call.
    unsafe { create(bpf_cmd::BPF_PROG_LOAD, &mut attribute) }
}

/// Where a link attaches: offsets in one file, and what the program is told at each.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Places {
    pub offsets: Vec<u64>,
    pub cookies: Vec<u64>,
}

/// Entry of a function, or its return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Entry,
    Return,
}

/// Attaches to all places of a file, for all processes that map it now or later. The link ends
/// when the descriptor is closed, also by death.
pub fn link_multi(
    program: BorrowedFd<'_>,
    path: &CStr,
    places: &Places,
    moment: Moment,
) -> io::Result<OwnedFd> {
    debug_assert_eq!(places.offsets.len(), places.cookies.len(), "a cookie for each place");
    let mut attribute = LinkCreate {
        prog_fd: program.as_raw_fd(),
        attach_type: bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32,
        path: path.as_ptr() as u64,
        offsets: places.offsets.as_ptr() as u64,
        cookies: places.cookies.as_ptr() as u64,
        count: count(places.offsets.len())?,
        multi_flags: u32::from(moment == Moment::Return),
        ..LinkCreate::default()
    };
    // SAFETY: the attribute points to the path and to `count` offsets and cookies, which outlive
    // the call.
    unsafe { create(bpf_cmd::BPF_LINK_CREATE, &mut attribute) }
}

/// Whether this kernel has such links: it then complains of what the link should attach to, which is a
/// folder. Older kernels load the programs all the same.
pub(crate) fn has_multi(program: BorrowedFd<'_>) -> bool {
    let places = Places { offsets: vec![1], cookies: vec![0] };
    link_multi(program, c"/", &places, Moment::Entry)
        .is_err_and(|it| it.raw_os_error() == Some(libc::EBADF))
}

/// Lets this process open as many files as it may. A hook that is attached for itself takes two, which
/// for a few libraries are more than the 1,024 that programs begin with.
pub(crate) fn raise_file_limit() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes to the structure, which outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: it reads the structure, which outlives the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Attaches to a raw tracepoint. The link ends as that of `link_multi` does.
pub(crate) fn link_tracepoint(program: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let mut attribute = RawTracepointOpen {
        name: name.as_ptr() as u64,
        prog_fd: program.as_raw_fd(),
        ..RawTracepointOpen::default()
    };
    // SAFETY: the attribute points to the name, which outlives the call.
    unsafe { create(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attribute) }
}

/// Makes a link outlive the descriptors that name it, until the file at `path` is removed.
pub(crate) fn pin(link: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let mut attribute =
        Object { pathname: path.as_ptr() as u64, bpf_fd: link.as_raw_fd(), ..Object::default() };
    // SAFETY: the attribute points to the path, which outlives the call.
    unsafe { call(bpf_cmd::BPF_OBJ_PIN, &mut attribute) }.map(drop)
}

/// What is pinned at `path`.
pub(crate) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let mut attribute = Object { pathname: path.as_ptr() as u64, ..Object::default() };
    // SAFETY: the attribute points to the path, which outlives the call.
    unsafe { create(bpf_cmd::BPF_OBJ_GET, &mut attribute) }
}

/// What the kernel tells about a link.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LinkInfo {
    Tracepoint,
    /// `None` on kernels before 6.8, which do not tell the places.
    Multi(Option<Places>, Moment),
    Other,
}

/// `expected`: how many places the link should have.
pub(crate) fn link_info(link: BorrowedFd<'_>, expected: usize) -> io::Result<LinkInfo> {
    let mut places = Places { offsets: vec![0; expected], cookies: vec![0; expected] };
    let mut answer = LinkAnswer {
        offsets: places.offsets.as_mut_ptr() as u64,
        cookies: places.cookies.as_mut_ptr() as u64,
        count: count(expected)?,
        ..LinkAnswer::default()
    };
    let kind = ask(link, &mut answer)?;
    if kind == bpf_link_type::BPF_LINK_TYPE_RAW_TRACEPOINT as u32 {
        return Ok(LinkInfo::Tracepoint);
    }
    if kind != bpf_link_type::BPF_LINK_TYPE_UPROBE_MULTI as u32 {
        return Ok(LinkInfo::Other);
    }
    let moment = if answer.flags & 1 == 1 { Moment::Return } else { Moment::Entry };
    places.offsets.truncate(answer.count as usize);
    places.cookies.truncate(answer.count as usize);
    // Nothing is hooked at the beginning of a file.
    let told = places.offsets.first().is_some_and(|it| *it != 0);
    Ok(LinkInfo::Multi(told.then_some(places), moment))
}

/// Asks again without room where the link is not of the kind that fills it.
fn ask(link: BorrowedFd<'_>, answer: &mut LinkAnswer) -> io::Result<u32> {
    let mut head = LinkAnswer::default();
    inquire(link, &mut head, LINK_HEAD)?;
    if head.kind == bpf_link_type::BPF_LINK_TYPE_UPROBE_MULTI as u32 {
        inquire(link, answer, size_of::<LinkAnswer>())?;
    }
    Ok(head.kind)
}

fn inquire(link: BorrowedFd<'_>, answer: &mut LinkAnswer, length: usize) -> io::Result<()> {
    let mut attribute = ObjectInfo {
        bpf_fd: link.as_raw_fd(),
        info_len: count(length)?,
        info: &raw mut *answer as u64,
    };
    // SAFETY: the answer has room for `length` bytes, and what it points to for `count` numbers.
    unsafe { call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attribute) }.map(drop)
}

/// Where a batched reading goes on. The kernel fills it; it has the size of a hash map's cursor.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(8))]
pub(crate) struct Cursor([u8; 8]);

/// One batch of a hash map: keys and values one behind the other, as the kernel lays them out.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) keys: Vec<u8>,
    pub(crate) values: Vec<u8>,
    key_bytes: usize,
    value_bytes: usize,
    room: usize,
}

/// What a batched reading found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Entries, and there may be more.
    Some(usize),
    /// The last entries.
    Last(usize),
    /// One bucket of the map is larger than the batch: it must grow.
    TooSmall,
}

impl Batch {
    pub(crate) fn new(key_bytes: usize, value_bytes: usize, room: usize) -> Self {
        // The kernel rounds the size of a value up to eight bytes.
        let value_bytes = value_bytes.next_multiple_of(8);
        Self {
            keys: vec![0; key_bytes * room],
            values: vec![0; value_bytes * room],
            key_bytes,
            value_bytes,
            room,
        }
    }

    pub(crate) fn grow(&mut self) {
        *self = Self::new(self.key_bytes, self.value_bytes, self.room * 2);
    }

    /// Fills the batch from where `cursor` stands; `None` starts.
    pub(crate) fn read(
        &mut self,
        map: BorrowedFd<'_>,
        cursor: &mut Option<Cursor>,
    ) -> io::Result<Found> {
        let before = *cursor;
        let mut after = Cursor::default();
        let mut attribute = LookupBatch {
            in_batch: before.as_ref().map_or(0, |it| &raw const *it as u64),
            out_batch: &raw mut after as u64,
            keys: self.keys.as_mut_ptr() as u64,
            values: self.values.as_mut_ptr() as u64,
            count: count(self.room)?,
            map_fd: map.as_raw_fd(),
            ..LookupBatch::default()
        };
        // SAFETY: keys and values have room for `count` entries, and both cursors outlive the call.
        let answer = unsafe { call(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attribute) };
        *cursor = Some(after);
        let entries = attribute.count as usize;
        match answer {
            Ok(_) => Ok(Found::Some(entries)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Found::Last(entries)),
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                *cursor = before;
                Ok(Found::TooSmall)
            }
            Err(error) => Err(error),
        }
    }
}

impl Batch {
    /// Every entry of a map, as keys and values. Entries that come or go meanwhile may be missed.
    pub(crate) fn scan(
        &mut self,
        map: BorrowedFd<'_>,
        mut each: impl FnMut(&[u8], &[u8]),
    ) -> io::Result<()> {
        let mut cursor = None;
        loop {
            let (count, last) = match self.read(map, &mut cursor)? {
                Found::Some(count) => (count, false),
                Found::Last(count) => (count, true),
                Found::TooSmall => {
                    self.grow();
                    continue;
                }
            };
            let keys = self.keys.chunks_exact(self.key_bytes).take(count);
            for (key, value) in keys.zip(self.values.chunks_exact(self.value_bytes)) {
                each(key, value);
            }
            if last {
                return Ok(());
            }
        }
    }
}

/// Copies the value of a key; `false` where there is none. Both have the sizes of the map.
pub(crate) fn get(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attribute = MapElement {
        map_fd: map.as_raw_fd(),
        key: key.as_ptr() as u64,
        value: value.as_mut_ptr() as u64,
        ..MapElement::default()
    };
    // SAFETY: key and value outlive the call, and the caller vouches for their sizes.
    let answer = unsafe { call(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attribute) };
    is_there(answer)
}

/// `false` where the key was not there.
pub(crate) fn remove(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    let mut attribute =
        MapElement { map_fd: map.as_raw_fd(), key: key.as_ptr() as u64, ..MapElement::default() };
    // SAFETY: the key outlives the call, and the caller vouches for its size.
    let answer = unsafe { call(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attribute) };
    is_there(answer)
}

fn is_there(answer: io::Result<RawFd>) -> io::Result<bool> {
    match answer {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn count(length: usize) -> io::Result<u32> {
    u32::try_from(length).map_err(io::Error::other)
}

/// # Safety
///
/// As for `call`, and the command returns a file descriptor.
unsafe fn create<T>(command: bpf_cmd, attribute: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches for the attribute.
    let descriptor = unsafe { call(command, attribute) }?;
    // SAFETY: the kernel made this descriptor for this call, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// # Safety
///
/// `T` is the beginning of the command's attribute, and what it points to outlives the call.
unsafe fn call<T>(command: bpf_cmd, attribute: &mut T) -> io::Result<RawFd> {
    let pointer = &raw mut *attribute;
    // SAFETY: the caller vouches for the attribute.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command as u32, pointer, size_of::<T>()) };
    match RawFd::try_from(answer) {
        Ok(answer) if answer >= 0 => Ok(answer),
        _ => Err(io::Error::last_os_error()),
    }
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: RawFd,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    ref_ctr_offsets: u64,
    cookies: u64,
    count: u32,
    multi_flags: u32,
    pid: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct MapElement {
    map_fd: RawFd,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct LookupBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: RawFd,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct RawTracepointOpen {
    name: u64,
    prog_fd: RawFd,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct Object {
    pathname: u64,
    bpf_fd: RawFd,
    file_flags: u32,
}

#[repr(C)]
struct ObjectInfo {
    bpf_fd: RawFd,
    info_len: u32,
    info: u64,
}

/// Type, id and program, which every link has.
const LINK_HEAD: usize = 12;

/// As of a link to many places.
#[repr(C)]
#[derive(Default)]
struct LinkAnswer {
    kind: u32,
    id: u32,
    prog_id: u32,
    padding: u32,
    path: u64,
    offsets: u64,
    ref_ctr_offsets: u64,
    cookies: u64,
    path_size: u32,
    count: u32,
    flags: u32,
    pid: u32,
}
