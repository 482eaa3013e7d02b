//! A drawing: for each workload a bar for each daemon, as long as its rate is large beside the host's own.

use std::fmt::Write;

use super::text::rate;
use crate::score::{DIRECT, Table};

const WIDTH: f64 = 960.0;
/// Where bars begin and how long the longest may be.
const LEFT: f64 = 260.0;
const LONGEST: f64 = 480.0;
const BAR: f64 = 14.0;
const GAP: f64 = 12.0;
const COLOURS: [&str; 6] = [
    "#1f77b4", "#ff7f0e", "#7f7f7f", "#2ca02c", "#9467bd", "#8c564b",
];

/// Draws all workloads, those of each match under a heading.
pub(super) fn draw(tables: &[Table]) -> String {
    let mut body = String::new();
    let mut y = 40.0;
    let mut heading = (String::new(), 0);
    for table in tables {
        let here = (table.placement.to_owned(), table.queues);
        if heading != here {
            y += GAP;
            let queues = match table.queues {
                1 => String::new(),
                queues => format!(", {queues} request queues"),
            };
            text(
                &mut body,
                12.0,
                y,
                "bold",
                &format!("placement {}{queues}", table.placement),
            );
            y += 2.0 * GAP;
            heading = here;
        }
        y = group(&mut body, table, y) + GAP;
    }
    let height = y + GAP;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\" font-weight=\"bold\">virtio-fs daemons: rates, each workload to its own \
         scale</text>\n{body}</svg>\n"
    )
}

/// One workload's bars; where they end.
fn group(body: &mut String, table: &Table, top: f64) -> f64 {
    let daemons: Vec<_> = table
        .scores
        .iter()
        .filter(|score| score.name != DIRECT)
        .collect();
    let most = daemons.iter().map(|score| score.rate.max);
    let most = most.fold(f64::MIN_POSITIVE, f64::max);
    let mut y = top;
    text(body, 12.0, y + BAR - 3.0, "normal", table.workload);
    for (score, colour) in daemons.iter().zip(COLOURS.iter().cycle()) {
        let scaled = |rate: f64| rate / most * LONGEST;
        let length = scaled(score.rate.median);
        text(body, 150.0, y + BAR - 3.0, "normal", &score.name);
        let _ = writeln!(
            body,
            "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
            BAR - 2.0
        );
        let middle = y + (BAR - 2.0) / 2.0;
        let (from, to) = (LEFT + scaled(score.rate.min), LEFT + scaled(score.rate.max));
        let _ = writeln!(
            body,
            "<path d=\"M{from:.1} {middle:.1}H{to:.1}\" stroke=\"black\"/>"
        );
        let direct = score.times.get(DIRECT).copied().unwrap_or_default();
        let told = format!(
            "{}, {:.0} % of direct, {:.1} us CPU",
            rate(score.rate.median, table.unit),
            direct * 100.0,
            score.processor_us.median
        );
        text(body, LEFT + LONGEST + 8.0, y + BAR - 3.0, "normal", &told);
        y += BAR;
    }
    y
}

fn text(body: &mut String, x: f64, y: f64, weight: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        body,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-weight=\"{weight}\">{text}</text>"
    );
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::score::{Score, Spread};

    #[test]
    fn each_daemon_has_a_bar_and_names_are_text() {
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
            queues: 1,
            unit: "operations",
            scores: vec![score(DIRECT), score("a<b"), score("c")],
        };
        let drawn = draw(&[table]);
        assert_eq!(drawn.matches("<path").count(), 2);
        assert!(drawn.contains("a&lt;b") && !drawn.contains("a<b"));
    }
}
