//! Copies of the driver library are found where processes map them, whatever they are called, and
//! what only pretends to be one is refused.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::clock;
use agent::config;
use agent::samplers::cuda::Tracer;
use agent::samplers::cuda::library::coverage::{HookState, LibraryCoverage};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tests::wait::{check, eventually};

use crate::coverage::{again, is_privileged, later};
use crate::rig::{Build, Node, Workload, exited, only, without_wait};

const SOON: Duration = Duration::from_secs(20);
/// Later than a file is kept that nobody maps, and than one is left alone that could not be hooked.
const MUCH_LATER_NS: u64 = 70_000_000_000;

/// A tracer that knows of no driver but what processes show.
fn tracer(caps: impl FnOnce(&mut config::Cuda)) -> Tracer {
    let max_libraries_per_tenant = config::Cuda::default().max_libraries_per_tenant;
    let mut config =
        config::Cuda { max_libraries_per_tenant, ..Node::without_driver().config(64, None) };
    caps(&mut config);
    Tracer::start(&config, Path::new("/proc"))
}

/// Looks again and again, each time as if the next round were due, until `holds`.
fn found(tracer: &mut Tracer, holds: impl Fn(&[LibraryCoverage]) -> bool) -> Vec<LibraryCoverage> {
    let mut at = clock::boot();
    let mut last = Vec::new();
    eventually(SOON, "the libraries are as expected", || {
        at = at + 6_000_000_000;
        tracer.read(at);
        last = tracer.coverage();
        check(holds(&last), || format!("{:#?}", summaries(&last)))
    });
    last
}

fn summaries(found: &[LibraryCoverage]) -> Vec<String> {
    let summary = |it: &LibraryCoverage| {
        format!("{:?} of {:?}: {:?}, {} hooks", it.path, it.found_in, it.error, it.attached())
    };
    found.iter().map(summary).collect()
}

fn of<'a>(found: &'a [LibraryCoverage], path: &Path) -> Option<&'a LibraryCoverage> {
    found.iter().find(|it| it.path == path)
}

fn is_hooked(found: &[LibraryCoverage], path: &Path) -> bool {
    of(found, path).is_some_and(|it| it.error.is_none() && it.attached() == it.wanted())
}

fn is_refused(found: &[LibraryCoverage], path: &Path, why: &str) -> bool {
    of(found, path).and_then(|it| it.error.as_ref()).is_some_and(|it| it.contains(why))
}

/// A copy of the driver in its own folder, under any name.
fn copy(node: &Node, name: &str) -> PathBuf {
    let path = node.folder().join(name);
    let folder = path.parent().expect("it is in a folder");
    std::fs::create_dir_all(folder).expect("the folder can be made");
    std::fs::copy(node.library(), &path).expect("the library can be copied");
    let scenario = folder.join(gpu_state::scenario::NAME);
    if !scenario.exists() {
        let own = node.folder().join(gpu_state::scenario::NAME);
        std::fs::copy(own, scenario).expect("the scenario can be copied");
    }
    path
}

#[test]
fn a_copy_in_use_is_hooked_and_then_counts() {
    let node = Node::new(Build::Cmp);
    let mut tracer = tracer(|_| {});
    assert!(!tracer.read(clock::boot()).tracing.on);
    let mut workload =
        Workload::on_gpu(node.folder(), &node.library(), "--launches-per-second 500 --hold");
    found(&mut tracer, |it| is_hooked(it, &node.library()));
    let before = workload.truth().called("cuLaunchKernel");
    let (_, counted) = eventually_counted(&mut tracer, workload.tgid());
    assert!(counted.fully_hooked && before > 0, "{counted:?}");
    let truth = node.run("--rounds 4");
    assert_eq!(without_wait(exited(&mut tracer, truth.tgid).1.counts), truth.counts());
}

