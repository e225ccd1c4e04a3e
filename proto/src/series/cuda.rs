//! Series of CUDA calls: which counter is in which family, under which label.
//!
//! What every hooked library counts is written also when it is 0. The rest has no series before its
//! first call: its hooks may not be there, and sixty series for each tenant would be a lot.

use crate::cuda::{Totals, is_of_memory};
use crate::exposition::{Labels, Text};
use crate::family::{Family, Label, Subject, names};
use crate::telemetry::v1::CudaCounter as C;

/// A family whose own label tells its members apart, and the members.
#[derive(Clone, Copy, Debug)]
struct Calls {
    family: Family,
    members: &'static [(&'static str, C)],
    /// The first member is written also when it is 0.
    from_zero: bool,
}

const LAUNCH_KINDS: [(&str, C); 4] = [
    ("kernel", C::KernelLaunches),
    ("cooperative", C::CooperativeLaunches),
    ("graph", C::GraphLaunches),
    ("host_function", C::HostFunctions),
];
const COPIED_BYTES: [(&str, C); 5] = [
    ("host_to_device", C::HostToDeviceBytes),
    ("device_to_host", C::DeviceToHostBytes),
    ("device_to_device", C::DeviceToDeviceBytes),
    ("unknown", C::UnknownBytes),
    ("peer", C::PeerBytes),
];

const KIND: Label = Label::of("kind", &names(&LAUNCH_KINDS));
const DIRECTION: Label = Label::of("direction", &names(&COPIED_BYTES));
const MEMORY_KIND: Label = Label::of("memory", &names(&RESULTS));

/// When there is no series, of hooks that are on wherever any are.
const NOTHING: &str = "nothing of the tenant was counted";
const NO_CALL: &str = "no such call of the tenant was counted";
const NO_MEMORY: &str = "memory calls of the tenant were not counted";
const NO_MEMORY_CALL: &str =
    "memory calls of the tenant were not counted, or there was none of these";
const NOT_ASKED: &str = "no such call of the tenant was counted: their hooks are on demand";
const NO_DEVICE: &str = "no call is known to have been made for the device";

const LAUNCHES: Calls = Calls {
    family: of_tenant(
        "gleaner_tenant_cuda_launches_total",
        "Launches through the CUDA driver by kind, counted in the Linux kernel. A graph counts once; a host function is no work for a GPU.",
    )
    .by(&[KIND])
    .in_unit("calls")
    .absent(NOTHING),
    members: &LAUNCH_KINDS,
    from_zero: true,
};

const ALLOCATIONS: Family =
    of_tenant("gleaner_tenant_cuda_allocations_total", "Allocations by kind of memory and result.")
        .by(&[MEMORY_KIND, Label::of("result", &["ok", "asked", "out_of_memory", "failed"])])
        .in_unit("calls")
        .absent(NO_MEMORY)
        .note("`asked`: calls for `stream_ordered` memory, whose result is not known.");
/// Of each kind of memory: what succeeded, what failed, and which part of that for want of memory.
const RESULTS: [(&str, [C; 3]); 5] = [
    ("device", [C::DeviceAllocations, C::DeviceFailed, C::DeviceOutOfMemory]),
    ("managed", [C::ManagedAllocations, C::ManagedFailed, C::ManagedOutOfMemory]),
    ("virtual", [C::VirtualAllocations, C::VirtualFailed, C::VirtualOutOfMemory]),
    (
        "stream_ordered",
        [C::StreamOrderedAllocations, C::StreamOrderedFailed, C::StreamOrderedOutOfMemory],
    ),
    ("host", [C::HostAllocations, C::HostFailed, C::HostOutOfMemory]),
];

