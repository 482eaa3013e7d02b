//! What a transfer has to say of many inodes, in one line of the log.

use std::fmt::{self, Display, Formatter};

/// Items that are named.
const NAMED: usize = 5;

/// The first few of many items, and how many there are. A guest chooses how many inodes it has, and
/// a frontend how often it asks for them, so the log has no line for each.
#[derive(Debug, Default)]
pub(super) struct Listing {
    first: Vec<String>,
    count: usize,
}

impl Listing {
    /// Adds an item.
    pub(super) fn add(&mut self, item: impl Display) {
        if self.first.len() < NAMED {
            self.first.push(item.to_string());
        }
        self.count += 1;
    }

    /// How many items were added.
    pub(super) const fn count(&self) -> usize {
        self.count
    }
}

impl Display for Listing {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.first.join("; "))?;
        match self.count.saturating_sub(self.first.len()) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_beyond_the_first_ones_are_counted() {
        let mut listing = Listing::default();
        for item in 1..=NAMED {
            listing.add(item);
        }
        assert_eq!(listing.to_string(), "1; 2; 3; 4; 5");
        for item in 0..1000 {
            listing.add(item);
        }
        assert_eq!(listing.to_string(), "1; 2; 3; 4; 5; and 1000 more");
        assert_eq!(listing.count(), 1005);
    }
}