fn eventually_counted(
    tracer: &mut Tracer,
    tgid: u32,
) -> (agent::model::ids::ProcessId, agent::model::readings::CudaProcess) {
    let mut last = None;
    eventually(SOON, "the process counts and is fully hooked", || {
        let readings = tracer.read(clock::boot());
        last =
            readings.processes.iter().find(|(it, _)| it.tgid == tgid).map(|(a, b)| (*a, b.clone()));
        let whole =
            last.as_ref().is_some_and(|(_, it)| it.fully_hooked && it.counts.launches() > 0);
        check(whole, || format!("{last:?}"))
    });
    last.expect("it was just seen")
}

#[test]
fn the_silence_of_a_process_that_the_gpu_lists_is_evidence_once_its_copy_is_hooked() {
    let node = Node::new(Build::Push);
    let mut tracer = tracer(|_| {});
    // Holds no device: only the GPU's own list leads to it.
    let workload = node.start("--hold");
    let listed = [workload.tgid()].into();
    eventually(SOON, "its copy is hooked", || {
        tracer.track(&listed);
        let readings = tracer.read(clock::boot());
        let (_, process) = only(&readings, workload.tgid());
        check(process.fully_hooked && process.counts.is_zero(), || format!("{process:?}"))
    });
}

#[test]
fn a_bind_mount_is_the_same_file() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let inside = node.folder().join("inside");
    std::fs::create_dir(&inside).unwrap();
    let script = format!("mount --bind {} {}", node.folder().display(), inside.display());
    let library = inside.join("libcuda.so.1");
    let workload = Workload::in_namespace(node.folder(), &script, &library, "--rounds 4");
    let truth = workload.finish();
    assert_eq!(without_wait(exited(&mut tracer, truth.tgid).1.counts), truth.counts());
    assert!(of(&tracer.coverage(), &library).is_none(), "{:?}", summaries(&tracer.coverage()));
}

#[test]
fn equal_inode_numbers_on_two_devices_are_two_files() {
    let node = Node::new(Build::Cmp);
    let inside = node.folder().join("inside");
    std::fs::create_dir(&inside).unwrap();
    let library = inside.join("libcuda.so.1");
    let script = format!(
        "mount -t tmpfs none {inside}; cp {folder}/libcuda.so.1 {folder}/{scenario} {inside}",
        inside = inside.display(),
        folder = node.folder().display(),
        scenario = gpu_state::scenario::NAME
    );
    let start = || {
        Workload::in_namespace(node.folder(), &script, &library, "--launches-per-second 100 --hold")
    };
    let workloads = [start(), start()];
    let mut tracer = tracer(|_| {});
    let at_path = |it: &&LibraryCoverage| it.path == library && it.attached() > 0;
    let both = found(&mut tracer, |it| it.iter().filter(at_path).count() == 2);
    let files: Vec<_> = both.iter().filter(at_path).filter_map(|it| it.file).collect();
    assert_eq!(files[0].inode, files[1].inode, "the case that this test is about");
    assert_ne!(files[0], files[1]);
    for it in &workloads {
        eventually_counted(&mut tracer, it.tgid());
    }
}

#[test]
fn names_say_nothing_about_what_is_hooked() {
    let node = Node::new(Build::Push);
    let names = [
        "a b/libcuda.so.1",
        "a\nb/libcuda.so.1",
        "x (deleted)/libcuda.so.1",
        "libcuda.so.1 (deleted)",
    ];
    let paths = names.map(|it| copy(&node, it));
    let workloads = paths.each_ref().map(|it| Workload::on_gpu(node.folder(), it, "--hold"));
    let mut tracer = tracer(|_| {});
    found(&mut tracer, |it| paths.iter().all(|path| is_hooked(it, path)));
    drop(workloads);
}

#[test]
fn a_file_that_has_no_name_any_more_is_hooked_and_let_go_when_nobody_maps_it() {
    let node = Node::new(Build::Cmp);
    let path = copy(&node, "gone/libcuda.so.1");
    let workload = Workload::on_gpu(node.folder(), &path, "--launches-per-second 500 --hold");
    std::fs::remove_file(&path).unwrap();
    let mut tracer = tracer(|_| {});
    let named = node.folder().join("gone/libcuda.so.1 (deleted)");
    found(&mut tracer, |it| is_hooked(it, &named));
    eventually_counted(&mut tracer, workload.tgid());
    workload.kill();
    let mut at = clock::boot();
    eventually(SOON, "it is let go", || {
        at = at + MUCH_LATER_NS;
        tracer.read(at);
        let coverage = tracer.coverage();
        check(of(&coverage, &named).is_none(), || format!("{:?}", summaries(&coverage)))
    });
}

