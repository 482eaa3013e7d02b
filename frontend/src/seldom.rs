//! Saying seldom what a guest, or another peer, can bring about as often as it likes.

use std::time::{Duration, Instant};

/// How long to keep silent after it was said.
const SILENCE: Duration = Duration::from_secs(10);

/// Something that is said seldom.
#[derive(Debug, Default)]
pub struct Seldom {
    said: Option<Instant>,
}

impl Seldom {
    /// Whether it is to be said this time.
    pub fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let is_due = self
            .said
            .is_none_or(|said| now.saturating_duration_since(said) >= SILENCE);
        if is_due {
            self.said = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_just_said_is_not_due_and_is_again_after_a_while() {
        let mut seldom = Seldom::default();
        assert!(seldom.is_due());
        assert!(!seldom.is_due());
        seldom.said = Instant::now().checked_sub(SILENCE);
        assert!(seldom.is_due());
    }
}
