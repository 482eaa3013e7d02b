//! A status as text for people.

use std::fmt::Write as _;
use std::time::Duration;

use super::model::{Guest, Operation, Status};

/// The whole status: the daemon, a line for each guest, and for each its operations.
pub fn table(status: &Status) -> String {
    if let Some(shares) = &status.shares {
        let shares: Vec<String> = shares.iter().map(table).collect();
        return shares.join("\n");
    }
    if let Some(reason) = &status.unavailable {
        return format!(
            "gangplankd: {:?} as {:?}: no numbers: {reason}\n",
            status.shared_dir, status.tag
        );
    }
    let (connected, lost) = status.connected_and_lost();
    let mut text = format!(
        "gangplankd {}: {:?} as {:?}, {} of at most {} guests, {} connections so far\n",
        status.program,
        status.shared_dir,
        status.tag,
        connected,
        status.max_guests,
        status.connections
    );
    if lost > 0 {
        let _ = writeln!(
            text,
            "{lost} sessions are kept for frontends that may reconnect"
        );
    }
    if let Some(storage) = &status.storage {
        let _ = writeln!(text, "storage: {storage}");
    }
    for guest in &status.guests {
        // Writing into a string does not fail.
        let _ = writeln!(text, "\n{}", summary(guest).join("\n"));
        if guest.operations.is_empty() {
            continue;
        }
        let _ = writeln!(
            text,
            "  {:<16}{:>11}{:>9}{:>11}{:>11}{:>10}{:>10}",
            "operation", "requests", "errors", "in", "out", "p50", "p99"
        );
        for operation in by_requests(guest) {
            let _ = writeln!(
                text,
                "  {:<16}{:>11}{:>9}{:>11}{:>11}{:>10}{:>10}",
                operation.opcode,
                operation.requests,
                operation.errors,
                bytes(operation.bytes_in),
                bytes(operation.bytes_out),
                percentile(operation, 50),
                percentile(operation, 99)
            );
        }
    }
    text
}

/// What a guest is, in lines.
pub(super) fn summary(guest: &Guest) -> Vec<String> {
    let number = guest.number;
    if let Some(reason) = &guest.unavailable {
        return vec![format!("guest {number}: no numbers: {reason}")];
    }
    let session = guest.session.as_ref().map(|session| {
        let (major, minor) = session.offered;
        let kernel = session.kernel_at_least.as_ref();
        let kernel = kernel.map_or(String::new(), |kernel| format!(", Linux {kernel} or later"));
        format!("FUSE {major}.{minor}{kernel}")
    });
    let restarts = &guest.restarts;
    let mut deaths = format!("  {} restarts", restarts.count);
    if let Some(reason) = &restarts.last_reason {
        let _ = write!(
            deaths,
            ", last: {reason}, pause {}, longest {}",
            duration(restarts.last_pause_ns),
            duration(restarts.longest_pause_ns)
        );
    }
    let oldest = guest.oldest.as_ref().map_or(String::new(), |oldest| {
        format!(", oldest {} for {}", oldest.opcode, duration(oldest.age_ns))
    });
    let rings = guest.rings.iter().map(|ring| ring.in_flight.to_string());
    let rings: Vec<String> = rings.collect();
    let lost = guest.disconnected_ns.map_or(String::new(), |time| {
        format!(", connection lost {} ago", duration(time))
    });
    vec![
        format!(
            "guest {number}: {}{lost}",
            session.unwrap_or_else(|| "no session".to_owned())
        ),
        format!(
            "  {} inodes, {} open files, {} locks, {} descriptors",
            guest.inodes, guest.open_files, guest.locks, guest.descriptors
        ),
        format!(
            "  {} requests in flight (by ring: {}){oldest}",
            guest.in_flight(),
            rings.join(" ")
        ),
        deaths,
    ]
}

/// The operations of a guest, the most frequent first.
pub(super) fn by_requests(guest: &Guest) -> Vec<&Operation> {
    let mut operations: Vec<_> = guest.operations.iter().collect();
    operations.sort_by_key(|operation| std::cmp::Reverse(operation.requests));
    operations
}