const MEMORY: [Calls; 3] = [
    of_memory(
        of_tenant(
            "gleaner_tenant_cuda_allocated_bytes_total",
            "Bytes of successful allocations, by kind of memory.",
        ),
        &[
            ("device", C::DeviceAllocatedBytes),
            ("managed", C::ManagedAllocatedBytes),
            ("virtual", C::VirtualAllocatedBytes),
            ("stream_ordered", C::StreamOrderedAllocatedBytes),
            ("host", C::HostAllocatedBytes),
        ],
    ),
    of_memory(
        of_tenant(
            "gleaner_tenant_cuda_frees_total",
            "Successful releases of memory, by kind of memory.",
        )
        .in_unit("calls"),
        &[
            ("device", C::DeviceFrees),
            ("managed", C::ManagedFrees),
            ("virtual", C::VirtualFrees),
            ("stream_ordered", C::StreamOrderedFrees),
            ("host", C::HostFrees),
        ],
    ),
    of_memory(
        of_tenant(
            "gleaner_tenant_cuda_freed_bytes_total",
            "Bytes released of allocations that were seen, by kind of memory. Physical memory is when its last handle and mapping are gone.",
        ),
        &[
            ("device", C::DeviceFreedBytes),
            ("managed", C::ManagedFreedBytes),
            ("virtual", C::VirtualFreedBytes),
            ("stream_ordered", C::StreamOrderedFreedBytes),
            ("host", C::HostFreedBytes),
        ],
    ),
];

const COPIES: [Calls; 2] = [
    Calls {
        family: of_tenant("gleaner_tenant_cuda_copies_total", "Memory copy calls, by direction.")
            .by(&[DIRECTION])
            .in_unit("calls")
            .absent(NO_CALL),
        members: &[
            ("host_to_device", C::HostToDeviceCalls),
            ("device_to_host", C::DeviceToHostCalls),
            ("device_to_device", C::DeviceToDeviceCalls),
            ("unknown", C::UnknownCalls),
            ("peer", C::PeerCalls),
        ],
        from_zero: false,
    },
    Calls {
        family: of_tenant(
            "gleaner_tenant_cuda_copied_bytes_total",
            "Bytes asked to be copied, by direction.",
        )
        .by(&[DIRECTION])
        .absent(NO_CALL),
        members: &COPIED_BYTES,
        from_zero: false,
    },
];

