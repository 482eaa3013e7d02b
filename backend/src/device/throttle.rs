//! Limits of one guest: operations and bytes a second (`--limit-iops`, `--limit-bps`).
//!
//! Each limit is a token bucket that may go into debt: a request starts while the bucket is not
//! empty, pays what it costs at once, and the next one waits until the debt is paid. So a request
//! may be larger than the bucket, and the rate holds all the same. Crates of rate limiters refuse
//! requests that are larger than the bucket and return nothing for reads that end early.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::options::{Limits, Rate};

/// Times are in picoseconds, so that a byte has a price at any rate.
const PICOSECONDS: u128 = 1_000_000_000_000;
const PICOSECONDS_PER_NANOSECOND: u128 = 1000;

/// What a request takes of its guest's limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Operations: 0 for a request that is never delayed.
    pub operations: u64,
    /// Bytes that the request carries or copies on the host.
    pub sent: u64,
    /// Bytes that its reply may have.
    pub returned: u64,
}

impl Cost {
    /// Whether the request is never delayed.
    #[must_use]
    pub fn is_free(self) -> bool {
        self == Self::default()
    }

    fn bytes(self) -> u64 {
        self.sent.saturating_add(self.returned)
    }

    /// Whether the request takes no more than `other` does.
    #[must_use]
    pub fn is_within(self, other: Self) -> bool {
        self.operations <= other.operations
            && self.sent <= other.sent
            && self.returned <= other.returned
    }
}

/// The limits of one guest. All of its rings draw on them.
#[derive(Debug)]
pub(super) struct Throttle {
    /// When the picoseconds begin.
    epoch: Instant,
    buckets: Mutex<Buckets>,
    limits_bytes: bool,
}

#[derive(Debug)]
struct Buckets {
    operations: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Throttle {
    /// Limits as `limits` says; `None` if there are none. The buckets start full, or empty if the
    /// guest had a worker before, whose death must not be worth anything.
    pub(super) fn new(limits: &Limits, is_after_death: bool) -> Option<Self> {
        let bucket = |rate: Rate| Bucket::new(rate, is_after_death);
        let buckets = Buckets {
            operations: limits.operations.map(bucket),
            bytes: limits.bytes.map(bucket),
        };
        (buckets.operations.is_some() || buckets.bytes.is_some()).then(|| Self {
            epoch: Instant::now(),
            limits_bytes: buckets.bytes.is_some(),
            buckets: Mutex::new(buckets),
        })
    }

    /// How long requests have to wait; `None` if the next one may start now.
    pub(super) fn wait(&self) -> Option<Duration> {
        let now = self.now();
        let buckets = self.buckets.lock();
        let all = buckets.operations.iter().chain(&buckets.bytes);
        let wait = all.map(|bucket| bucket.wait(now)).max().unwrap_or(0);
        (wait > 0).then(|| to_duration(wait))
    }

    /// Takes the cost of a request that starts now.
    pub(super) fn charge(&self, cost: Cost) {
        let now = self.now();
        let mut buckets = self.buckets.lock();
        if let Some(bucket) = &mut buckets.operations {
            bucket.charge(now, cost.operations);
        }
        if let Some(bucket) = &mut buckets.bytes {
            bucket.charge(now, cost.bytes());
        }
    }

    /// Gives back the bytes that a reply could have had, and did not have.
    pub(super) fn refund(&self, cost: Cost, reply_len: u32) {
        let unused = cost.returned.saturating_sub(reply_len.into());
        if unused > 0
            && self.limits_bytes
            && let Some(bucket) = &mut self.buckets.lock().bytes
        {
            bucket.refund(unused);
        }
    }

    fn now(&self) -> u128 {
        self.epoch.elapsed().as_nanos() * PICOSECONDS_PER_NANOSECOND
    }
}

/// A token bucket, kept as the time at which it will be full again.
#[derive(Debug)]
struct Bucket {
    per_second: u128,
    /// How long an empty bucket takes to fill.
    depth: u128,
    /// When the bucket is full.
    full_at: u128,
}

impl Bucket {
    fn new(rate: Rate, is_empty: bool) -> Self {
        let per_second = u128::from(rate.per_second.max(1));
        let depth = u128::from(rate.burst.max(1)) * PICOSECONDS / per_second;
        Self {
            per_second,
            depth,
            full_at: if is_empty { depth } else { 0 },
        }
    }

