//! A status as OpenMetrics text.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::model::{Guest, Operation, Restarts, Session, Status};
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
    let daemon = match status.shares {
        Some(shares) => Daemon {
            shares,
            has_several: true,
        },
        None => Daemon {
            shares: vec![status],
            has_several: false,
        },
    };
    registry.register_collector(Box::new(daemon));
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
        session: Some(Session::default()),
        restarts: Restarts {
            last_reason: Some(String::new()),
            ..Default::default()
        },
        ..Guest::default()
    }];
    let one = Status {
        guests,
        storage: Some(Storage::default()),
        ..Status::empty()
    };
    let several = Status {
        shares: Some(vec![one.clone()]),
        ..Status::empty()
    };
    let mut text = String::new();
    for status in [one, several] {
        // Writing into a string does not fail.
        let _ = encode(&mut text, status);
    }
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let names = samples.filter_map(|line| line.split(['{', ' ']).next());
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The shares of a daemon.
#[derive(Debug)]
struct Daemon {
    shares: Vec<Status>,
    /// Whether numbers of a share have its tag.
    has_several: bool,
}

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
        "guest_disconnected",
        "For how long the guest's connection has been lost while its session is kept; 0 if it is \
         connected",
        Some(Unit::Seconds),
        |guest| seconds(guest.disconnected_ns.unwrap_or_default()),
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

/// What words tell of each guest: name, help, labels.
type InfoOfGuest = (&'static str, &'static str, fn(&Guest) -> Option<Labels>);

const INFOS: &[InfoOfGuest] = &[
    ("guest_session", "The FUSE session", |guest| {
        let session = guest.session.as_ref()?;
        let version = |(major, minor): (u32, u32)| format!("{major}.{minor}");
        let kernel = session.kernel_at_least.clone();
        Some(vec![
            ("offered", version(session.offered)),
            ("spoken", version(session.spoken)),
            ("kernel_at_least", kernel.unwrap_or_default()),
        ])
    }),
    (
        "guest_last_restart",
        "Why the last worker of the guest ended, if another one follows",
        |guest| Some(vec![("reason", guest.restarts.last_reason.clone()?)]),
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

/// The labels of a guest's numbers.
fn labels(share: &Status, guest: &Guest) -> Labels {
    vec![
        ("guest", guest.number.to_string()),
        ("tag", share.tag.clone()),
    ]
}

/// Numbers of a share: name, help, value.
type OfShare = (&'static str, &'static str, fn(&Status) -> u64);

const SHARE_GAUGES: &[OfShare] = &[
    ("guests", "Guests that are connected", |share| {
        share.connected_and_lost().0
    }),
    (
        "guests_disconnected",
        "Guests whose connection is lost and whose session is kept",
        |share| share.connected_and_lost().1,
    ),
    ("guests_limit", "Most guests at a time", |share| {
        share.max_guests
    }),
];

impl Daemon {
    fn of_daemon(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut info = encoder.encode_descriptor("daemon", "The daemon", None, MetricType::Info)?;
        for share in &self.shares {
            let tag = ("tag", share.tag.clone());
            let labels: Labels = vec![("version", share.program.clone()), tag];
            info.encode_info(&labels)?;
        }
        let help = "What the share is stored on";
        let mut info = encoder.encode_descriptor("storage", help, None, MetricType::Info)?;
        for share in self.readable_shares() {
            let Some(storage) = &share.storage else {
                continue;
            };
            let reach = match storage.reach {
                Reach::ThisHost => "this_host",
                Reach::Hosts => "hosts",
                Reach::Unknown => "unknown",
            };
            let labels: Labels = vec![
                ("file_system", storage.file_system.clone()),
                ("source", storage.source.clone()),
                ("reach", reach.to_owned()),
                ("tag", share.tag.clone()),
            ];
            info.encode_info(&labels)?;
        }
        if self.has_several {
            let help = "1 if the share's processes have told their numbers";
            let mut metric =
                encoder.encode_descriptor("share_up", help, None, MetricType::Gauge)?;
            for share in &self.shares {
                let is_up = f64::from(u8::from(share.unavailable.is_none()));
                metric
                    .encode_family(&self.labels_of(share))?
                    .encode_gauge(&is_up)?;
            }
        }
        for (name, help, value) in SHARE_GAUGES {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for share in self.readable_shares() {
                metric
                    .encode_family(&self.labels_of(share))?
                    .encode_gauge(&number(value(share)))?;
            }
        }
        let help = "Connections, refused ones included";
        let mut metric =
            encoder.encode_descriptor("connections", help, None, MetricType::Counter)?;
        for share in self.readable_shares() {
            metric
                .encode_family(&self.labels_of(share))?
                .encode_counter::<NoLabelSet, _, f64>(&share.connections, None)?;
        }
        Ok(())
    }

    /// The labels of a share's numbers.
    fn labels_of(&self, share: &Status) -> Labels {
        match self.has_several {
            true => vec![("tag", share.tag.clone())],
            false => Vec::new(),
        }
    }

    /// Counters of the others would seem to begin anew.
    fn readable_shares(&self) -> impl Iterator<Item = &Status> {
        let shares = self.shares.iter();
        shares.filter(|share| share.unavailable.is_none())
    }

    /// All guests, with their shares.
    fn guests(&self) -> impl Iterator<Item = (&Status, &Guest)> {
        let shares = self.shares.iter();
        shares.flat_map(|share| share.guests.iter().map(move |guest| (share, guest)))
    }

    fn of_guests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, unit, value) in GAUGES {
            let mut metric =
                encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            for (share, guest) in self.guests() {
                let labels = labels(share, guest);
                metric.encode_family(&labels)?.encode_gauge(&value(guest))?;
            }
        }
        for (name, help, unit, value) in COUNTERS {
            let mut metric =
                encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for (share, guest) in self.readable() {
                let labels = labels(share, guest);
                metric
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, f64>(&value(guest), None)?;
            }
        }
        for (name, help, info) in INFOS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Info)?;
            for (share, guest) in self.readable() {
                if let Some(info) = info(guest) {
                    let labels = labels(share, guest);
                    metric.encode_family(&labels)?.encode_info(&info)?;
                }
            }
        }
        Ok(())
    }

    /// Counters of the others would seem to begin anew.
    fn readable(&self) -> impl Iterator<Item = (&Status, &Guest)> {
        let guests = self.guests();
        guests.filter(|(_, guest)| guest.unavailable.is_none())
    }

    fn operations(&self) -> impl Iterator<Item = (Labels, &Operation)> {
        self.readable().flat_map(|(share, guest)| {
            guest.operations.iter().map(move |operation| {
                let mut labels = labels(share, guest);
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
mod tests;
