//! The pauses of a guest that the daemon's log tells.

/// The lengths of pauses in milliseconds, in ascending order.
#[derive(Debug, Default)]
pub(crate) struct Pauses(Vec<f64>);

impl Pauses {
    /// Those that `log` tells after `words`.
    pub(crate) fn told(log: &str, words: &str) -> Self {
        let after = |line: &str| {
            let (_, rest) = line.split_once(words)?;
            rest.split_whitespace().next()?.parse().ok()
        };
        let mut pauses: Vec<f64> = log.lines().filter_map(after).collect();
        pauses.sort_unstable_by(f64::total_cmp);
        Self(pauses)
    }

    /// Their number.
    pub(crate) const fn count(&self) -> usize {
        self.0.len()
    }

    /// The length in milliseconds that `percent` of the pauses do not exceed (nearest rank); 0 if
    /// there is no pause.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.count() * percent).div_ceil(100);
        self.0.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
    }

    /// What the guest noticed of as many `disturbances`. A pause has several of them if the process
    /// that should end the first pause was disturbed as well.
    pub(crate) fn summary(&self, disturbances: usize) -> String {
        format!(
            "{disturbances} times, {} pauses, {} more merged into one of these; p50 {:.1} ms, p99 \
             {:.1} ms, maximum {:.1} ms",
            self.count(),
            disturbances.saturating_sub(self.count()),
            self.percentile(50),
            self.percentile(99),
            self.percentile(100)
        )
    }
}
