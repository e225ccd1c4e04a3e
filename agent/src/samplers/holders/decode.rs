//! Whose process this is, from the names of its cgroups and its user. Texts in, values out.
//!
//! What lies below a user's own slice speaks for that user only: a user may make any name there.
//! `names.rs` makes names printable.

use std::sync::Arc;

use crate::model::ids::{Holder, HolderKind};
use crate::samplers::holders::names;

/// Length of a container's id in every runtime that follows Docker.
const CONTAINER_ID: usize = 64;
/// What people know a container by.
const SHORT_ID: usize = 12;

/// What one cgroup path says, from the least specific to the most.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Workload {
    /// Nothing: the process's own user.
    Nothing,
    /// Below this user's slice.
    User(u32),
    /// A service or scope of the system's service manager.
    Unit(String),
    Container(String),
    Pod {
        uid: String,
        container: Option<String>,
    },
    Slurm {
        user: Option<u32>,
        job: String,
        step: Option<String>,
    },
}

// === impl Workload ===

impl Workload {
    /// The most specific answer of a `/proc/PID/cgroup`. On a host with both hierarchies the unified
    /// one comes first and is often empty; among equal answers the first line counts.
    pub(crate) fn of_cgroup(text: &str) -> Self {
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_by_key(|it| !it.starts_with("0::"));
        let paths = lines.into_iter().filter_map(|it| it.splitn(3, ':').nth(2));
        // The kernel's mark of a group that is gone, and its last process not yet.
        let paths = paths.map(|it| it.strip_suffix(" (deleted)").unwrap_or(it));
        paths
            .map(Self::of_path)
            .fold(Self::Nothing, |best, next| if next.rank() > best.rank() { next } else { best })
    }

    /// The user whose name the holder needs.
    pub(crate) fn user(&self, process_uid: Option<u32>) -> Option<u32> {
        match self {
            Self::Nothing => process_uid,
            Self::User(uid) => Some(*uid),
            Self::Slurm { user, .. } => user.or(process_uid),
            Self::Unit(_) | Self::Container(_) | Self::Pod { .. } => None,
        }
    }

    /// Who holds, and who answers for it; `None` where only a user could and it is not known.
    /// `user` is the number and, where there is one, the name of `self.user()`.
    pub(crate) fn holder(&self, user: Option<(u32, &str)>) -> Option<Holder> {
        let holder = match self {
            Self::Nothing | Self::User(_) => {
                let (uid, name) = user?;
                named(HolderKind::User, &uid.to_string(), name)
            }
            Self::Unit(unit) => {
                let name = unit.strip_suffix(".service").filter(|it| !it.is_empty());
                named(HolderKind::Unit, unit, name.unwrap_or(unit))
            }
            Self::Container(id) => Holder {
                container: Some(text(short(id))),
                ..named(HolderKind::Container, id, short(id))
            },
            Self::Pod { uid, container } => {
                let id = container.as_ref().map_or(uid.clone(), |it| format!("{uid}/{it}"));
                Holder {
                    pod: Some(text(uid)),
                    container: container.as_deref().map(|it| text(short(it))),
                    ..named(HolderKind::Pod, &id, &format!("pod-{uid}"))
                }
            }
            Self::Slurm { job, step, .. } => {
                let id = step.as_ref().map_or(job.clone(), |it| format!("{job}.{it}"));
                named(HolderKind::SlurmStep, &id, user?.1)
            }
        };
        Some(holder)
    }

    pub(crate) fn of_path(path: &str) -> Self {
        // containerd without systemd joins slice, runtime and id by colons.
        // Seen from another cgroup namespace a path starts with steps upwards.
        let parts = path.split(['/', ':']).filter(|it| !it.is_empty() && *it != "..");
        let parts: Vec<&str> = parts.collect();
        user_slice(&parts)
            .or_else(|| slurm(&parts))
            .or_else(|| pod(&parts))
            .or_else(|| parts.iter().find_map(|it| container_id(it)).map(Self::Container))
            .or_else(|| lxc(&parts))
            .or_else(|| unit(&parts))
            .unwrap_or(Self::Nothing)
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Nothing => 0,
            Self::User(_) => 1,
            Self::Unit(_) => 2,
            Self::Container(_) => 3,
            Self::Pod { .. } => 4,
            Self::Slurm { .. } => 5,
        }
    }
}

