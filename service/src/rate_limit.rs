//! Rate limits for log messages that a guest or another peer can cause.
//!
//! Each call site logs a few messages per interval for each peer, so that what one peer causes
//! hides no message about another.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::fnv::fnv_1a;

/// Messages that one call site may log for one peer in one [`INTERVAL`].
pub const BURST: u32 = 5;

/// Length of the window in which a call site may log [`BURST`] messages.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// Peers with a window of their own at one call site. Further ones share a window until one of the
/// others is over, so that a peer with many identities fills neither the log nor the memory.
pub const MAX_PEERS: usize = 64;

/// What tells peers apart: the number of a guest's process, of a node, of a user, as the program
/// chooses. A peer must not be able to choose a new one as often as it likes.
pub type Peer = u64;

/// The peer that is a host with this address. IPv4 addresses mapped into IPv6 are IPv4 addresses.
#[must_use]
pub fn peer_at(address: IpAddr) -> Peer {
    match address.to_canonical() {
        IpAddr::V4(address) => fnv_1a(&address.octets()),
        IpAddr::V6(address) => fnv_1a(&address.octets()),
    }
}

thread_local! {
    static THREAD_PEER: Cell<Peer> = const { Cell::new(0) };
}

/// Counts the messages of the calling thread as caused by `peer` from now on.
pub fn set_thread_peer(peer: Peer) {
    THREAD_PEER.set(peer);
}

/// The peer that the calling thread serves; 0 unless [`set_thread_peer`] named one.
#[must_use]
pub fn thread_peer() -> Peer {
    THREAD_PEER.get()
}

/// What one source of messages has logged lately.
#[derive(Debug)]
struct Window {
    since: Option<Instant>,
    logged: u32,
    suppressed: u64,
}

