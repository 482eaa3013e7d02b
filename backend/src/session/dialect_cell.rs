//! The dialect of the open session, read by every request and written by INIT and DESTROY.

use std::sync::atomic::{AtomicU64, Ordering};

use gangplank_fuse::Dialect;

/// Bits of the word above the minor version.
const SETXATTR_EXT: u64 = 1 << 32;
const SECURITY_CTX: u64 = 1 << 33;
const IS_OPEN: u64 = 1 << 34;

/// A dialect, or none, in one word: a lock would take longer than most of what a request needs it
/// for.
#[derive(Debug, Default)]
pub(super) struct DialectCell(AtomicU64);

impl DialectCell {
    pub(super) fn new(dialect: Option<Dialect>) -> Self {
        let cell = Self::default();
        cell.set(dialect);
        cell
    }

    /// The dialect; `None` if no session is open.
    pub(super) fn get(&self) -> Option<Dialect> {
        decode(self.0.load(Ordering::Acquire))
    }

    /// Replaces the dialect and returns the one before.
    pub(super) fn set(&self, dialect: Option<Dialect>) -> Option<Dialect> {
        decode(self.0.swap(encode(dialect), Ordering::AcqRel))
    }
}

fn encode(dialect: Option<Dialect>) -> u64 {
    let Some(dialect) = dialect else { return 0 };
    let flag = |is_set, bit| if is_set { bit } else { 0 };
    u64::from(dialect.minor)
        | flag(dialect.setxattr_ext, SETXATTR_EXT)
        | flag(dialect.security_ctx, SECURITY_CTX)
        | IS_OPEN
}

fn decode(word: u64) -> Option<Dialect> {
    (word & IS_OPEN != 0).then(|| Dialect {
        minor: u32::try_from(word & u64::from(u32::MAX)).unwrap_or_default(),
        setxattr_ext: word & SETXATTR_EXT != 0,
        security_ctx: word & SECURITY_CTX != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dialect_comes_back() {
        let cell = DialectCell::default();
        assert_eq!(cell.get(), None);
        for (minor, setxattr_ext, security_ctx) in [
            (0, false, false),
            (38, true, false),
            (u32::MAX, false, true),
        ] {
            let dialect = Some(Dialect {
                minor,
                setxattr_ext,
                security_ctx,
            });
            cell.set(dialect);
            assert_eq!(cell.get(), dialect);
        }
        assert!(cell.set(None).is_some());
        assert_eq!(cell.get(), None);
    }
}