/// `user.slice/user-1000.slice/…`: sessions, the user's own services, rootless containers. Only at
/// the top: further down it is a container's own.
fn user_slice(parts: &[&str]) -> Option<Workload> {
    let top = parts.iter().find(|it| **it != "user.slice")?;
    let uid = top.strip_prefix("user-")?.strip_suffix(".slice")?;
    uid.parse().ok().map(Workload::User)
}

/// `slurm/uid_U/job_J/step_S`, `slurm_NODE/…`, `slurmstepd.scope/job_J/step_S`.
fn slurm(parts: &[&str]) -> Option<Workload> {
    let root = parts.iter().position(|it| {
        *it == "slurm" || it.starts_with("slurm_") || it.ends_with("slurmstepd.scope")
    })?;
    let below = &parts[root + 1..];
    let value = |prefix: &str| below.iter().find_map(|it| it.strip_prefix(prefix));
    let job = value("job_").filter(|it| it.bytes().all(|it| it.is_ascii_digit()))?;
    Some(Workload::Slurm {
        user: value("uid_").and_then(|it| it.parse().ok()),
        job: name(job)?,
        step: value("step_").and_then(name),
    })
}

/// `kubepods/…/podUID/ID` and `kubepods-…-podUID.slice/RUNTIME-ID.scope`; from inside a cgroup
/// namespace the parts above the pod may be missing.
fn pod(parts: &[&str]) -> Option<Workload> {
    let (at, uid) = parts.iter().enumerate().find_map(|(at, part)| Some((at, pod_uid(part)?)))?;
    let container = parts[at + 1..].iter().find_map(|it| container_id(it));
    Some(Workload::Pod { uid, container })
}

/// A UUID, or the 32 digits that a static pod has; systemd wants its dashes as underscores.
fn pod_uid(part: &str) -> Option<String> {
    let uid = match part.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod").map(|(_, uid)| uid)?,
        None => part.strip_prefix("pod")?,
    };
    let uid = uid.replace('_', "-");
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    let dashes = uid.bytes().filter(|it| *it == b'-').count();
    (digits == 32 && digits + dashes == uid.len() && matches!(dashes, 0 | 4)).then_some(uid)
}

/// `ID`, `docker-ID.scope`, `libpod-ID`, `cri-containerd-ID.scope` …
fn container_id(part: &str) -> Option<String> {
    let stem = part.strip_suffix(".scope").unwrap_or(part);
    let id = stem.rsplit_once('-').map_or(stem, |(_, id)| id);
    let is_id = id.len() == CONTAINER_ID && id.bytes().all(|it| it.is_ascii_hexdigit());
    is_id.then(|| id.to_owned())
}

/// `lxc.payload.NAME`, `lxc/NAME`.
fn lxc(parts: &[&str]) -> Option<Workload> {
    let payload = parts.iter().find_map(|it| it.strip_prefix("lxc.payload."));
    let below = || parts.iter().skip_while(|it| **it != "lxc").nth(1).copied();
    payload.or_else(below).and_then(name).map(Workload::Container)
}

/// The outermost service; its own cgroups below it are its own affair.
fn unit(parts: &[&str]) -> Option<Workload> {
    let is_unit = |it: &&&str| it.ends_with(".service") || it.ends_with(".scope");
    let unit = parts.iter().find(is_unit).filter(|it| **it != "init.scope")?;
    name(unit).map(Workload::Unit)
}

fn named(kind: HolderKind, id: &str, tenant: &str) -> Holder {
    Holder { kind, id: text(id), tenant: text(tenant), namespace: None, pod: None, container: None }
}

fn short(id: &str) -> &str {
    id.get(..SHORT_ID).filter(|_| id.len() == CONTAINER_ID).unwrap_or(id)
}

