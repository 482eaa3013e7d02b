//! Directory positions for a client: 31 bits that outlive the listing.
//!
//! A daemon's positions have 64 bits, most of which the host's file system may use. A position
//! below 2^30 is its own cookie. Any other gets a number from 2^30 on, for each directory. The
//! client opens a directory again for every few entries and then continues from a cookie. A count
//! of entries would not do, since some would be lost when others are removed meanwhile.

use std::collections::HashMap;

/// The first cookie that differs from its position.
const FIRST_ASSIGNED: u64 = 1 << 30;

/// Positions that one client can return to, in all directories together. A directory that is being
/// listed needs its latest only.
const MAX_POSITIONS: usize = 1 << 16;

/// Directories with recorded positions.
const MAX_DIRECTORIES: usize = 64;

/// A client's positions in directories.
#[derive(Debug, Default)]
pub(super) struct Cookies {
    /// Keyed by inode number.
    directories: HashMap<u64, Positions>,
    /// Counts uses, to find the least recently used directory.
    clock: u64,
    /// Number of recorded positions.
    count: usize,
}

#[derive(Debug, Default)]
struct Positions {
    /// Positions in the order of their numbers, the first of which is `first`.
    by_cookie: std::collections::VecDeque<u64>,
    /// Number of positions that were dropped.
    first: u64,
    by_position: HashMap<u64, u64>,
    used: u64,
}

impl Cookies {
    /// The cookie of a position in the directory with inode number `ino`. No cookie is zero, which
    /// is the start.
    pub(super) fn cookie(&mut self, ino: u64, position: u64) -> i32 {
        if (1..FIRST_ASSIGNED).contains(&position) {
            return i32::try_from(position).unwrap_or(i32::MAX);
        }
        let known = self.directory(ino).by_position.get(&position).copied();
        let number = known.unwrap_or_else(|| self.add(ino, position));
        // Numbers repeat after 2^30 entries of one directory, long after the old positions were
        // dropped.
        i32::try_from(FIRST_ASSIGNED + number % FIRST_ASSIGNED).unwrap_or(i32::MAX)
    }

    /// The position of a cookie. `None` for an unknown cookie.
    pub(super) fn position(&mut self, ino: u64, cookie: i32) -> Option<u64> {
        let cookie = u64::try_from(cookie).ok()?;
        if cookie < FIRST_ASSIGNED {
            return Some(cookie);
        }
        if !self.directories.contains_key(&ino) {
            return None;
        }
        let positions = self.directory(ino);
        let past = (cookie - FIRST_ASSIGNED).wrapping_sub(positions.first) % FIRST_ASSIGNED;
        positions
            .by_cookie
            .get(usize::try_from(past).ok()?)
            .copied()
    }

    /// Records a position in a directory that was just used. Drops others if necessary.
    fn add(&mut self, ino: u64, position: u64) -> u64 {
        while self.count >= MAX_POSITIONS && self.directories.len() > 1 {
            self.forget_least_used();
        }
        let full = self.count >= MAX_POSITIONS;
        let positions = self.directory(ino);
        if full {
            positions.forget_oldest();
        }
        let number = positions.add(position);
        if !full {
            self.count += 1;
        }
        number
    }

    fn forget_least_used(&mut self) {
        let least = self.directories.iter().min_by_key(|(_, it)| it.used);
        if let Some(ino) = least.map(|(ino, _)| *ino)
            && let Some(positions) = self.directories.remove(&ino)
        {
            self.count = self.count.saturating_sub(positions.by_cookie.len());
        }
    }

    fn directory(&mut self, ino: u64) -> &mut Positions {
        self.clock = self.clock.saturating_add(1);
        if self.directories.len() >= MAX_DIRECTORIES && !self.directories.contains_key(&ino) {
            self.forget_least_used();
        }
        let positions = self.directories.entry(ino).or_default();
        positions.used = self.clock;
        positions
    }
}

impl Positions {
    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.by_cookie.pop_front() {
            self.by_position.remove(&oldest);
            self.first = self.first.saturating_add(1);
        }
    }

    fn add(&mut self, position: u64) -> u64 {
        let number = self.first.saturating_add(self.by_cookie.len() as u64);
        self.by_cookie.push_back(position);
        self.by_position.insert(position, number);
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_positions_are_their_own_cookies() {
        let mut cookies = Cookies::default();
        assert_eq!(cookies.cookie(1, 7), 7);
        assert_eq!(cookies.position(2, 7), Some(7));
        assert_eq!(cookies.position(2, 0), Some(0));
    }

    #[test]
    fn d13_large_positions_get_31_bits_and_are_found_again() {
        let mut cookies = Cookies::default();
        let large = [u64::MAX, 1 << 62, 1 << 30, 0];
        let given: Vec<i32> = large.iter().map(|at| cookies.cookie(5, *at)).collect();
        for (cookie, position) in given.iter().zip(large) {
            assert!(*cookie > 0);
            assert_eq!(cookies.position(5, *cookie), Some(position));
            assert_eq!(cookies.cookie(5, position), *cookie, "the same again");
        }
    }

    #[test]
    fn unknown_cookies_have_no_position() {
        let mut cookies = Cookies::default();
        let known = cookies.cookie(5, u64::MAX);
        for (ino, cookie) in [(6, known), (5, known + 1), (5, i32::MAX), (5, -1)] {
            assert_eq!(cookies.position(ino, cookie), None, "{ino} {cookie}");
        }
    }

    #[test]
    fn the_latest_positions_of_a_huge_directory_are_kept() {
        let mut cookies = Cookies::default();
        let position = |entry: u64| (1 << 40) + entry;
        let given: Vec<i32> = (0..70_000)
            .map(|entry| cookies.cookie(5, position(entry)))
            .collect();
        assert_eq!(cookies.position(5, given[69_999]), Some(position(69_999)));
        assert_eq!(cookies.position(5, given[10_000]), Some(position(10_000)));
        assert_eq!(cookies.position(5, given[0]), None);
    }

    #[test]
    fn all_directories_together_share_one_limit() {
        let mut cookies = Cookies::default();
        for ino in 0..3 {
            for entry in 0..40_000 {
                cookies.cookie(ino, (1 << 40) + entry);
                let kept = cookies.directories.values();
                let kept: usize = kept.map(|positions| positions.by_cookie.len()).sum();
                assert!(kept == cookies.count && kept <= MAX_POSITIONS);
            }
        }
        let last = (1 << 40) + 39_999;
        let cookie = cookies.cookie(2, last);
        assert_eq!(cookies.position(2, cookie), Some(last));
    }

    #[test]
    fn the_oldest_directories_are_dropped_beyond_the_limit() {
        let mut cookies = Cookies::default();
        let first = cookies.cookie(0, u64::MAX);
        for ino in 1..=MAX_DIRECTORIES as u64 {
            cookies.cookie(ino, u64::MAX);
        }
        assert_eq!(cookies.position(0, first), None);
        assert_eq!(cookies.directories.len(), MAX_DIRECTORIES);
    }
}