impl Window {
    const fn new() -> Self {
        Self {
            since: None,
            logged: 0,
            suppressed: 0,
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.since
            .is_none_or(|since| now.saturating_duration_since(since) >= INTERVAL)
    }

    /// Counts one message. `Some(n)`: log it, `n` messages before it were suppressed. `None`:
    /// suppress it.
    fn admit(&mut self, burst: u32, now: Instant) -> Option<u64> {
        if self.is_over(now) {
            self.since = Some(now);
            self.logged = 0;
        }
        if self.logged >= burst {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        }
        self.logged += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// Admits some messages per [`INTERVAL`], for an owner that serves a single peer.
#[derive(Debug)]
pub struct RateLimit {
    burst: u32,
    window: Mutex<Window>,
}

impl RateLimit {
    /// A limit that has admitted nothing yet.
    #[must_use]
    pub const fn once() -> Self {
        Self::new(1)
    }

    /// A limit that admits `burst` messages per [`INTERVAL`], and has admitted nothing yet.
    #[must_use]
    pub const fn new(burst: u32) -> Self {
        Self {
            burst,
            window: Mutex::new(Window::new()),
        }
    }

    /// Counts one message. `Some(n)`: log it, `n` messages before it were suppressed. `None`:
    /// suppress it.
    pub fn admit(&self) -> Option<u64> {
        self.window.lock().admit(self.burst, Instant::now())
    }
}

/// What a call site has logged lately for each peer. `rate_limited!` makes a static one for each
/// use.
#[derive(Debug)]
pub struct SiteRateLimit(Mutex<Windows>);

#[derive(Debug)]
struct Windows {
    burst: u32,
    peers: BTreeMap<Peer, Window>,
    /// For the peers beyond [`MAX_PEERS`].
    others: Window,
}

impl SiteRateLimit {
    /// A call site that has not logged yet.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "made by the macro in a static")]
    pub const fn new() -> Self {
        Self::with_burst(BURST)
    }

    /// The same that logs `burst` messages per [`INTERVAL`] for each peer.
    #[must_use]
    pub const fn with_burst(burst: u32) -> Self {
        Self(Mutex::new(Windows {
            burst,
            peers: BTreeMap::new(),
            others: Window::new(),
        }))
    }

    /// Counts one message that `peer` caused. `Some(n)`: log it, `n` messages before it were
    /// suppressed. `None`: suppress it.
    pub fn admit(&self, peer: Peer) -> Option<u64> {
        self.admit_at(peer, Instant::now())
    }

    fn admit_at(&self, peer: Peer, now: Instant) -> Option<u64> {
        let Windows {
            burst,
            peers,
            others,
        } = &mut *self.0.lock();
        if peers.len() >= MAX_PEERS && !peers.contains_key(&peer) {
            peers.retain(|_, window| {
                let is_over = window.is_over(now);
                if is_over {
                    others.suppressed = others.suppressed.saturating_add(window.suppressed);
                }
                !is_over
            });
        }
        if peers.len() >= MAX_PEERS && !peers.contains_key(&peer) {
            return others.admit(*burst, now);
        }
        peers
            .entry(peer)
            .or_insert_with(Window::new)
            .admit(*burst, now)
    }
}

/// Logs like the `log` macro of the given level, at most [`BURST`] times per [`INTERVAL`] from this
/// call site for each peer. The next message after that says how many were suppressed.
///
/// For everything that a guest or a frontend can cause repeatedly: `rate_limited!(warn, "queue
/// {index} stopped: {error}")`. The peer is the thread's ([`set_thread_peer`]), unless it is given:
/// `rate_limited!(peer = uid.into(), warn, "user {uid} is refused")`.
#[macro_export]
macro_rules! rate_limited {
    (peer = $peer:expr, $level:ident, $($message:tt)+) => {{
        static SITE: $crate::rate_limit::SiteRateLimit = $crate::rate_limit::SiteRateLimit::new();
        match SITE.admit($peer) {
            None => {}
            Some(0) => log::$level!($($message)+),
            Some(suppressed) => {
                log::$level!(
                    "{} ({suppressed} more like this suppressed)",
                    format_args!($($message)+)
                );
            }
        }
    }};
    ($level:ident, $($message:tt)+) => {
        $crate::rate_limited!(peer = $crate::rate_limit::thread_peer(), $level, $($message)+)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admit_beyond_burst_is_silent_until_the_interval_is_over() {
        let site = SiteRateLimit::new();
        let start = Instant::now();
        for _ in 0..BURST {
            assert_eq!(site.admit_at(1, start), Some(0));
        }
        assert_eq!(site.admit_at(1, start), None);
        assert_eq!(
            site.admit_at(1, start + INTERVAL - Duration::from_millis(1)),
            None
        );
        assert_eq!(site.admit_at(1, start + INTERVAL), Some(2));
        assert_eq!(site.admit_at(1, start + INTERVAL), Some(0));
    }

    #[test]
    fn a_limit_of_one_admits_one_message_per_interval() {
        let mut window = Window::new();
        let start = Instant::now();
        assert_eq!(window.admit(1, start), Some(0));
        assert_eq!(window.admit(1, start), None);
        assert_eq!(window.admit(1, start + INTERVAL), Some(1));
    }

    #[test]
    fn a_storm_is_admitted_in_part_and_later_messages_again() {
        let mut window = Window::new();
        let start = Instant::now();
        let admitted = (0..1000).filter(|_| window.admit(100, start).is_some());
        assert_eq!(admitted.count(), 100);
        assert_eq!(window.admit(100, start + INTERVAL), Some(900));
    }

    #[test]
    fn one_peer_s_flood_hides_no_other_peer_s_message() {
        let site = SiteRateLimit::new();
        let start = Instant::now();
        let admitted = (0..1000).filter(|_| site.admit_at(1, start).is_some());
        assert_eq!(admitted.count(), usize::try_from(BURST).unwrap());
        assert_eq!(site.admit_at(2, start), Some(0));
    }

    #[test]
    fn a_peer_with_many_identities_fills_neither_log_nor_memory() {
        let site = SiteRateLimit::new();
        let start = Instant::now();
        let admitted = (0..100_000).filter(|&peer| site.admit_at(peer, start).is_some());
        assert_eq!(
            admitted.count(),
            MAX_PEERS + usize::try_from(BURST).unwrap()
        );
        assert_eq!(site.0.lock().peers.len(), MAX_PEERS);
        // A peer that was there before still has its own window.
        assert_eq!(site.admit_at(3, start), Some(0));
        // When the windows are over, new peers get their own, and the first message tells what was
        // suppressed.
        assert!(site.admit_at(100_000, start + INTERVAL).is_some());
        assert_eq!(site.0.lock().peers.len(), 1);
    }

    #[test]
    fn hosts_are_told_apart_by_their_addresses() {
        let peers = ["10.0.0.1", "10.0.0.2", "fe80::1", "fe80::2"]
            .map(|address| peer_at(address.parse().unwrap()));
        let different: std::collections::BTreeSet<_> = peers.into_iter().collect();
        assert_eq!(different.len(), peers.len());
        assert_eq!(peers[0], peer_at("::ffff:10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn macro_in_a_loop_shares_one_site_per_peer() {
        let mut evaluated = 0;
        for peer in [1, 2] {
            set_thread_peer(peer);
            for _ in 0..1000 {
                rate_limited!(trace, "seen {}", {
                    evaluated += 1;
                    evaluated
                });
            }
        }
        set_thread_peer(0);
        assert!(evaluated <= 2 * BURST);
    }
}
