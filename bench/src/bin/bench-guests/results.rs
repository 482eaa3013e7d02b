//! The measured rates, as a table, a chart and JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use gangplank_bench::bar_chart::{self, Bar, Group};

use crate::fixture::{AGAIN, HOST, OURS};

/// Rates by workload, in the order of measurement, and by file system.
#[derive(Default)]
pub(crate) struct Results {
    workloads: Vec<Workload>,
}

struct Workload {
    name: String,
    unit: String,
    /// Units per second of each round.
    rates: BTreeMap<String, Vec<f64>>,
}

impl Results {
    /// Adds the lines that guest-bench printed.
    pub(crate) fn read(&mut self, printed: &str) -> Result<()> {
        for line in printed.lines() {
            self.line(line)
                .with_context(|| format!("guest-bench said: {line}"))?;
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [name, system, seconds, count, unit] = fields[..] else {
            anyhow::bail!("not a result");
        };
        let seconds: f64 = seconds.parse().context("seconds")?;
        let count: f64 = count.parse().context("count")?;
        ensure!(seconds > 0.0, "the workload took no measurable time");
        let known = self.workloads.iter().position(|known| known.name == name);
        let at = known.unwrap_or_else(|| {
            self.workloads.push(Workload {
                name: name.to_owned(),
                unit: unit.to_owned(),
                rates: BTreeMap::new(),
            });
            self.workloads.len() - 1
        });
        if let Some(workload) = self.workloads.get_mut(at) {
            let rates = workload.rates.entry(system.to_owned()).or_default();
            rates.push(count / seconds);
        }
        Ok(())
    }

    /// The names of the workloads, in the order of measurement.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.workloads.iter().map(|workload| workload.name.as_str())
    }

    /// gangplankd's rate as a multiple of a peer's.
    pub(crate) fn ratio(&self, workload: &str, peer: &str) -> Option<f64> {
        let workload = self.workloads.iter().find(|known| known.name == workload)?;
        Some(workload.median(OURS)? / workload.median(peer)?)
    }

    /// A Markdown table: gangplankd, and each of `peers` with the ratio of the rates.
    pub(crate) fn table(&self, peers: &[String]) -> String {
        let mut text = format!("| workload | unit/s | {OURS} |");
        for peer in peers {
            let _ = write!(text, " {peer} | ratio |");
        }
        text.push_str("\n| --- | --- | ---: |");
        text.push_str(&" ---: | ---: |".repeat(peers.len()));
        text.push('\n');
        for workload in &self.workloads {
            let ours = workload.median(OURS);
            let (scale, unit) = workload.scale();
            let _ = write!(
                text,
                "| {} | {unit} | {} |",
                workload.name,
                told(ours, scale)
            );
            for peer in peers {
                let theirs = workload.median(peer);
                let ratio = self.ratio(&workload.name, peer);
                let ratio = ratio_cell(ratio);
                let _ = write!(text, " {} | {ratio} |", told(theirs, scale));
            }
            text.push('\n');
        }
        text
    }

    /// The rates as a chart, without the second gangplankd, and without the host, whose bars would
    /// be too long for the scale.
    pub(crate) fn drawing(&self, title: &str, peers: &[String]) -> String {
        let drawn = || {
            let peers = peers.iter().map(String::as_str);
            let peers = peers.filter(|peer| ![HOST, AGAIN].contains(peer));
            std::iter::once(OURS).chain(peers)
        };
        let groups: Vec<Group> = self
            .workloads
            .iter()
            .map(|workload| Group {
                heading: String::new(),
                label: workload.name.clone(),
                bars: drawn().filter_map(|who| workload.bar(who)).collect(),
            })
            .collect();
        let note = "A bar is the median of all rounds, and the line in it goes from the least to \
                    the most.";
        bar_chart::draw(title, &[note], &groups)
    }

    /// The rates of every round as JSON objects, in units per second.
    pub(crate) fn json(&self, situation: &str) -> String {
        let workloads = self.workloads.iter();
        let workloads: Vec<String> = workloads.map(|known| known.json(situation)).collect();
        workloads.join(",\n")
    }
}

impl Workload {
    fn median(&self, system: &str) -> Option<f64> {
        quartile(self.rates.get(system)?, 2)
    }

    /// The factor from the printed unit to the measured one, and the printed unit's name.
    fn scale(&self) -> (f64, &str) {
        match self.unit.as_str() {
            "bytes" => (f64::from(1 << 20), "MiB"),
            unit => (1.0, unit),
        }
    }

    fn bar(&self, system: &str) -> Option<Bar> {
        let rates = self.rates.get(system)?;
        let median = self.median(system);
        let (scale, unit) = self.scale();
        Some(Bar {
            name: system.to_owned(),
            median: median?,
            min: rates.iter().copied().fold(f64::INFINITY, f64::min),
            max: rates.iter().copied().fold(0.0, f64::max),
            told: format!("{} {unit}/s", told(median, scale)),
        })
    }

    fn json(&self, situation: &str) -> String {
        let systems: Vec<String> = self
            .rates
            .iter()
            .map(|(system, rates)| {
                let rates: Vec<String> = rates.iter().map(|rate| format!("{rate:.3}")).collect();
                format!("\"{system}\": [{}]", rates.join(", "))
            })
            .collect();
        format!(
            "  {{\"situation\": \"{situation}\", \"workload\": \"{}\", \"unit\": \"{}\", \
             \"per_second\": {{{}}}}}",
            self.name,
            self.unit,
            systems.join(", ")
        )
    }
}

fn told(rate: Option<f64>, scale: f64) -> String {
    match rate.map(|rate| rate / scale) {
        Some(rate) if rate >= 100.0 => format!("{rate:.0}"),
        Some(rate) => format!("{rate:.2}"),
        None => "-".to_owned(),
    }
}

/// A ratio as tables tell it.
pub(crate) fn ratio_cell(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
}

/// The value below which so many quarters of `values` lie: 2 for the median. `None` of none.
pub(crate) fn quartile(values: &[f64], quarters: usize) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() * quarters / 4).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_tells_medians_and_ratios() {
        let mut results = Results::default();
        let printed = "find gangplankd 1.0 400 entries\nfind gangplankd 2.0 400 entries\n\
                       find gangplankd 4.0 400 entries\nfind hostfs 4.0 400 entries\n";
        results.read(printed).unwrap();
        let table = results.table(&["hostfs", "host"].map(str::to_owned));
        assert!(
            table.ends_with("| find | entries | 200 | 100 | 2.00 | - | - |\n"),
            "{table}"
        );
    }

    #[test]
    fn a_drawing_has_all_but_the_host() {
        let mut results = Results::default();
        let printed = "read gangplankd 1.0 1048576 bytes\nread gangplankd 2.0 1048576 bytes\n\
                       read hostfs 4.0 1048576 bytes\nread host 0.1 1048576 bytes\n";
        results.read(printed).unwrap();
        let drawn = results.drawing("in a guest", &["hostfs", "host"].map(str::to_owned));
        assert_eq!(drawn.matches("<path").count(), 2);
        assert!(drawn.contains("0.25 MiB/s"), "{drawn}");
    }

    #[test]
    fn anything_but_a_result_is_refused() {
        let mut results = Results::default();
        assert!(results.read("guest-bench: cannot").is_err());
        assert!(results.read("find host 0.0 5 entries").is_err());
    }
}
