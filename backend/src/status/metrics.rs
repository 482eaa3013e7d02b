//! A status as OpenMetrics text.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::model::{Guest, Operation, Status};
use crate::storage::Storage;
use crate::storage::kind::Reach;

/// The media type of the text.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Writes the metrics of `status`, with the end mark.
///
/// # Errors
/// The text cannot be written.
pub fn encode(text: &mut String, status: Status) -> fmt::Result {
    let mut registry = Registry::with_prefix("gangplank");
    registry.register_collector(Box::new(Daemon(status)));
    text::encode(text, &registry)
}

/// The names of all metrics as Prometheus stores them.
#[must_use]
pub fn names() -> Vec<String> {
    let guests = vec![Guest {
        operations: vec![Operation {
            latency: super::model::Latency {
                buckets: vec![0],
                ..Default::default()
            },
            ..Operation::default()
        }],
        session: Some(super::model::Session::default()),
        ..Guest::default()
    }];
    let mut text = String::new();
    let status = Status {
        guests,
        storage: Some(Storage::default()),
        ..Status::empty()
    };
    // Writing into a string does not fail.
    let _ = encode(&mut text, status);
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let names = samples.filter_map(|line| line.split(['{', ' ']).next());
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[derive(Debug)]
struct Daemon(Status);

type Labels = Vec<(&'static str, String)>;

/// Metrics of each guest: name, help, unit, value.
type OfGuest = (&'static str, &'static str, Option<Unit>, fn(&Guest) -> f64);

/// Metrics of each operation of a guest.
type OfOperation = (
    &'static str,
    &'static str,
    Option<Unit>,
    fn(&Operation) -> u64,
);

const GAUGES: &[OfGuest] = &[
    (
        "guest_up",
        "1 if the guest's numbers could be read",
        None,
        |guest| f64::from(u8::from(guest.unavailable.is_none())),
    ),
    (
        "guest_inodes",
        "Inodes that the guest knows",
        None,
        |guest| number(guest.inodes),
    ),
    (
        "guest_open_files",
        "Files and directories that the guest has open",
        None,
        |guest| number(guest.open_files),
    ),
    (
        "guest_locks",
        "Descriptors for the guest's locks",
        None,
        |guest| number(guest.locks),
    ),
    (
        "guest_descriptors",
        "Descriptors of inodes, open files and locks",
        None,
        |guest| number(guest.descriptors),
    ),
    (
        "guest_requests_in_flight",
        "Requests taken off the rings and not returned",
        None,
        |guest| number(guest.in_flight()),
    ),
    (
        "guest_oldest_request",
        "Age of the oldest request that is served",
        Some(Unit::Seconds),
        |guest| seconds(guest.oldest.as_ref().map_or(0, |oldest| oldest.age_ns)),
    ),
    (
        "guest_last_pause",
        "Length of the last pause between two workers",
        Some(Unit::Seconds),
        |guest| seconds(guest.restarts.last_pause_ns),
    ),
    (
        "guest_longest_pause",
        "Length of the longest pause",
        Some(Unit::Seconds),
        |guest| seconds(guest.restarts.longest_pause_ns),
    ),
];

const COUNTERS: &[OfGuest] = &[
    (
        "guest_worker_deaths",
        "Workers of the guest that died",
        None,
        |guest| number(guest.restarts.count),
    ),
    (
        "guest_paused",
        "Sum of all pauses",
        Some(Unit::Seconds),
        |guest| seconds(guest.restarts.paused_ns),
    ),
];

const OPERATION_COUNTERS: &[OfOperation] = &[
    (
        "requests",
        "Requests that were answered",
        None,
        |operation| operation.requests,
    ),
    (
        "request_errors",
        "Requests whose reply was an error",
        None,
        |operation| operation.errors,
    ),
    (
        "request_received",
        "Bytes of requests, headers included",
        Some(Unit::Bytes),
        |operation| operation.bytes_in,
    ),
    (
        "request_sent",
        "Bytes of replies, headers included",
        Some(Unit::Bytes),
        |operation| operation.bytes_out,
    ),
];

#[allow(
    clippy::cast_precision_loss,
    reason = "metrics are floating-point numbers"
)]
fn number(number: u64) -> f64 {
    number as f64
}

fn seconds(nanoseconds: u64) -> f64 {
    number(nanoseconds) / 1e9
}

impl Daemon {
    fn labels(&self, guest: &Guest) -> Labels {
        vec![
            ("guest", guest.number.to_string()),
            ("tag", self.0.tag.clone()),
        ]
    }

