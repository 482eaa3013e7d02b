//! What counts of each workload: its worst situation.

use std::fmt::Write;

use crate::Measured;
use crate::fixture::{AGAIN, HOST};

/// A Markdown table: for each workload and peer the lowest ratio of gangplankd's rate to the
/// peer's, and the situation that it is of. The last row has the medians.
pub(crate) fn table(measured: &[Measured]) -> String {
    let Some(first) = measured.first() else {
        return String::new();
    };
    let peers: Vec<&String> = first
        .peers
        .iter()
        .filter(|peer| ![AGAIN, HOST].contains(&peer.as_str()))
        .collect();
    let mut text = String::from("Worst ratio of all situations:\n\n| workload |");
    for peer in &peers {
        let _ = write!(text, " to {peer} | in |");
    }
    text.push_str("\n| --- |");
    text.push_str(&" ---: | --- |".repeat(peers.len()));
    text.push('\n');
    let mut columns = vec![Vec::new(); peers.len()];
    for workload in first.results.names() {
        let _ = write!(text, "| {workload} |");
        for (peer, column) in peers.iter().zip(&mut columns) {
            match worst(measured, workload, peer) {
                Some((ratio, situation)) => {
                    column.push(ratio);
                    let _ = write!(text, " {ratio:.2} | {situation} |");
                }
                None => text.push_str(" - | - |"),
            }
        }
        text.push('\n');
    }
    text.push_str("| median |");
    for column in &mut columns {
        column.sort_by(f64::total_cmp);
        match column.get(column.len() / 2) {
            Some(median) => {
                let _ = write!(text, " {median:.2} | |");
            }
            None => text.push_str(" - | |"),
        }
    }
    text.push('\n');
    text
}

fn worst(measured: &[Measured], workload: &str, peer: &str) -> Option<(f64, &'static str)> {
    let ratios = measured.iter().filter_map(|measured| {
        let ratio = measured.results.ratio(workload, peer)?;
        Some((ratio, measured.situation.name()))
    });
    ratios.min_by(|one, other| one.0.total_cmp(&other.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Results;
    use crate::situation::Situation;

    fn measured(situation: Situation, printed: &str) -> Measured {
        let mut results = Results::default();
        results.read(printed).expect("results");
        let peers = [AGAIN, "virtiofsd", HOST].map(str::to_owned).to_vec();
        Measured {
            situation,
            peers,
            results,
        }
    }

    #[test]
    fn the_worst_situation_counts() {
        let idle = "find gangplankd 1.0 100 entries\nfind virtiofsd 1.0 50 entries\n\
                    cat gangplankd 1.0 10 files\n";
        let busy = "find gangplankd 1.0 30 entries\nfind virtiofsd 1.0 40 entries\n";
        let measured = [
            measured(Situation::Idle, idle),
            measured(Situation::Busy, busy),
        ];
        let table = table(&measured);
        assert!(table.contains("| find | 0.75 | busy |"), "{table}");
        assert!(table.contains("| cat | - | - |"), "{table}");
        assert!(table.ends_with("| median | 0.75 | |\n"), "{table}");
        assert!(!table.contains("to host") && !table.contains("to again"));
    }
}
