//! Markdown tables.

use std::fmt::Write;

use crate::footprint::Footprint;
use crate::per_guest::PerGuest;
use crate::score::{DIRECT, Score, Table};

/// The workloads of one comparison.
pub(super) fn tables(title: &str, tables: &[Table]) -> String {
    let mut text = format!("\n{title}\n\n");
    // The first daemon after the direct calls is compared with the others.
    let first = tables.iter().find_map(first).map(|first| &*first.name);
    let _ = writeln!(
        text,
        "| workload | by | rate | least to most | p50 us | p99 us | CPU us | of direct | {} is \
         times |\n\
         | --- | --- | --: | --: | --: | --: | --: | --: | --: |",
        first.unwrap_or_default()
    );
    for table in tables {
        for score in &table.scores {
            text += &line(table, score);
        }
    }
    text
}

/// The footprints of daemons.
pub(super) fn footprints(footprints: &[Footprint]) -> String {
    let mut text = String::from(
        "\nbeside requests\n\n\
         | daemon | start-up ms | idle us/s | memory KiB | descriptors |\n\
         | --- | --: | --: | --: | --: |\n",
    );
    for print in footprints {
        let _ = writeln!(
            text,
            "| {} | {:.1} | {:.0} | {} | {} |",
            print.name,
            print.start_up_ms.median,
            print.idle_us,
            print.memory / 1024,
            print.descriptors
        );
    }
    text += "\n| daemon | files | known | bytes each | descriptors | KiB left after FORGET | \
        failed |\n\
             | --- | --: | --: | --: | --: | --: | --- |\n";
    for print in footprints {
        for many_files in &print.many_files {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {:.0} | {} | {} | {} |",
                print.name,
                many_files.files,
                many_files.known,
                many_files.bytes_each,
                many_files.descriptors,
                many_files.left / 1024,
                many_files.failed.as_deref().unwrap_or("no")
            );
        }
    }
    text
}

/// What guests cost daemons.
pub(super) fn per_guest(costs: &[PerGuest]) -> String {
    let mut text = String::from(
        "\neach guest\n\n\
         | daemon | processes | private KiB | connect to first reply ms | least to most | guests | \
         private KiB each | getattr of all | least to most of one |\n\
         | --- | --: | --: | --: | --: | --: | --: | --: | --: |\n",
    );
    for cost in costs {
        let at_once = &cost.at_once;
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.1} | {:.1} to {:.1} | {} | {} | {} | {} to {} |",
            cost.name,
            cost.processes,
            cost.private / 1024,
            cost.first_reply_ms.median,
            cost.first_reply_ms.min,
            cost.first_reply_ms.max,
            at_once.guests,
            at_once.private_each / 1024,
            rate(at_once.getattr_rate, "operations"),
            rate(at_once.least_rate, "operations"),
            rate(at_once.most_rate, "operations"),
        );
    }
    text
}

fn first(table: &Table) -> Option<&Score> {
    table.scores.iter().find(|score| score.name != DIRECT)
}

fn line(table: &Table, score: &Score) -> String {
    let number =
        |number: Option<f64>| number.map_or_else(String::new, |number| format!("{number:.1}"));
    let ratio = |ratio: Option<f64>| match ratio {
        Some(ratio) if ratio < 0.1 => format!("{ratio:.4}"),
        Some(ratio) => format!("{ratio:.2}"),
        None => String::new(),
    };
    let ahead = first(table).and_then(|first| first.times.get(&score.name).copied());
    format!(
        "| {} | {} | {} | {} to {} | {} | {} | {:.2} | {} | {} |\n",
        table.workload,
        score.name,
        rate(score.rate.median, table.unit),
        rate(score.rate.min, table.unit),
        rate(score.rate.max, table.unit),
        number(score.p50_us),
        number(score.p99_us),
        score.processor_us.median,
        ratio(score.times.get(DIRECT).copied()),
        ratio(ahead),
    )
}

/// A rate with its unit, in thousands, megabytes or gigabytes.
pub(super) fn rate(rate: f64, unit: &str) -> String {
    if unit == "bytes" && rate < 1e8 {
        format!("{:.1} MB/s", rate / 1e6)
    } else if unit == "bytes" {
        format!("{:.2} GB/s", rate / 1e9)
    } else {
        format!("{:.1} k/s", rate / 1e3)
    }
}
