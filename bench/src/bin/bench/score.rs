//! Computes medians, extremes and ratios from the rounds of a run.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::work::Unit;
use crate::workload::Run;

/// The name of the work by system calls.
pub(crate) const DIRECT: &str = "direct";

/// One round of one daemon.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Round {
    /// The finished work and its duration.
    pub(crate) run: Run,
    /// Nanoseconds of processor time of the daemon alone.
    pub(crate) processor_ns: u64,
}

/// Median and extremes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// Median.
    pub(crate) median: f64,
    /// Least.
    pub(crate) min: f64,
    /// Greatest.
    pub(crate) max: f64,
}

impl Spread {
    /// The spread of at least one number.
    pub(crate) fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut numbers: Vec<f64> = numbers.into_iter().collect();
        numbers.sort_by(f64::total_cmp);
        let middle = numbers.len() / 2;
        let upper = *numbers.get(middle)?;
        let median = if numbers.len().is_multiple_of(2) {
            f64::midpoint(*numbers.get(middle - 1)?, upper)
        } else {
            upper
        };
        Some(Self {
            median,
            min: *numbers.first()?,
            max: *numbers.last()?,
        })
    }
}

/// The result of one daemon in one workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Score {
    /// Its name.
    pub(crate) name: String,
    /// Operations, entries or bytes per second.
    pub(crate) rate: Spread,
    /// Microseconds of processor time of an operation or entry: the daemon's, or the caller's if
    /// there is no daemon.
    pub(crate) processor_us: Spread,
    /// Microseconds of an operation without others in flight: the median of the rounds' medians.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p50_us: Option<f64>,
    /// The 99th percentile of the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99_us: Option<f64>,
    /// The ratio of its rate to each other daemon's: the median of the rounds' ratios.
    pub(crate) times: BTreeMap<String, f64>,
}

/// The results of all daemons in one workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Table {
    /// The workload.
    pub(crate) workload: &'static str,
    /// The placement.
    pub(crate) placement: &'static str,
    /// Operations in flight.
    pub(crate) depth: usize,
    /// Request queues.
    pub(crate) queues: usize,
    /// The unit of rates, per second.
    pub(crate) unit: &'static str,
    /// The results by daemon.
    pub(crate) scores: Vec<Score>,
}

/// Computes the results from the rounds of each daemon. A daemon without rounds is left out.
pub(crate) fn scores(rounds: &[(String, Vec<Round>)], unit: Unit) -> Vec<Score> {
    let rates: Vec<(&str, Vec<f64>)> = rounds
        .iter()
        .map(|(name, rounds)| {
            let rates = rounds.iter().map(|round| rate(&round.run, unit));
            (name.as_str(), rates.collect())
        })
        .collect();
    let scored = rounds.iter().zip(&rates);
    scored
        .filter_map(|((name, rounds), (_, own))| {
            let latency = |part: f64| {
                let parts = rounds
                    .iter()
                    .filter_map(|round| percentile(&round.run, part));
                Spread::of(parts).map(|spread| spread.median)
            };
            Some(Score {
                name: name.clone(),
                rate: Spread::of(own.iter().copied())?,
                processor_us: Spread::of(rounds.iter().map(processor_us))?,
                p50_us: latency(0.5),
                p99_us: latency(0.99),
                times: times(name, own, &rates),
            })
        })
        .collect()
}

fn times(name: &str, own: &[f64], rates: &[(&str, Vec<f64>)]) -> BTreeMap<String, f64> {
    let others = rates.iter().filter(|(other, _)| *other != name);
    others
        .filter_map(|(other, theirs)| {
            let ratios = own.iter().zip(theirs).map(|(own, theirs)| own / theirs);
            let spread = Spread::of(ratios.filter(|ratio| ratio.is_finite()))?;
            Some(((*other).to_owned(), spread.median))
        })
        .collect()
}

#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn rate(run: &Run, unit: Unit) -> f64 {
    let each = match unit {
        Unit::Bytes(size) => size as f64,
        Unit::Operations | Unit::Entries => 1.0,
    };
    run.units as f64 * each / run.seconds
}

#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn processor_us(round: &Round) -> f64 {
    round.processor_ns as f64 / 1000.0 / round.run.units as f64
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index into a list of at most 2^18"
)]
fn percentile(run: &Run, part: f64) -> Option<f64> {
    let last = run.latencies.len().checked_sub(1)?;
    let at = (last as f64 * part).round() as usize;
    run.latencies.get(at).copied().map(f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(units: u64, seconds: f64, processor_ns: u64) -> Round {
        Round {
            run: Run {
                units,
                seconds,
                latencies: vec![1.0, 2.0, 3.0, 4.0, 50.0],
            },
            processor_ns,
        }
    }

    #[test]
    fn a_median_of_two_lies_between_them() {
        let spread = Spread::of([3.0, 1.0]).unwrap();
        assert_eq!((spread.median, spread.min, spread.max), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of([5.0, 1.0, 2.0]).unwrap().median, 2.0);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let rounds = [
            (
                "a".to_owned(),
                vec![round(100, 1.0, 1000), round(10, 1.0, 100)],
            ),
            ("b".to_owned(), vec![round(50, 1.0, 0), round(5, 1.0, 0)]),
            ("none".to_owned(), vec![]),
        ];
        let scores = scores(&rounds, Unit::Bytes(2));
        assert_eq!(scores.len(), 2, "a daemon without rounds is left out");
        let first = scores.first().unwrap();
        assert_eq!(first.rate.max, 200.0);
        assert_eq!(first.times.get("b"), Some(&2.0));
        assert_eq!(first.processor_us.median, 0.01);
        assert_eq!((first.p50_us, first.p99_us), (Some(3.0), Some(50.0)));
    }
}
