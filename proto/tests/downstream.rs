//! What a collector can say to an agent: a closed list of fields.
//!
//! Nothing in it changes what an agent measures. A new field is a decision: numbers need a hard
//! bound in the agent, texts are only logged. Then it is added here.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};

const PACKAGE: &str = ".gleaner.telemetry.v1.";

const EXPECTED: [&str; 17] = [
    "Ack.through: uint64",
    "DeliverResponse.ack: message",
    "DeliverResponse.reject: message",
    "DeliverResponse.resume: message",
    "DeliverResponse.welcome: message",
    "Limits.max_batch_bytes: uint32",
    "Limits.max_in_flight: uint32",
    "LiveSummary.updates: uint64",
    "Reject.code: enum",
    "Reject.reason: string",
    "Reject.retry_after_ms: uint32",
    "Reject.what_to_do: string",
    "Resume.next: uint64",
    "Welcome.cursor: uint64",
    "Welcome.epoch: uint64",
    "Welcome.ledger_id: bytes",
    "Welcome.limits: message",
];

#[test]
fn only_pacing_and_positions_flow_to_the_agent() {
    let schemas = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
    let telemetry = schemas.file.iter().find(|it| it.package() == "gleaner.telemetry.v1").unwrap();
    let messages: BTreeMap<&str, &DescriptorProto> =
        telemetry.message_type.iter().map(|it| (it.name(), it)).collect();
    let answers = telemetry.service.iter().flat_map(|it| &it.method).map(|it| it.output_type());

    let mut found = BTreeSet::new();
    for answer in answers {
        collect(local(answer), &messages, &mut found);
    }
    let expected: BTreeSet<String> = EXPECTED.into_iter().map(str::to_owned).collect();
    assert_eq!(found, expected);
}

fn collect(name: &str, messages: &BTreeMap<&str, &DescriptorProto>, found: &mut BTreeSet<String>) {
    for field in &messages[name].field {
        let kind = field.r#type().as_str_name().trim_start_matches("TYPE_").to_lowercase();
        let is_new = found.insert(format!("{name}.{}: {kind}", field.name()));
        if is_new && field.r#type() == Type::Message {
            collect(local(field.type_name()), messages, found);
        }
    }
}

fn local(type_name: &str) -> &str {
    type_name.strip_prefix(PACKAGE).expect("answers are made of the package's own messages")
}