    fn of_daemon(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let gauge = MetricType::Gauge;
        let labels: Labels = vec![
            ("version", self.0.program.clone()),
            ("tag", self.0.tag.clone()),
        ];
        encoder
            .encode_descriptor("daemon", "The daemon", None, MetricType::Info)?
            .encode_info(&labels)?;
        if let Some(storage) = &self.0.storage {
            let reach = match storage.reach {
                Reach::ThisHost => "this_host",
                Reach::Hosts => "hosts",
                Reach::Unknown => "unknown",
            };
            let labels: Labels = vec![
                ("file_system", storage.file_system.clone()),
                ("source", storage.source.clone()),
                ("reach", reach.to_owned()),
                ("tag", self.0.tag.clone()),
            ];
            encoder
                .encode_descriptor(
                    "storage",
                    "What the share is stored on",
                    None,
                    MetricType::Info,
                )?
                .encode_info(&labels)?;
        }
        let guests = number(self.0.guests.len() as u64);
        encoder
            .encode_descriptor("guests", "Guests that are connected", None, gauge)?
            .encode_gauge(&guests)?;
        let help = "Most guests at a time";
        encoder
            .encode_descriptor("guests_limit", help, None, MetricType::Gauge)?
            .encode_gauge(&number(self.0.max_guests))?;
        let help = "Connections, refused ones included";
        encoder
            .encode_descriptor("connections", help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, f64>(&self.0.connections, None)
    }

    fn of_guests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, unit, value) in GAUGES {
            let mut metric =
                encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            for guest in &self.0.guests {
                let labels = self.labels(guest);
                metric.encode_family(&labels)?.encode_gauge(&value(guest))?;
            }
        }
        for (name, help, unit, value) in COUNTERS {
            let mut metric =
                encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for guest in self.readable() {
                let labels = self.labels(guest);
                metric
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, f64>(&value(guest), None)?;
            }
        }
        let mut metric = encoder.encode_descriptor(
            "guest_session",
            "The FUSE session",
            None,
            MetricType::Info,
        )?;
        for guest in self.readable() {
            let Some(session) = &guest.session else {
                continue;
            };
            let labels = self.labels(guest);
            let version = |(major, minor): (u32, u32)| format!("{major}.{minor}");
            let info: Labels = vec![
                ("offered", version(session.offered)),
                ("spoken", version(session.spoken)),
                (
                    "kernel_at_least",
                    session.kernel_at_least.clone().unwrap_or_default(),
                ),
            ];
            metric.encode_family(&labels)?.encode_info(&info)?;
        }
        Ok(())
    }

    /// Counters of the others would seem to begin anew.
    fn readable(&self) -> impl Iterator<Item = &Guest> {
        let guests = self.0.guests.iter();
        guests.filter(|guest| guest.unavailable.is_none())
    }

    fn operations(&self) -> impl Iterator<Item = (Labels, &Operation)> {
        self.readable().flat_map(|guest| {
            guest.operations.iter().map(|operation| {
                let mut labels = self.labels(guest);
                labels.push(("opcode", operation.opcode.clone()));
                (labels, operation)
            })
        })
    }

    fn of_operations(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, unit, value) in OPERATION_COUNTERS {
            let mut metric =
                encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for (labels, operation) in self.operations() {
                metric
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, f64>(&value(operation), None)?;
            }
        }
        let help = "Duration of measured requests, one of 64 of each operation and thread";
        let unit = Unit::Seconds;
        let mut metric = encoder.encode_descriptor(
            "request_duration",
            help,
            Some(&unit),
            MetricType::Histogram,
        )?;
        for (labels, operation) in self.operations() {
            let latency = &operation.latency;
            let limits = latency.limits().map(|(limit, count)| {
                let limit = limit.map_or(f64::INFINITY, seconds);
                (limit, count)
            });
            let buckets: Vec<_> = limits.collect();
            metric
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(
                    seconds(latency.sum_ns),
                    latency.measured,
                    &buckets,
                    None,
                )?;
        }
        Ok(())
    }
}

impl Collector for Daemon {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.of_daemon(&mut encoder)?;
        self.of_guests(&mut encoder)?;
        self.of_operations(&mut encoder)
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::Latency;
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
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(!text.contains("deaths_total{guest=\"5\""));
        assert!(text.ends_with("# EOF\n"));
    }
}