    /// How long until the bucket is not empty; 0 if it is not.
    fn wait(&self, now: u128) -> u128 {
        // At the end of this time exactly one picosecond's worth is in it.
        (self.full_at + 1).saturating_sub(now + self.depth)
    }

    fn charge(&mut self, now: u128, units: u64) {
        self.full_at = self.full_at.max(now) + self.price(units);
    }

    fn refund(&mut self, units: u64) {
        self.full_at = self.full_at.saturating_sub(self.price(units));
    }

    /// The time in which as many units flow in.
    fn price(&self, units: u64) -> u128 {
        u128::from(units) * PICOSECONDS / self.per_second
    }
}

/// Rounded up: a timer that fires early would fire again at once.
fn to_duration(picoseconds: u128) -> Duration {
    let nanoseconds = picoseconds.div_ceil(PICOSECONDS_PER_NANOSECOND);
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u128 = PICOSECONDS;

    fn rate(per_second: u64, burst: u64) -> Rate {
        Rate { per_second, burst }
    }

    /// Starts requests of `units` as early as the bucket permits until `end`. Returns the units.
    fn drain(bucket: &mut Bucket, units: u64, end: u128) -> u64 {
        let (mut now, mut done) = (0, 0);
        loop {
            now += bucket.wait(now);
            if now >= end {
                return done;
            }
            bucket.charge(now, units);
            done += units;
        }
    }

    #[test]
    fn the_rate_holds_whatever_the_size_of_requests() {
        for (per_second, burst, units) in [
            (100, 10, 1),
            (1 << 20, 1 << 17, 4096),
            // A request of ten times the bucket.
            (1 << 20, 1 << 17, 10 << 17),
            (3, 1, 1),
            (40 << 30, 4 << 30, 1 << 20),
        ] {
            let mut bucket = Bucket::new(rate(per_second, burst), false);
            let done = drain(&mut bucket, units, 100 * SECOND);
            let least = per_second * 100;
            let most = least + burst + units;
            assert!(
                (least - units..=most).contains(&done),
                "{done} of {least} with requests of {units}"
            );
        }
    }

    #[test]
    fn a_full_bucket_permits_its_burst_and_an_empty_one_nothing() {
        let mut full = Bucket::new(rate(10, 5), false);
        assert_eq!(drain(&mut full, 1, 1), 5);
        let empty = Bucket::new(rate(10, 5), true);
        assert_eq!(empty.wait(0), 1);
        let mut idle = Bucket::new(rate(10, 5), false);
        idle.charge(0, 5);
        // A pause is worth no more than one burst.
        for _ in 0..5 {
            assert_eq!(idle.wait(100 * SECOND), 0);
            idle.charge(100 * SECOND, 1);
        }
        assert!(idle.wait(100 * SECOND) > 0);
    }

    #[test]
    fn what_a_reply_does_not_have_is_given_back() {
        let limits = Limits {
            operations: None,
            bytes: Some(rate(1000, 1000)),
        };
        let throttle = Throttle::new(&limits, false).unwrap();
        let cost = Cost {
            operations: 1,
            sent: 0,
            returned: 100_000,
        };
        throttle.charge(cost);
        assert!(throttle.wait() > Some(Duration::from_secs(90)));
        throttle.refund(cost, 16);
        assert_eq!(throttle.wait(), None);
    }

    #[test]
    fn no_limits_make_no_throttle() {
        assert!(Throttle::new(&Limits::default(), false).is_none());
    }
}
