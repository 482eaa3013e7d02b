//! Counts and times of each operation, in the manner of `strace -c`.

use std::collections::BTreeMap;
use std::io::{self, Write};

use gangplank_trace::{Kind, Record};
use serde_json::{Value, json};

use crate::text;

/// Buckets of durations: each is a power of two nanoseconds wide or less.
const BUCKETS: usize = 64;

/// What the requests of all operations sum up to.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    operations: BTreeMap<String, Operation>,
    /// Records that were lost.
    pub(crate) lost: u64,
}

/// What the requests of one operation sum up to. Times are in nanoseconds.
#[derive(Debug)]
struct Operation {
    count: u64,
    errors: u64,
    total: u64,
    shortest: u64,
    longest: u64,
    /// Requests by the number of binary digits of their duration.
    buckets: [u64; BUCKETS + 1],
}

impl Default for Operation {
    fn default() -> Self {
        Self {
            count: 0,
            errors: 0,
            total: 0,
            shortest: u64::MAX,
            longest: 0,
            buckets: [0; BUCKETS + 1],
        }
    }
}

impl Operation {
    fn add(&mut self, record: &Record) {
        let duration = record.duration;
        self.count += 1;
        self.errors += u64::from(record.errno != 0);
        self.total = self.total.saturating_add(duration);
        self.shortest = self.shortest.min(duration);
        self.longest = self.longest.max(duration);
        let digits = usize::try_from(u64::BITS - duration.leading_zeros()).unwrap_or(0);
        if let Some(bucket) = self.buckets.get_mut(digits) {
            *bucket += 1;
        }
    }

    const fn mean(&self) -> u64 {
        match self.count {
            0 => 0,
            count => self.total / count,
        }
    }

    /// A duration that 99 of 100 requests do not exceed, rounded up to a power of two.
    fn percentile_99(&self) -> u64 {
        let wanted = self.count - self.count / 100;
        let mut seen = 0;
        for (digits, count) in (0..).zip(&self.buckets) {
            seen += count;
            if seen >= wanted {
                return (1u64.checked_shl(digits).unwrap_or(u64::MAX) - 1).min(self.longest);
            }
        }
        self.longest
    }
}

impl Summary {
    /// Counts a request.
    pub(crate) fn add(&mut self, record: &Record) {
        if record.kind == Kind::Request {
            let name = text::operation(record);
            self.operations.entry(name).or_default().add(record);
        }
    }

    /// The operations, the most expensive first.
    fn sorted(&self) -> Vec<(&str, &Operation)> {
        let operations = self.operations.iter();
        let mut sorted: Vec<_> = operations
            .map(|(name, operation)| (name.as_str(), operation))
            .collect();
        sorted.sort_by_key(|(_, operation)| std::cmp::Reverse(operation.total));
        sorted
    }

    /// Writes a table. Times are in microseconds.
    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let all: u64 = self
            .operations
            .values()
            .map(|operation| operation.total)
            .sum();
        writeln!(
            out,
            "{:>6} {:>12} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8}  operation",
            "% time", "total us", "mean us", "min us", "p99 us", "max us", "requests", "errors"
        )?;
        let micros =
            |nanoseconds: u64| format!("{}.{}", nanoseconds / 1000, nanoseconds / 100 % 10);
        for (name, operation) in self.sorted() {
            let share = u128::from(operation.total) * 1000 / u128::from(all.max(1));
            writeln!(
                out,
                "{:>6} {:>12} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8}  {name}",
                format!("{}.{}", share / 10, share % 10),
                micros(operation.total),
                micros(operation.mean()),
                micros(operation.shortest),
                micros(operation.percentile_99()),
                micros(operation.longest),
                operation.count,
                operation.errors,
            )?;
        }
        let requests: u64 = self
            .operations
            .values()
            .map(|operation| operation.count)
            .sum();
        let errors: u64 = self
            .operations
            .values()
            .map(|operation| operation.errors)
            .sum();
        writeln!(
            out,
            "{requests} requests, {errors} errors, {} records lost",
            self.lost
        )
    }

    /// Writes a JSON object. Times are in nanoseconds.
    pub(crate) fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        let operations = self.sorted().into_iter().map(|(name, operation)| {
            json!({
                "op": name,
                "requests": operation.count,
                "errors": operation.errors,
                "total_ns": operation.total,
                "mean_ns": operation.mean(),
                "min_ns": operation.shortest,
                "p99_ns": operation.percentile_99(),
                "max_ns": operation.longest,
            })
        });
        let object = json!({
            "kind": "summary",
            "operations": operations.collect::<Vec<Value>>(),
            "lost": self.lost,
        });
        writeln!(out, "{object}")
    }
}