#[test]
fn a_file_that_is_written_anew_in_its_place_is_decoded_anew() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let other = Node::new(Build::Push);
    let bytes = std::fs::read(other.library()).unwrap();
    let file = OpenOptions::new().write(true).truncate(true).open(node.library()).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    tracer.read(later());
    let coverage = tracer.coverage();
    let own: Vec<_> = coverage.iter().filter(|it| it.path == node.library()).collect();
    assert_eq!(own.len(), 1, "{:?}", summaries(&coverage));
    let cheap = |it: &HookState| matches!(it, HookState::Attached { skip: 0, .. });
    assert!(own[0].hooks.iter().all(|it| cheap(&it.state)), "{:?}", own[0].hooks);
    let truth = node.run("--rounds 4");
    assert_eq!(without_wait(exited(&mut tracer, truth.tgid).1.counts), truth.counts());
}

#[test]
fn a_tenant_at_its_cap_gets_no_more_and_a_file_that_is_free_makes_room() {
    let node = Node::new(Build::Push);
    let paths = ["1", "2"].map(|it| copy(&node, &format!("{it}/libcuda.so.1")));
    let first = Workload::on_gpu(node.folder(), &paths[0], "--hold");
    let mut tracer = tracer(|it| it.max_libraries_per_tenant = 1);
    found(&mut tracer, |it| is_hooked(it, &paths[0]));
    let second = Workload::on_gpu(node.folder(), &paths[1], "--hold");
    let why = "cuda.max_libraries_per_tenant";
    found(&mut tracer, |it| is_refused(it, &paths[1], why) && is_hooked(it, &paths[0]));
    let tracing = tracer.read(clock::boot()).tracing;
    assert!(tracing.on && tracing.reason.contains(why), "{tracing:?}");
    first.kill();
    found(&mut tracer, |it| is_hooked(it, &paths[1]) && of(it, &paths[0]).is_none());
    drop(second);
}

#[test]
fn the_configured_driver_has_room_whatever_tenants_map() {
    let node = Node::without_driver();
    let other = Node::new(Build::Push);
    let config =
        config::Cuda { max_libraries: 1, max_libraries_per_tenant: 1, ..node.config(64, None) };
    let _workload = Workload::on_gpu(other.folder(), &other.library(), "--hold");
    let mut tracer = Tracer::start(&config, Path::new("/proc"));
    found(&mut tracer, |it| is_hooked(it, &other.library()));
    node.install(Build::Cmp);
    let why = "cuda.max_libraries)";
    found(&mut tracer, |it| {
        is_hooked(it, &node.library()) && is_refused(it, &other.library(), why)
    });
}

#[test]
fn what_calls_itself_the_driver_and_is_not_is_refused_with_a_reason() {
    let node = Node::new(Build::Push);
    let path = node.folder().join("fake/libcuda.so.1");
    std::fs::create_dir(path.parent().expect("it is in a folder")).unwrap();
    std::fs::copy("/bin/sleep", &path).unwrap();
    let mut sleeper = std::process::Command::new(&path)
        .arg("60")
        .stdin(File::open(gpu(&node)).unwrap())
        .spawn()
        .expect("a copy of `sleep` can be started");
    let mut tracer = tracer(|_| {});
    found(&mut tracer, |it| is_refused(it, &path, "its SONAME is \"\""));
    let tracing = tracer.read(clock::boot()).tracing;
    assert!(!tracing.on, "{tracing:?}");
    sleeper.kill().expect("it sleeps");
    sleeper.wait().expect("a child can be waited for");
}

/// A device of a GPU's name.
fn gpu(node: &Node) -> PathBuf {
    drop(Workload::on_gpu(node.folder(), &node.library(), ""));
    let path = node.folder().join("nvidia0");
    let kind = std::fs::metadata(&path).expect("the workload had it open").file_type();
    assert!(kind.is_char_device());
    path
}

