//! What the metrics say of one tenant, against what its workload says that it did.

use crate::scrape::Scrape;
use crate::tenant::Truth;
use crate::wait::check;

const LAUNCHES: &str = "gleaner_tenant_cuda_launches_total";

/// Launches, copies and waits, none of them sampled.
pub fn work_equals(scrape: &Scrape, tenant: &str, truth: &Truth) -> Result<(), String> {
    let kinds = [
        ("kernel", truth.kernels()),
        ("cooperative", truth.of("cuLaunchCooperativeKernel").calls),
        ("graph", truth.of("cuGraphLaunch").calls),
    ];
    for (kind, expected) in kinds {
        scrape.counts(LAUNCHES, &[("tenant", tenant), ("kind", kind)], expected)?;
    }
    let waits = "gleaner_tenant_cuda_synchronizations_total";
    scrape.counts(waits, &[("tenant", tenant)], truth.synchronizations())?;
    let sampled = "gleaner_tenant_cuda_sampled_seconds_total";
    let sampled = scrape.nanoseconds(sampled, &[("tenant", tenant)]);
    check(sampled == Some(0), || format!("not exact for {sampled:?} ns"))?;
    let directions = [
        ("host_to_device", ["cuMemcpyHtoD_v2", "cuMemcpyHtoDAsync_v2"]),
        ("device_to_host", ["cuMemcpyDtoH_v2", "cuMemcpyDtoHAsync_v2"]),
        ("device_to_device", ["cuMemcpyDtoD_v2", "cuMemcpyDtoDAsync_v2"]),
        ("unknown", ["cuMemcpy", "cuMemcpyAsync"]),
        ("peer", ["cuMemcpyPeer", "cuMemcpyPeerAsync"]),
    ];
    for (direction, symbols) in directions {
        let labels = [("tenant", tenant), ("direction", direction)];
        let [a, b] = symbols.map(|it| truth.of(it));
        scrape.counts("gleaner_tenant_cuda_copies_total", &labels, a.calls + b.calls)?;
        scrape.counts("gleaner_tenant_cuda_copied_bytes_total", &labels, a.bytes + b.bytes)?;
    }
    Ok(())
}

/// Functions of the driver that allocate memory of a kind.
const ALLOCATING: [(&str, &[&str]); 5] = [
    ("device", &["cuMemAlloc_v2", "cuMemAllocPitch_v2"]),
    ("managed", &["cuMemAllocManaged"]),
    ("virtual", &["cuMemCreate"]),
    ("stream_ordered", &["cuMemAllocAsync", "cuMemAllocFromPoolAsync"]),
    ("host", &["cuMemAllocHost_v2", "cuMemHostAlloc", "cuMemHostRegister_v2"]),
];

/// Every kind of memory, of a tenant none of whose calls has failed.
pub fn memory_equals(scrape: &Scrape, tenant: &str, truth: &Truth) -> Result<(), String> {
    let counts = |name: &str, labels: &[(&str, &str)], expected| {
        let labels = [&[("tenant", tenant)], labels].concat();
        scrape.counts(&format!("gleaner_tenant_cuda_{name}_total"), &labels, expected)
    };
    for (memory, symbols) in ALLOCATING {
        let (calls, bytes) = sum(truth, symbols);
        let result = if memory == "stream_ordered" { "asked" } else { "ok" };
        counts("allocations", &[("memory", memory), ("result", result)], calls)?;
        counts("allocated_bytes", &[("memory", memory)], bytes)?;
        // The driver's pool, and the buffers for copies, are given back by the end of the process.
        if !["stream_ordered", "device"].contains(&memory) {
            counts("freed_bytes", &[("memory", memory)], bytes)?;
        }
    }
    let plain: [(&str, &str, &[&str]); 4] = [
        ("maps", "mapped_bytes", &["cuMemMap"]),
        ("unmaps", "unmapped_bytes", &["cuMemUnmap"]),
        ("imports", "", &["cuMemImportFromShareableHandle", "cuIpcOpenMemHandle_v2"]),
        ("streams", "", &["cuStreamCreate", "cuStreamCreateWithPriority"]),
    ];
    for (name, bytes_name, symbols) in plain {
        let (calls, bytes) = sum(truth, symbols);
        counts(name, &[], calls)?;
        if !bytes_name.is_empty() {
            counts(bytes_name, &[], bytes)?;
        }
    }
    Ok(())
}

/// Calls and bytes of several functions.
fn sum(truth: &Truth, symbols: &[&str]) -> (u64, u64) {
    let counted = symbols.iter().map(|it| truth.of(it));
    counted.fold((0, 0), |(calls, bytes), it| (calls + it.calls, bytes + it.bytes))
}
