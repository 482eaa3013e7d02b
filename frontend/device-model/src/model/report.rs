//! The status of a device, for people and for monitoring.

use std::fmt;
use std::time::Duration;

use crate::mmio::Status;

/// A device's status.
///
/// Kicks and interrupts go between guest and backend by eventfd, and not through this program. The
/// report has what this program can know: every interrupt, because no other process reads that
/// eventfd; kicks that came as an access; and kicks that the backend has not taken yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    /// The device's id.
    pub id: u32,
    /// `Status`, as the guest reads it.
    pub status: Status,
    /// Whether a backend is connected.
    pub daemon: bool,
    /// Whether the guest's requests fail until it mounts anew, or resets a device that is broken.
    pub is_lost: bool,
    /// Requests that failed because their backend was lost or did not come, or the device broke.
    pub requests_failed: u64,
    /// How often a backend was connected.
    pub connections: u64,
    /// Accesses of the guest that were handled.
    pub accesses: u64,
    /// Accesses that could not be completed, or whose handler panicked.
    pub faults: u64,
    /// The longest time that a CPU of the guest has waited for this program, in microseconds.
    pub slowest_us: u64,
    /// How often the interrupt line was raised; `None` if the system does not report it.
    pub interrupts: Option<u64>,
    /// How often the device model itself raised it, for a change of configuration or status.
    pub own_interrupts: u64,
    /// Kicks that came as an access and were passed on.
    pub kicks_seen: u64,
    /// For each queue, the kicks that the backend has not taken yet; `None` if the system does not
    /// report them.
    pub kicks_waiting: Vec<Option<u64>>,
    /// How long the device has been served.
    pub uptime: Duration,
}

impl Report {
    /// The same as JSON, with stable names. What is not known is null.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let bits = self.status.iter_names().map(|(name, _)| name);
        serde_json::json!({
            "id": self.id,
            "status": self.status.bits(),
            "status_bits": bits.collect::<Vec<_>>(),
            "daemon_connected": self.daemon,
            "daemon_lost": self.is_lost,
            "connections": self.connections,
            "requests_failed": self.requests_failed,
            "accesses": self.accesses,
            "faults": self.faults,
            "slowest_us": self.slowest_us,
            "interrupts": self.interrupts,
            "own_interrupts": self.own_interrupts,
            "kicks_seen": self.kicks_seen,
            "kicks_waiting": self.kicks_waiting,
            "uptime_s": self.uptime.as_secs(),
        })
    }
}

impl fmt::Display for Report {
    /// One line of names and values, separated by commas.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits: Vec<&str> = self.status.iter_names().map(|(name, _)| name).collect();
        let status = match bits.is_empty() {
            true => "reset".to_owned(),
            false => bits.join(" "),
        };
        let daemon = match (self.daemon, self.is_lost) {
            (true, _) => "connected",
            (false, true) => "lost",
            (false, false) => "absent",
        };
        let known = |count: &Option<u64>| count.map_or("unknown".to_owned(), |n| n.to_string());
        let waiting: Vec<String> = self.kicks_waiting.iter().map(known).collect();
        write!(
            f,
            "device {}: status {:#x} ({status}), daemon {daemon}, connections {}, \
             requests failed {}, accesses {}, faults {}, slowest {} us, interrupts {}, own \
             interrupts {}, kicks seen {}, kicks waiting {}, up {} s",
            self.id,
            self.status.bits(),
            self.connections,
            self.requests_failed,
            self.accesses,
            self.faults,
            self.slowest_us,
            known(&self.interrupts),
            self.own_interrupts,
            self.kicks_seen,
            waiting.join(" "),
            self.uptime.as_secs()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_is_one_line_that_makes_no_number_up() {
        let report = Report {
            id: 3,
            status: Status::ACKNOWLEDGE | Status::DRIVER,
            daemon: false,
            is_lost: false,
            requests_failed: 0,
            connections: 1,
            accesses: 85,
            faults: 0,
            slowest_us: 412,
            interrupts: None,
            own_interrupts: 2,
            kicks_seen: 4,
            kicks_waiting: vec![Some(1), None],
            uptime: Duration::from_millis(12_300),
        };
        assert_eq!(
            report.to_string(),
            "device 3: status 0x3 (ACKNOWLEDGE DRIVER), daemon absent, connections 1, \
             requests failed 0, accesses 85, faults 0, slowest 412 us, interrupts unknown, own \
             interrupts 2, kicks seen 4, kicks waiting 1 unknown, up 12 s"
        );
        let object = report.json();
        assert_eq!(
            object["status_bits"],
            serde_json::json!(["ACKNOWLEDGE", "DRIVER"])
        );
        assert_eq!(object["kicks_waiting"], serde_json::json!([1, null]));
        assert_eq!(object["interrupts"], serde_json::Value::Null);
        let reset = Report {
            status: Status::empty(),
            ..report
        };
        assert!(reset.to_string().contains("status 0x0 (reset)"));
    }
}