#[test]
fn what_would_block_or_act_when_opened_is_not_opened() {
    let node = Node::without_driver();
    let library = node.library();
    let check = |expected: &str| {
        let tracing = node.idle_tracer(64).read(clock::boot()).tracing;
        assert!(!tracing.on && tracing.reason.contains(expected), "{expected}: {tracing:?}");
        std::fs::remove_file(&library).unwrap();
    };
    mkfifo(&library, Mode::S_IRWXU).unwrap();
    check("is not a regular file");
    std::os::unix::fs::symlink("/dev/zero", &library).unwrap();
    check("is not a regular file");
    File::create(&library).unwrap().set_len(1 << 40).unwrap();
    check("is not a regular file of at most");
    // All holes, and small enough to be looked at.
    File::create(&library).unwrap().set_len(1 << 28).unwrap();
    check("is not a 64-bit ELF file");
}

#[test]
fn a_library_that_claims_an_absurd_table_is_not_read() {
    let node = Node::new(Build::Push);
    let mut bytes = std::fs::read(node.library()).expect("it was just installed");
    let number = |bytes: &[u8], at: usize, length: usize| {
        let little = bytes[at..at + length].iter().rev();
        little.fold(0_usize, |sum, it| sum << 8 | usize::from(*it))
    };
    // The section headers of a 64-bit ELF file: where, of which size, and how many.
    let (start, size, count) =
        (number(&bytes, 0x28, 8), number(&bytes, 0x3a, 2), number(&bytes, 0x3c, 2));
    let (kind, length, dynamic_symbols) = (0x04, 0x20, 11);
    let header = (0..count).map(|it| start + it * size);
    let table = header.into_iter().find(|it| number(&bytes, it + kind, 4) == dynamic_symbols);
    let table = table.expect("a library has dynamic symbols");
    bytes[table + length..table + length + 8].copy_from_slice(&(24_u64 << 24).to_le_bytes());
    std::fs::write(node.library(), bytes).expect("it is ours");
    File::options().write(true).open(node.library()).unwrap().set_len(1 << 28).unwrap();
    let tracing = node.idle_tracer(64).read(clock::boot()).tracing;
    let says = "is not a 64-bit ELF file";
    assert!(!tracing.on && tracing.reason.contains(says), "{tracing:?}");
}

#[test]
fn without_the_capability_a_copy_is_opened_by_its_path_and_only_if_it_is_the_mapped_one() {
    const NAME: &str = "discovery::without_the_capability_a_copy_is_opened_by_its_path_and_only_if_it_is_the_mapped_one";
    if is_privileged() {
        return again(NAME, "-all,+bpf,+perfmon,+mknod,+dac_override");
    }
    let node = Node::new(Build::Cmp);
    let paths = ["named", "gone", "other"].map(|it| copy(&node, &format!("{it}/libcuda.so.1")));
    let workloads = paths.each_ref().map(|it| Workload::on_gpu(node.folder(), it, "--hold"));
    std::fs::remove_file(&paths[1]).unwrap();
    // What is mapped loses its name, and another file has the one that the kernel shows for it.
    std::fs::remove_file(&paths[2]).unwrap();
    let decoy = paths[2].with_file_name("libcuda.so.1 (deleted)");
    std::fs::copy(node.library(), &decoy).unwrap();
    let mut tracer = tracer(|_| {});
    let nameless = paths[1].with_file_name("libcuda.so.1 (deleted)");
    found(&mut tracer, |it| {
        is_hooked(it, &paths[0])
            && is_refused(it, &nameless, "CAP_CHECKPOINT_RESTORE")
            && is_refused(it, &decoy, "another file than the one that is mapped")
    });
    let tracing = tracer.read(clock::boot()).tracing;
    let says = "1 copies of the driver library cannot be opened: needs CAP_CHECKPOINT_RESTORE";
    assert!(tracing.on && tracing.reason.contains(says), "{tracing:?}");
    drop(workloads);
}
