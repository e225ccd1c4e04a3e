//! What every gRPC tool expects of the collector's port.

use std::collections::BTreeSet;
use std::time::Duration;

use tests::collector::Collector;
use tests::wait::{check, eventually};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

const SOON: Duration = Duration::from_secs(10);

const SERVICES: [&str; 3] =
    ["gleaner.capacity.v1.Capacity", "gleaner.telemetry.v1.Telemetry", "gleaner.usage.v1.Usage"];

#[test]
fn health_is_told_for_the_whole_and_for_each_service() {
    let collector = Collector::start();
    for service in [&[""], &SERVICES[..]].concat() {
        eventually(SOON, &format!("{service:?} is serving"), || {
            let request = HealthCheckRequest { service: service.to_owned() };
            let answer = collector
                .ask(|channel| async move { HealthClient::new(channel).check(request).await })?;
            check(answer.status() == ServingStatus::Serving, || format!("{answer:?}"))
        });
    }
}

#[test]
fn reflection_lists_the_services() {
    let collector = Collector::start();
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answer: ServerReflectionResponse = collector
        .ask(|channel| async move {
            let requests = tokio_stream::once(request);
            let mut client = ServerReflectionClient::new(channel);
            let answers = client.server_reflection_info(requests).await?;
            let first = answers.into_inner().message().await?;
            Ok(tonic::Response::new(first.expect("each request has an answer")))
        })
        .expect("reflection answers");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let listed: BTreeSet<String> = list.service.into_iter().map(|it| it.name).collect();
    for service in SERVICES {
        assert!(listed.contains(service), "{listed:?}");
    }
}
