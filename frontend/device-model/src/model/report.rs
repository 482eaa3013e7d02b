//! How a device stands, for people and for whoever watches over it.

use std::fmt;
use std::time::Duration;

use crate::mmio::Status;

/// What there is to tell of a device.
///
/// Kicks and interrupts go between guest and daemon by eventfd, past this program. What is told of them is what can be known:
/// of interrupts each, as nobody else takes them off their eventfd; of kicks those that came as an access after all, and
/// those that the daemon has not taken yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    /// The device.
    pub id: u32,
    /// `Status` as its guest reads it.
    pub status: Status,
    /// Whether a daemon is connected.
    pub daemon: bool,
    /// How often a daemon was connected.
    pub connections: u64,
    /// Accesses of the guest that were handled.
    pub accesses: u64,
    /// Those among them that went wrong.
    pub faults: u64,
    /// How long a CPU of the guest stood still for the slowest of them at most, in microseconds, on this program's account.
    pub slowest_us: u64,
    /// How often the interrupt line was raised; none where the system does not tell.
    pub interrupts: Option<u64>,
    /// How often of these by the device model itself, for a change of configuration or status.
    pub own_interrupts: u64,
    /// Kicks that came as an access and were passed on.
    pub kicks_seen: u64,
    /// Kicks of each queue that nobody has taken yet; none where the system does not tell.
    pub kicks_waiting: Vec<Option<u64>>,
    /// How long it has been served.
    pub uptime: Duration,
}

impl fmt::Display for Report {
    /// One line of names and values, separated by commas.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits: Vec<&str> = self.status.iter_names().map(|(name, _)| name).collect();
        let status = match bits.is_empty() {
            true => "reset".to_owned(),
            false => bits.join(" "),
        };
        let daemon = match self.daemon {
            true => "connected",
            false => "absent",
        };
        let known = |count: &Option<u64>| count.map_or("unknown".to_owned(), |n| n.to_string());
        let waiting: Vec<String> = self.kicks_waiting.iter().map(known).collect();
        write!(
            f,
            "device {}: status {:#x} ({status}), daemon {daemon}, connections {}, accesses {}, faults {}, slowest {} us, \
             interrupts {}, own interrupts {}, kicks seen {}, kicks waiting {}, up {} s",
            self.id,
            self.status.bits(),
            self.connections,
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
            "device 3: status 0x3 (ACKNOWLEDGE DRIVER), daemon absent, connections 1, accesses 85, faults 0, slowest 412 us, \
             interrupts unknown, own interrupts 2, kicks seen 4, kicks waiting 1 unknown, up 12 s"
        );
        let reset = Report {
            status: Status::empty(),
            ..report
        };
        assert!(reset.to_string().contains("status 0x0 (reset)"));
    }
}
