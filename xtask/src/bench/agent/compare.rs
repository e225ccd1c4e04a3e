//! Whether both programs see the same node: else their costs do not compare.

use anyhow::{Context, ensure};

use super::scrape::{label, sum, values};

const MIB: f64 = 1_048_576.0;
/// By which two sums may differ.
const TOLERANCE: f64 = 0.01;

/// Every device with its size, every process, and the memory of all of them.
pub(super) fn check(gpus: u32, processes: u32, own: &str, other: &str) -> anyhow::Result<()> {
    let theirs = values(other, "gpu_memory_total_MiB");
    let ours = values(own, "gleaner_gpu_memory_total_bytes");
    let counts = [theirs.len(), ours.len()].map(|it| u32::try_from(it).unwrap_or(u32::MAX));
    ensure!(
        counts == [gpus; 2],
        "of {gpus} GPUs nvitop shows {}, the agent {}",
        counts[0],
        counts[1]
    );
    for (labels, mib) in theirs {
        let uuid = label(labels, "uuid").context("nvitop names its devices")?;
        let found = ours.iter().find(|(labels, _)| label(labels, "gpu_uuid") == Some(uuid));
        let (_, bytes) = found.with_context(|| format!("the agent does not show {uuid}"))?;
        ensure!(is_near(*bytes, mib * MIB), "{uuid} has {bytes} bytes, nvitop says {mib} MiB");
    }
    let listed = values(other, "process_gpu_memory_MiB").len();
    ensure!(
        u32::try_from(listed) == Ok(processes),
        "of {processes} processes nvitop shows {listed}"
    );
    let theirs = sum(other, "process_gpu_memory_MiB") * MIB;
    let ours = sum(own, "gleaner_tenant_gpu_memory_bytes");
    ensure!(is_near(ours, theirs), "processes hold {ours} bytes, nvitop says {theirs}");
    Ok(())
}

fn is_near(one: f64, other: f64) -> bool {
    (one - other).abs() <= TOLERANCE * one.max(other)
}

#[cfg(test)]
mod tests {
    use super::check;

    const OWN: &str = "gleaner_gpu_memory_total_bytes{gpu_uuid=\"GPU-1\"} 10485760\n\
                       gleaner_tenant_gpu_memory_bytes{tenant=\"t\"} 2097152\n";
    const OTHER: &str = "gpu_memory_total_MiB{uuid=\"GPU-1\"} 10.0\n\
                         process_gpu_memory_MiB{pid=\"7\"} 1.0\nprocess_gpu_memory_MiB{pid=\"8\"} 1.0\n";

    #[test]
    fn two_that_see_the_same_compare() {
        check(1, 2, OWN, OTHER).unwrap();
        check(
            1,
            0,
            "gleaner_gpu_memory_total_bytes{gpu_uuid=\"GPU-1\"} 10485760",
            "gpu_memory_total_MiB{uuid=\"GPU-1\"} 10.0",
        )
        .unwrap();
    }

    #[test]
    fn what_one_does_not_see_is_named() {
        let why = |gpus, processes, own: &str, other: &str| {
            check(gpus, processes, own, other).unwrap_err().to_string()
        };
        assert!(why(2, 2, OWN, OTHER).contains("of 2 GPUs"));
        assert!(why(1, 3, OWN, OTHER).contains("of 3 processes nvitop shows 2"));
        assert!(why(1, 2, &OWN.replace("GPU-1", "GPU-2"), OTHER).contains("does not show GPU-1"));
        assert!(why(1, 2, &OWN.replace("2097152", "1"), OTHER).contains("processes hold"));
    }
}