/// Families of one counter, without a label of their own.
const PLAIN: [(Family, C); 20] = [
    (
        of_tenant(
            "gleaner_tenant_cuda_maps_total",
            "Times that physical memory was mapped into an address range.",
        )
        .in_unit("calls")
        .absent(NO_MEMORY_CALL),
        C::Maps,
    ),
    (
        of_tenant(
            "gleaner_tenant_cuda_mapped_bytes_total",
            "Bytes mapped into address ranges.",
        )
        .absent(NO_MEMORY_CALL),
        C::MappedBytes,
    ),
    (
        of_tenant("gleaner_tenant_cuda_unmaps_total", "Address ranges unmapped.")
            .in_unit("calls")
            .absent(NO_MEMORY_CALL),
        C::Unmaps,
    ),
    (
        of_tenant(
            "gleaner_tenant_cuda_unmapped_bytes_total",
            "Bytes of unmapped address ranges.",
        )
        .absent(NO_MEMORY_CALL),
        C::UnmappedBytes,
    ),
    (
        of_tenant(
            "gleaner_tenant_cuda_imports_total",
            "Memory of another process that was opened: not an allocation.",
        )
        .in_unit("calls")
        .absent(NO_MEMORY_CALL),
        C::Imports,
    ),
    (
        of_tenant(
            "gleaner_tenant_cuda_exports_total",
            "Physical memory that was handed out to other processes.",
        )
        .in_unit("calls")
        .absent(NO_MEMORY_CALL),
        C::Exports,
    ),
    (
        of_tenant(
            "gleaner_tenant_cuda_handle_retains_total",
            "Handles of physical memory that were asked for again: each is released once more.",
        )
        .in_unit("calls")
        .absent(NO_MEMORY_CALL),
        C::HandleRetains,
    ),
    (
        of_tenant("gleaner_tenant_cuda_memsets_total", "Calls that fill device memory.")
            .in_unit("calls")
            .absent(NOT_ASKED),
        C::Memsets,
    ),
    (
        of_tenant("gleaner_tenant_cuda_memset_bytes_total", "Bytes asked to be filled.")
            .absent(NOT_ASKED),
        C::MemsetBytes,
    ),
    (
        of_tenant(
            "gleaner_tenant_cuda_synchronizations_total",
            "Stream, event and context waits, counted when they begin.",
        )
        .in_unit("calls")
        .absent(NOTHING),
        C::Synchronizations,
    ),
    (
        of_tenant(
            "gleaner_tenant_cuda_synchronize_wait_seconds_total",
            "Time that threads spent in stream, event and context waits.",
        )
        .absent(NOTHING)
        .note("More than wall time where several threads wait."),
        C::SynchronizeWaitNs,
    ),
    (
        of_tenant(
            "gleaner_tenant_cuda_busy_upper_bound_seconds_total",
            "Time in which processes may have had work on a device: an upper bound, never utilisation.",
        )
        .absent("no work of the tenant was counted")
        .note("See below.")
        .experimental(),
        C::BusyUpperNs,
    ),
    (
        of_tenant("gleaner_tenant_cuda_event_records_total", "Events put into streams.")
            .in_unit("calls")
            .absent(NOT_ASKED),
        C::EventRecords,
    ),
    (
        of_tenant(
            "gleaner_tenant_cuda_queries_total",
            "Questions whether an event or a stream is done.",
        )
        .in_unit("calls")
        .absent(NOT_ASKED),
        C::Queries,
    ),
    (
        of_tenant(
            "gleaner_tenant_cuda_module_loads_total",
            "Modules and libraries that were loaded.",
        )
        .in_unit("calls")
        .absent(NOT_ASKED),
        C::ModuleLoads,
    ),
    (
        of_tenant(
            "gleaner_tenant_cuda_module_load_seconds_total",
            "Time that threads spent loading modules and libraries.",
        )
        .absent(NOT_ASKED),
        C::ModuleLoadNs,
    ),
    (
        of_tenant(
            "gleaner_tenant_cuda_contexts_total",
            "Contexts that were made or retained.",
        )
        .in_unit("calls")
        .absent(NO_CALL),
        C::Contexts,
    ),
    (
        of_tenant(
            "gleaner_tenant_cuda_contexts_destroyed_total",
            "Contexts that were destroyed or reset, and primary ones that nobody retained any more.",
        )
        .in_unit("calls")
        .absent(NO_CALL),
        C::ContextsDestroyed,
    ),
    (
        of_tenant("gleaner_tenant_cuda_streams_total", "Streams that were made.")
            .in_unit("calls")
            .absent(NO_CALL),
        C::Streams,
    ),
    (
        of_tenant(
            "gleaner_tenant_cuda_context_switches_total",
            "Calls that make another context of a thread the current one, or the one before.",
        )
        .in_unit("calls")
        .absent(NO_CALL),
        C::ContextSwitches,
    ),
];

const SAMPLED: Family = of_tenant(
    "gleaner_tenant_cuda_sampled_seconds_total",
    "Time of a tenant's CUDA activity in which not every hook was on: its counts are scaled or too small. While this does not rise, counts are exact.",
)
.absent(NOTHING);

const DEVICE: [Calls; 2] = [
    Calls {
        family: Family::counter(
            "gleaner_gpu_cuda_launches_total",
            "Launches by kind, where the device that they were made for is known.",
        )
        .of(Subject::Device)
        .by(&[KIND])
        .in_unit("calls")
        .absent(NO_DEVICE),
        members: &LAUNCH_KINDS,
        from_zero: true,
    },
    Calls {
        family: Family::counter(
            "gleaner_gpu_cuda_copied_bytes_total",
            "Bytes asked to be copied by direction, where the device is known.",
        )
        .of(Subject::Device)
        .by(&[DIRECTION])
        .absent(NO_DEVICE),
        members: &COPIED_BYTES,
        from_zero: false,
    },
];