fn text(name: &str) -> Arc<str> {
    names::printable(name).into()
}

fn name(raw: &str) -> Option<String> {
    (!raw.is_empty()).then(|| raw.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::Workload;
    use crate::model::ids::{Holder, HolderKind};

    const ID: &str = "0f5a9f4b1c3d2e4f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7";
    const POD: &str = "6c7c1b1e-26a8-4f0e-9a57-2d1c1b0a9f8e";

    fn holder(cgroup: &str) -> Holder {
        let workload = Workload::of_cgroup(cgroup);
        let uid = workload.user(Some(1001)).unwrap_or(0);
        let name = if uid == 1000 { "ada".to_owned() } else { format!("u{uid}") };
        workload.holder(Some((uid, &name))).unwrap()
    }

    /// `ID` and `POD` stand for real ones in both texts.
    fn check(cgroup: &str, kind: HolderKind, id: &str, tenant: &str) {
        let fill = |it: &str| {
            it.replace("ID", ID).replace("POD", POD).replace("P_O_D", &POD.replace('-', "_"))
        };
        let holder = holder(&fill(cgroup));
        let got = (holder.kind, &*holder.id, &*holder.tenant);
        assert_eq!(got, (kind, &*fill(id), &*fill(tenant)), "{cgroup}");
    }

    #[test]
    fn pods() {
        let check = |cgroup: &str| check(cgroup, HolderKind::Pod, "POD/ID", "pod-POD");
        check("0::/kubepods/burstable/podPOD/ID");
        check("0::/kubepods/podPOD/ID");
        check("11:memory:/kubepods/besteffort/podPOD/ID\n0::/");
        check(
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podP_O_D.slice/\
             cri-containerd-ID.scope",
        );
        check("0::/kubepods.slice/kubepods-podP_O_D.slice/crio-ID.scope/container");
        check("0::/system.slice/containerd.service/kubepods-podP_O_D.slice:cri-containerd:ID");
        check("0::/../../kubepods-besteffort-podP_O_D.slice/cri-containerd-ID.scope");
        // A cluster inside of a container, and a container inside of a pod.
        check(&format!("0::/docker/{}/kubelet/kubepods/podPOD/ID", "a".repeat(64)));
        check(&format!("0::/kubepods/podPOD/ID/docker/{}", "a".repeat(64)));
    }

    #[test]
    fn a_pod_has_a_container_or_not() {
        let own = |cgroup: String| holder(&cgroup).container.as_deref().map(str::to_owned);
        assert_eq!(own(format!("0::/kubepods/pod{POD}/{ID}")), Some("0f5a9f4b1c3d".to_owned()));
        assert_eq!(own(format!("0::/kubepods/pod{POD}")), None);
        let uid = "2f1e0d9c8b7a69584736251403f2e1d0";
        check(&format!("0::/kubepods/pod{uid}"), HolderKind::Pod, uid, &format!("pod-{uid}"));
    }

    #[test]
    fn slurm_steps() {
        let check = |cgroup, id, tenant| check(cgroup, HolderKind::SlurmStep, id, tenant);
        check("4:memory:/slurm/uid_1000/job_71/step_0/task_3", "71.0", "ada");
        check("4:freezer:/slurm_n01/uid_1000/job_71/step_batch", "71.batch", "ada");
        check("0::/system.slice/slurmstepd.scope/job_71/step_0/user/task_0", "71.0", "u1001");
        check("0::/system.slice/n01_slurmstepd.scope/job_71/step_extern", "71.extern", "u1001");
        check("0::/system.slice/slurmstepd.scope/job_71", "71", "u1001");
        // A hybrid host: the unified hierarchy names only the daemon.
        check(
            "4:cpuset:/slurm/uid_1000/job_7/step_1\n0::/system.slice/slurmd.service",
            "7.1",
            "ada",
        );
        // Slurm inside of a pod.
        check(
            "0::/kubepods/podPOD/ID/system.slice/slurmstepd.scope/job_71/step_0",
            "71.0",
            "u1001",
        );
    }

    #[test]
    fn containers() {
        let check = |cgroup| check(cgroup, HolderKind::Container, "ID", "0f5a9f4b1c3d");
        check("0::/system.slice/docker-ID.scope");
        check("0::/docker/ID");
        check("5:devices:/docker/ID\n0::/");
        check("0::/machine.slice/libpod-ID.scope/container");
        check("0::/system.slice/cri-containerd-ID.scope");
        check("0::/docker/ID/user.slice/user-1000.slice/session-1.scope");
    }

    #[test]
    fn units_and_users() {
        use HolderKind::{Container, Unit, User};
        check("0::/system.slice/ollama.service", Unit, "ollama.service", "ollama");
        check("0::/system.slice/x.service/worker-1", Unit, "x.service", "x");
        check("0::/system.slice/x.service (deleted)", Unit, "x.service", "x");
        check("0::/system.slice/vllm@7.service", Unit, "vllm@7.service", "vllm@7");
        check("0::/system.slice/run-u12.scope", Unit, "run-u12.scope", "run-u12.scope");
        check("1:name=systemd:/system.slice/x.service\n0::/", Unit, "x.service", "x");
        check("0::/system.slice/.service", Unit, ".service", ".service");
        check("0::/lxc.payload.lab/ns", Container, "lab", "lab");
        check("0::/lxc/lab/init.scope", Container, "lab", "lab");
        check("0::/user.slice/user-1000.slice/session-3.scope", User, "1000", "ada");
        check("0::/user.slice/user-1000.slice/user@1000.service/app.slice", User, "1000", "ada");
        check("0::/../user-1000.slice/session-3.scope", User, "1000", "ada");
        check("0::/init.scope", User, "1001", "u1001");
        check("0::/", User, "1001", "u1001");
        check("4:memory:/custom/a22a99f6\n0::/", User, "1001", "u1001");
        check("", User, "1001", "u1001");
        check("no cgroup file at all", User, "1001", "u1001");
    }

    /// Whoever owns a slice may make any name below it, and stays who they are.
    #[test]
    fn a_user_cannot_pass_for_another_tenant() {
        for name in ["podPOD/ID", "docker-ID.scope", "slurmstepd.scope/job_1/step_0", "x.service"] {
            let path = format!("0::/user.slice/user-1000.slice/user@1000.service/{name}");
            check(&path, HolderKind::User, "1000", "ada");
        }
    }

    #[test]
    fn a_user_who_is_not_known_is_not_invented() {
        assert_eq!(Workload::Nothing.user(None), None);
        assert_eq!(Workload::Nothing.holder(None), None);
    }

    proptest! {
        #[test]
        fn any_text_has_a_tenant(cgroup in any::<String>(), user in "\\PC{1,300}") {
            let holder = Workload::of_cgroup(&cgroup).holder(Some((1, &user))).unwrap();
            assert!(!holder.tenant.is_empty() && holder.tenant.len() <= 128);
            assert!(!holder.id.is_empty() && holder.id.len() <= 128);
        }

        /// Paths from the parts that the rules look at, in any order.
        #[test]
        fn any_path_has_a_tenant(parts in prop::collection::vec(
            "(slurm|slurm_n|slurmstepd.scope|job_[0-9]{0,3}|step_.?|uid_[0-9]{0,12}|pod[0-9a-f-]{0,40}|\
              [a-z-]{0,4}[0-9a-f]{64}(.scope)?|.{0,3}.service|lxc|lxc.payload.|user.slice|\
              user-[0-9]{0,11}.slice|kubepods-pod[0-9a-f_]{30,40}.slice|\\.\\.)", 0..6)
        ) {
            let cgroup = format!("0::/{}", parts.join("/"));
            let holder = Workload::of_cgroup(&cgroup).holder(Some((1, "x"))).unwrap();
            assert!(!holder.tenant.is_empty() && !holder.id.is_empty(), "{cgroup}");
        }
    }
}
