//! The two configuration files of the demo: the embedded defaults, on loopback, in its folder.

use std::path::Path;

use toml::{Table, Value};

use crate::stage::node::Node;
use crate::stage::ports;

/// The daemons' default ports, or free ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) page: u16,
    pub(super) grpc: u16,
    pub(super) agent: u16,
}

impl Ports {
    pub(super) const DEFAULT: Self = Self { page: 9800, grpc: 9801, agent: 9810 };

    pub(super) fn choose() -> anyhow::Result<Self> {
        let Self { page, grpc, agent } = Self::DEFAULT;
        Ok(Self { page: ports::free(page)?, grpc: ports::free(grpc)?, agent: ports::free(agent)? })
    }
}

/// The collector's file. `blink` shows held capacity after a minute instead of five.
pub(super) fn collector(folder: &Path, ports: Ports) -> String {
    file([
        ("http", table([("listen", address(ports.page))])),
        ("grpc", table([("listen", address(ports.grpc))])),
        (
            "ledger",
            table([
                ("path", path(&folder.join("collector"))),
                ("min_free_bytes", Value::Integer(1 << 26)),
            ]),
        ),
        ("idle", table([("profile", text("blink"))])),
    ])
}

/// The agent's file. Real GPUs are found where drivers put them; whether a real node has an
/// allocator is not known here, a simulated one has none.
pub(super) fn agent(folder: &Path, ports: Ports, simulated: Option<&Node>) -> String {
    let collector = text(&format!("http://127.0.0.1:{}", ports.grpc));
    let always = [
        ("collector", table([("address", collector)])),
        ("http", table([("listen", address(ports.agent))])),
        ("spool", table([("path", path(&folder.join("agent")))])),
    ];
    let stand_ins = simulated.map(|node| {
        [
            ("nvml", table([("library", path(&node.nvml))])),
            ("cuda", table([("libraries", Value::Array(vec![path(&node.cuda)]))])),
            ("holders", table([("allocations", text("none"))])),
        ]
    });
    file(always.into_iter().chain(stand_ins.into_iter().flatten()))
}

fn file(tables: impl IntoIterator<Item = (&'static str, Value)>) -> String {
    let file: Table = tables.into_iter().map(|(name, it)| (name.to_owned(), it)).collect();
    file.to_string()
}

fn table<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Table(pairs.into_iter().map(|(name, it)| (name.to_owned(), it)).collect())
}

fn text(value: &str) -> Value {
    Value::String(value.to_owned())
}

fn path(value: &Path) -> Value {
    text(&value.to_string_lossy())
}

fn address(port: u16) -> Value {
    text(&format!("127.0.0.1:{port}"))
}

#[cfg(test)]
mod tests {
    use super::{Ports, agent, collector};
    use crate::stage::node::Node;
    use std::path::Path;

    #[test]
    fn the_daemons_find_each_other() {
        let folder = Path::new("/tmp/x y");
        let collector: toml::Table = collector(folder, Ports::DEFAULT).parse().unwrap();
        let agent: toml::Table = agent(folder, Ports::DEFAULT, None).parse().unwrap();
        assert_eq!(collector["grpc"]["listen"].as_str(), Some("127.0.0.1:9801"));
        assert_eq!(agent["collector"]["address"].as_str(), Some("http://127.0.0.1:9801"));
        assert_eq!(agent["spool"]["path"].as_str(), Some("/tmp/x y/agent"));
        assert!(!agent.contains_key("nvml"), "real libraries are where the defaults look");
    }

    #[test]
    fn simulated_gpus_are_named_by_path() {
        let node = Node { nvml: "/n/libnvidia-ml.so.1".into(), cuda: "/n/libcuda.so.1".into() };
        let agent: toml::Table =
            agent(Path::new("/f"), Ports::DEFAULT, Some(&node)).parse().unwrap();
        assert_eq!(agent["nvml"]["library"].as_str(), Some("/n/libnvidia-ml.so.1"));
        assert_eq!(agent["cuda"]["libraries"][0].as_str(), Some("/n/libcuda.so.1"));
        assert_eq!(agent["holders"]["allocations"].as_str(), Some("none"));
    }
}
