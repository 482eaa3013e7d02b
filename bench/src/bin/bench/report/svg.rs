//! The chart: each daemon's rate as a bar, the host's own rate as text.

use gangplank_bench::bar_chart::{self, Bar, Group};

use super::text::rate;
use crate::placement::PLACEMENTS;
use crate::score::{DIRECT, Table};

/// What names and lines mean.
const NOTES: [&str; 3] = [
    "A bar is the median of all rounds, and the line in it goes from the least to the most.",
    "\"direct\" is the same work by system calls of a program on the host.",
    "virtiofsd is version 1.14.0; virtiofsd-c is the former one of QEMU, written in C.",
];

/// Draws all workloads, those of each comparison under a heading.
pub(super) fn draw(tables: &[Table]) -> String {
    let groups: Vec<Group> = tables.iter().map(group).collect();
    bar_chart::draw(
        "virtio-fs daemons: rates, each workload to its own scale",
        &NOTES,
        &groups,
    )
}

fn group(table: &Table) -> Group {
    let queues = match table.queues {
        1 => String::new(),
        queues => format!(", {queues} request queues"),
    };
    let daemons = table.scores.iter().filter(|score| score.name != DIRECT);
    let bars = daemons.map(|score| {
        let direct = score.times.get(DIRECT).copied().unwrap_or_default();
        Bar {
            name: score.name.clone(),
            median: score.rate.median,
            min: score.rate.min,
            max: score.rate.max,
            told: format!(
                "{}, {:.0} % of direct, {:.1} us CPU",
                rate(score.rate.median, table.unit),
                direct * 100.0,
                score.processor_us.median
            ),
        }
    });
    Group {
        heading: format!("{}{queues}", meaning(table.placement)),
        label: table.workload.to_owned(),
        bars: bars.collect(),
    }
}

/// A placement by its meaning, or by its name if that is none of the daemons'.
fn meaning(placement: &str) -> String {
    let known = PLACEMENTS.iter().find(|known| known.name == placement);
    known.map_or_else(
        || placement.to_owned(),
        |known| format!("{} ({})", known.meaning, known.name),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::score::{Score, Spread};

    #[test]
    fn each_daemon_is_drawn_and_the_host_is_not() {
        let spread = Spread {
            median: 2.0,
            min: 1.0,
            max: 3.0,
        };
        let score = |name: &str| Score {
            name: name.to_owned(),
            rate: spread,
            processor_us: spread,
            p50_us: None,
            p99_us: None,
            times: BTreeMap::new(),
        };
        let table = Table {
            workload: "getattr",
            placement: "one",
            depth: 1,
            queues: 2,
            unit: "operations",
            scores: vec![score(DIRECT), score("a"), score("b")],
        };
        let drawn = draw(&[table]);
        assert_eq!(drawn.matches("<path").count(), 2);
        let heading = "daemon and driver on one processor (one), 2 request queues";
        assert!(drawn.contains(heading), "{drawn}");
        assert!(drawn.contains("virtiofsd-c is"), "{drawn}");
    }
}
