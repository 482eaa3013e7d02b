//! What counts: each workload's worst situation, and each situation's median workload beside the
//! noise.

use std::fmt::Write;

use crate::Measured;
use crate::fixture::{AGAIN, HOST};
use crate::results::{quartile, ratio_cell};

/// A Markdown table: for each workload and peer the lowest ratio of gangplankd's rate to the
/// peer's, and the situation that it is of. The last row has the medians.
pub(crate) fn table(measured: &[Measured]) -> String {
    let Some(first) = measured.first() else {
        return String::new();
    };
    let peers: Vec<&String> = peers(first).collect();
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
    for column in &columns {
        let _ = write!(text, " {} | |", ratio_cell(quartile(column, 2)));
    }
    text.push('\n');
    text
}

/// A Markdown table: for each situation the median of all workloads' ratios to each peer, and the
/// noise: the half in the middle of the ratios of the same daemon's rates to its own.
pub(crate) fn by_situation(measured: &[Measured]) -> String {
    let Some(first) = measured.first() else {
        return String::new();
    };
    let peers: Vec<&String> = peers(first).collect();
    let mut text = String::from("Medians of all workloads:\n\n| situation | noise |");
    for peer in &peers {
        let _ = write!(text, " to {peer} |");
    }
    text.push_str("\n| --- | --- |");
    text.push_str(&" ---: |".repeat(peers.len()));
    text.push('\n');
    for one in measured {
        let ratios = |peer: &str| {
            let names = one.results.names();
            let ratios = names.filter_map(|workload| one.results.ratio(workload, peer));
            ratios.collect::<Vec<f64>>()
        };
        let _ = write!(text, "| {} |", one.situation.name());
        let noise = ratios(AGAIN);
        match (quartile(&noise, 1), quartile(&noise, 3)) {
            (Some(low), Some(high)) => {
                let _ = write!(text, " {low:.2} to {high:.2} |");
            }
            _ => text.push_str(" - |"),
        }
        for peer in &peers {
            let _ = write!(text, " {} |", ratio_cell(quartile(&ratios(peer), 2)));
        }
        text.push('\n');
    }
    text
}

/// Who gangplankd is compared with.
fn peers(measured: &Measured) -> impl Iterator<Item = &String> {
    let peers = measured.peers.iter();
    peers.filter(|peer| ![AGAIN, HOST].contains(&peer.as_str()))
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

    #[test]
    fn each_situation_has_its_medians_and_the_noise_beside_them() {
        let idle = "find gangplankd 1.0 100 entries\nfind again 1.0 80 entries\n\
                    find virtiofsd 1.0 50 entries\n";
        let busy = "find gangplankd 1.0 30 entries\nfind virtiofsd 1.0 40 entries\n";
        let measured = [
            measured(Situation::Idle, idle),
            measured(Situation::Busy, busy),
        ];
        let table = by_situation(&measured);
        assert!(
            table.contains("| idle | 1.25 to 1.25 | 2.00 |\n"),
            "{table}"
        );
        assert!(table.ends_with("| busy | - | 0.75 |\n"), "{table}");
    }
}
