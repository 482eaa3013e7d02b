//! How long guests may cache entries and attributes.

use std::time::Duration;

use super::options::Options;

/// How long the guest may cache entries and attributes.
#[derive(Debug, Clone, Copy)]
pub(super) struct CacheTimeouts {
    /// Timeout of entries and attributes, in seconds and nanoseconds.
    pub(super) positive: (u64, u32),
    /// Timeout of negative entries; `None` if the guest may not cache them.
    pub(super) negative: Option<(u64, u32)>,
}

impl CacheTimeouts {
    /// The timeouts that the options ask for.
    pub(super) fn new(options: &Options) -> Self {
        let parts = |time: Duration| (time.as_secs(), time.subsec_nanos());
        let negative = options.negative_timeout;
        Self {
            positive: parts(options.timeout()),
            negative: (!negative.is_zero()).then(|| parts(negative)),
        }
    }
}