const fn of_tenant(name: &'static str, help: &'static str) -> Family {
    Family::counter(name, help).of(Subject::Tenant)
}

const fn of_memory(family: Family, members: &'static [(&'static str, C)]) -> Calls {
    Calls { family: family.by(&[MEMORY_KIND]).absent(NO_MEMORY), members, from_zero: true }
}

pub(super) fn families() -> Vec<Family> {
    let plain = PLAIN.map(|(family, _)| family);
    let of = |calls: &[Calls]| calls.iter().map(|it| it.family).collect::<Vec<_>>();
    [
        vec![LAUNCHES.family, ALLOCATIONS],
        of(&MEMORY),
        of(&COPIES),
        plain.into(),
        vec![SAMPLED],
        of(&DEVICE),
    ]
    .concat()
}

/// Running totals of tenants, one entry per set of tenant labels.
pub fn write_tenants(text: &mut Text, tenants: &[(Labels, Totals)]) {
    write(text, &LAUNCHES, tenants);
    write_allocations(text, tenants);
    MEMORY.iter().chain(&COPIES).for_each(|it| write(text, it, tenants));
    for (family, counter) in PLAIN {
        text.family(family);
        for (labels, totals) in tenants {
            write_one(text, labels, totals, (counter, is_everywhere(counter)));
        }
    }
    text.family(SAMPLED);
    for (labels, totals) in tenants {
        text.seconds(labels, totals.sampled_ns);
    }
}

/// Running totals of devices, one entry per set of device labels.
pub fn write_devices(text: &mut Text, devices: &[(Labels, Totals)]) {
    DEVICE.iter().for_each(|it| write(text, it, devices));
}

fn write(text: &mut Text, calls: &Calls, all: &[(Labels, Totals)]) {
    text.family(calls.family);
    for (labels, totals) in all {
        for (index, (value, counter)) in calls.members.iter().enumerate() {
            let labels = labels.with_own(&calls.family, value);
            write_one(text, &labels, totals, (*counter, calls.from_zero && index == 0));
        }
    }
}

/// A call that failed for want of memory is not counted again among those that failed.
fn write_allocations(text: &mut Text, tenants: &[(Labels, Totals)]) {
    text.family(ALLOCATIONS);
    for (labels, totals) in tenants.iter().filter(|(_, it)| it.knows_memory()) {
        for (memory, [succeeded, failed, out_of_memory]) in RESULTS {
            let labels = labels.with("memory", memory);
            let count = |counter| totals.counts[counter];
            let others = count(failed).saturating_sub(count(out_of_memory));
            let is_first = succeeded == C::DeviceAllocations;
            // Whether a call on a stream succeeds shows later, and nobody waits for it.
            let is_awaited = succeeded != C::StreamOrderedAllocations;
            let known = if is_awaited { "ok" } else { "asked" };
            for (result, value) in [
                (known, count(succeeded)),
                ("out_of_memory", count(out_of_memory)),
                ("failed", others),
            ] {
                let shown = value > 0 || (is_first && result == known);
                text.count(&labels.with("result", result), shown.then_some(value));
            }
        }
    }
}

fn write_one(text: &mut Text, labels: &Labels, totals: &Totals, (counter, from_zero): (C, bool)) {
    let value = totals.counts[counter];
    let known = !is_of_memory(counter) || totals.knows_memory();
    if !known || (value == 0 && !from_zero) {
        return;
    }
    if is_time(counter) {
        text.seconds(labels, u128::from(value));
    } else {
        text.count(labels, Some(value));
    }
}