/// A percentile of an operation's durations.
pub(super) fn percentile(operation: &Operation, percent: u64) -> String {
    let latency = &operation.latency;
    match latency.percentile(percent) {
        Some(limit) => duration(limit),
        None if latency.measured > 0 => ">2.1s".to_owned(),
        None => "-".to_owned(),
    }
}

/// A duration in three digits.
pub(super) fn duration(nanoseconds: u64) -> String {
    let duration = Duration::from_nanos(nanoseconds);
    match nanoseconds {
        0 => "0".to_owned(),
        1..1_000 => format!("{nanoseconds}ns"),
        1_000..1_000_000 => format!("{}us", nanoseconds / 1_000),
        1_000_000..1_000_000_000 => format!("{}ms", duration.as_millis()),
        _ => format!("{:.1}s", duration.as_secs_f64()),
    }
}

/// A number of bytes in a binary unit.
pub(super) fn bytes(bytes: u64) -> String {
    scaled(
        bytes,
        1024,
        &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"],
    )
}

/// A number in thousands.
pub(super) fn count(number: u64) -> String {
    scaled(number, 1000, &["", "k", "M", "G", "T", "P", "E"])
}

fn scaled(number: u64, step: u64, units: &[&str]) -> String {
    let (mut whole, mut tenth, mut unit) = (number, 0, 0);
    while whole >= step && unit + 1 < units.len() {
        tenth = whole % step * 10 / step;
        whole /= step;
        unit += 1;
    }
    match unit {
        0 => format!("{whole}{}", units[0]),
        _ => format!("{whole}.{tenth}{}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{Latency, Oldest, Restarts, Ring, Session};
    use super::*;

    #[test]
    fn a_guest_is_told_in_words() {
        let guest = Guest {
            number: 3,
            session: Some(Session {
                offered: (7, 39),
                spoken: (7, 39),
                flags: 0,
                kernel_at_least: Some("6.6".to_owned()),
            }),
            inodes: 12,
            rings: vec![
                Ring::default(),
                Ring {
                    in_flight: 2,
                    running: 1,
                },
            ],
            oldest: Some(Oldest {
                opcode: "FSYNC".to_owned(),
                age_ns: 1_500_000_000,
            }),
            restarts: Restarts {
                count: 1,
                last_reason: Some("signal 9".to_owned()),
                last_pause_ns: 3_000_000,
                longest_pause_ns: 3_000_000,
                ..Restarts::default()
            },
            disconnected_ns: Some(2_000_000_000),
            operations: vec![Operation {
                opcode: "READ".to_owned(),
                requests: 1000,
                bytes_out: 3 << 20,
                latency: Latency {
                    measured: 2,
                    sum_ns: 0,
                    buckets: vec![1, 0, 0, 1, 0],
                },
                ..Operation::default()
            }],
            ..Guest::default()
        };
        let status = Status {
            guests: vec![guest, Guest::unavailable(4, "its next worker is starting")],
            ..Status::empty()
        };
        let text = table(&status);
        for part in [
            "1 of at most 0 guests",
            "1 sessions are kept for frontends that may reconnect",
            "guest 3: FUSE 7.39, Linux 6.6 or later, connection lost 2.0s ago",
            "12 inodes",
            "2 requests in flight (by ring: 0 2), oldest FSYNC for 1.5s",
            "1 restarts, last: signal 9, pause 3ms",
            "READ                   1000        0         0B     3.0MiB     256ns       2us",
            "guest 4: no numbers: its next worker is starting",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
        assert!(
            text.lines()
                .all(|line| line.len() <= 80 || line.starts_with("gangplankd"))
        );
    }

    #[test]
    fn numbers_have_units() {
        assert_eq!(bytes(1023), "1023B");
        assert_eq!(bytes(1536), "1.5KiB");
        assert_eq!(bytes(u64::MAX), "15.9EiB");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_250_000), "1.2M");
        assert_eq!(duration(256), "256ns");
        assert_eq!(duration(u64::MAX), "18446744073.7s");
    }
}
