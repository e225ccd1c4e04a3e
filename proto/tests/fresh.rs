//! The Rust under `src/generated` is what the `.proto` files generate.
//!
//! A difference rewrites the files and fails: commit what it wrote.

use std::path::Path;

const FILES: [&str; 3] =
    ["telemetry/v1/telemetry.proto", "capacity/v1/capacity.proto", "usage/v1/usage.proto"];

#[test]
fn generated_code_is_fresh() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = root.join("src/generated");
    let descriptors = protox::compile(FILES, [root]).expect("the schema compiles");
    let out = std::env::temp_dir().join(format!("gleaner-proto-{}", std::process::id()));
    std::fs::create_dir_all(&out).expect("a folder for the output");
    tonic_prost_build::configure()
        .build_transport(false)
        .file_descriptor_set_path(out.join("descriptors.bin"))
        .out_dir(&out)
        .compile_fds(descriptors.clone())
        .expect("the schema generates");
    std::fs::write(out.join("descriptors.bin"), prost_bytes(&descriptors))
        .expect("the descriptors can be written");

    let mut stale = Vec::new();
    for entry in std::fs::read_dir(&out).expect("the output is readable") {
        let entry = entry.expect("the output is readable");
        let fresh = std::fs::read(entry.path()).expect("the output is readable");
        let target = committed.join(entry.file_name());
        if std::fs::read(&target).ok().as_deref() != Some(fresh.as_slice()) {
            std::fs::write(&target, &fresh).expect("the generated code can be rewritten");
            stale.push(target);
        }
    }
    std::fs::remove_dir_all(&out).expect("the output can be removed");
    assert!(stale.is_empty(), "these were stale and are rewritten, commit them: {stale:?}");
}

fn prost_bytes(descriptors: &impl prost::Message) -> Vec<u8> {
    descriptors.encode_to_vec()
}
