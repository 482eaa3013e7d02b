//! Tests of the OpenMetrics text.

use super::super::model::{Latency, Restarts};
use super::*;

#[test]
fn a_guest_is_told_with_its_labels_and_buckets_add_up() {
    let operation = Operation {
        opcode: "READ".to_owned(),
        requests: 40,
        errors: 2,
        bytes_in: 3200,
        bytes_out: 640,
        latency: Latency {
            measured: 3,
            sum_ns: 1500,
            buckets: vec![1, 0, 2],
        },
    };
    let guest = Guest {
        number: 4,
        operations: vec![operation],
        restarts: Restarts {
            count: 1,
            last_reason: Some("signal 9".to_owned()),
            ..Default::default()
        },
        ..Guest::default()
    };
    let status = Status {
        tag: "my\"fs".to_owned(),
        guests: vec![guest, Guest::unavailable(5, "it waits")],
        ..Status::empty()
    };
    let mut text = String::new();
    encode(&mut text, status).unwrap();
    let labels = r#"guest="4",tag="my\"fs",opcode="READ""#;
    for line in [
        "gangplank_guests 2.0".to_owned(),
        format!("gangplank_requests_total{{{labels}}} 40"),
        format!("gangplank_request_errors_total{{{labels}}} 2"),
        format!("gangplank_request_received_bytes_total{{{labels}}} 3200"),
        format!("gangplank_request_duration_seconds_count{{{labels}}} 3"),
        format!("gangplank_request_duration_seconds_bucket{{le=\"+Inf\",{labels}}} 3"),
        "gangplank_guest_up{guest=\"5\",tag=\"my\\\"fs\"} 0.0".to_owned(),
        "gangplank_guest_last_restart_info{reason=\"signal 9\",guest=\"4\",tag=\"my\\\"fs\"} 1"
            .to_owned(),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    assert!(!text.contains("deaths_total{guest=\"5\""));
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn numbers_of_several_shares_have_their_tags_under_one_descriptor() {
    let share = |tag: &str, unavailable: Option<&str>| Status {
        tag: tag.to_owned(),
        connections: 3,
        guests: vec![Guest::unavailable(1, "it waits")],
        unavailable: unavailable.map(str::to_owned),
        ..Status::empty()
    };
    let status = Status {
        shares: Some(vec![share("home", None), share("tools", Some("it starts"))]),
        ..Status::empty()
    };
    let mut text = String::new();
    encode(&mut text, status).unwrap();
    for line in [
        "gangplank_guests{tag=\"home\"} 1.0",
        "gangplank_connections_total{tag=\"home\"} 3",
        "gangplank_share_up{tag=\"home\"} 1.0",
        "gangplank_share_up{tag=\"tools\"} 0.0",
        "gangplank_guest_up{guest=\"1\",tag=\"home\"} 0.0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    assert!(!text.contains("gangplank_connections_total{tag=\"tools\"}"));
    let descriptors = text
        .lines()
        .filter(|line| *line == "# TYPE gangplank_guests gauge");
    assert_eq!(descriptors.count(), 1);
}