/// Hooked wherever anything is.
fn is_everywhere(counter: C) -> bool {
    matches!(counter, C::Synchronizations | C::SynchronizeWaitNs)
}

/// In nanoseconds.
fn is_time(counter: C) -> bool {
    matches!(counter, C::SynchronizeWaitNs | C::BusyUpperNs | C::ModuleLoadNs)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{write_devices, write_tenants};
    use crate::cuda::{Totals, counters};
    use crate::exposition::{Labels, Text};
    use crate::telemetry::v1::CudaCounter as C;

    fn tenant(memory_known: bool, counts: &[(C, u64)]) -> String {
        let mut totals = Totals { memory_known, ..Totals::default() };
        counts.iter().for_each(|(counter, value)| totals.counts[*counter] = *value);
        let mut text = Text::default();
        write_tenants(&mut text, &[(Labels::new([("tenant", "t")]), totals)]);
        text.into_body()
    }

    fn samples(body: &str) -> BTreeSet<&str> {
        let lines = body.lines().filter(|it| !it.starts_with('#'));
        lines.filter_map(|it| it.strip_prefix("gleaner_tenant_cuda_")).collect()
    }

    #[test]
    fn what_was_never_counted_has_no_series() {
        let expected = [
            "launches_total{tenant=\"t\",kind=\"kernel\"} 0",
            "sampled_seconds_total{tenant=\"t\"} 0.000000000",
            "synchronizations_total{tenant=\"t\"} 0",
            "synchronize_wait_seconds_total{tenant=\"t\"} 0.000000000",
        ];
        assert_eq!(samples(&tenant(false, &[])), BTreeSet::from(expected));
        let known = tenant(true, &[]);
        let more: Vec<_> = samples(&known).into_iter().filter(|it| it.contains("memory")).collect();
        let zero = "{tenant=\"t\",memory=\"device\"} 0";
        let expected = [
            format!("allocated_bytes_total{zero}"),
            "allocations_total{tenant=\"t\",memory=\"device\",result=\"ok\"} 0".to_owned(),
            format!("freed_bytes_total{zero}"),
            format!("frees_total{zero}"),
        ];
        assert_eq!(more, expected);
    }

    #[test]
    fn every_counter_is_shown() {
        for counter in counters() {
            let body = tenant(false, &[(counter, 7_919)]);
            let seconds = "0.000007919";
            let shown = samples(&body)
                .into_iter()
                .filter(|it| it.ends_with(" 7919") || it.ends_with(seconds))
                .count();
            assert_eq!(shown, 1, "{counter:?}");
        }
    }

    #[test]
    fn results_of_allocations_are_exclusive() {
        let body = tenant(true, &[(C::HostFailed, 5), (C::HostOutOfMemory, 2)]);
        for (result, count) in [("failed", 3), ("out_of_memory", 2)] {
            let sample = format!(
                "allocations_total{{tenant=\"t\",memory=\"host\",result=\"{result}\"}} {count}"
            );
            assert!(samples(&body).contains(sample.as_str()), "{body}");
        }
    }

    #[test]
    fn devices_have_their_own_families() {
        let mut totals = Totals::default();
        totals.counts[C::GraphLaunches] = 3;
        totals.counts[C::PeerBytes] = 11;
        let labels = Labels::new([("node", "n"), ("gpu_uuid", "GPU-1")]);
        let mut text = Text::default();
        write_devices(&mut text, &[(labels, totals)]);
        let body = text.into_body();
        for sample in [
            "launches_total{node=\"n\",gpu_uuid=\"GPU-1\",kind=\"graph\"} 3",
            "launches_total{node=\"n\",gpu_uuid=\"GPU-1\",kind=\"kernel\"} 0",
            "copied_bytes_total{node=\"n\",gpu_uuid=\"GPU-1\",direction=\"peer\"} 11",
        ] {
            assert!(body.contains(&format!("gleaner_gpu_cuda_{sample}\n")), "{body}");
        }
    }
}
