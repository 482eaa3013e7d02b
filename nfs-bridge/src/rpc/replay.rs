//! The duplicate request cache: a call that comes again gets the first one's reply, and is not
//! executed a second time.
//!
//! A client sends a call again when its connection was lost before the reply. A second REMOVE would
//! fail, and a second WRITE could overwrite what came later. A call is known again by the client's
//! address, its number (xid), and a hash of the record: of its length, and of its first and last
//! bytes if it is long. The hash is a fast one with a seed of the process.
//!
//! Linux' server compares the client's port as well, since it hashes no more than the first 256
//! bytes of the arguments (`fs/nfsd/nfscache.c`). Its own client comes back from the same port, but
//! others do not. What is hashed here has all of a call but the middle of what a large WRITE
//! writes. So the port tells nothing more about a call, and is left out.
//!
//! A reply counts for two minutes, as with Linux. The number of replies is limited for all clients
//! together. Beyond that limit, the older ones go. If there are none, the oldest reply goes of the
//! client that has most. So a client that is busy loses its own, and not those of another.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use parking_lot::Mutex;

use super::reply::Reply;

/// Takes a reply; `None` if there is none.
pub type Responder = Box<dyn FnOnce(Option<Arc<Reply>>) + Send>;

/// Most replies that are kept, of all clients.
const MAX_REPLIES: usize = 4096;

/// How long a reply is kept, as far as the client has no more of them than others (Linux:
/// `RC_EXPIRE`). Clients repeat calls each minute.
const KEPT: Duration = Duration::from_secs(120);

/// Longest reply that is kept, in bytes. Those of calls that change something are far shorter.
const MAX_REPLY: usize = 2048;

/// Most repetitions that wait for one call. Further ones get no reply.
const MAX_WAITING: usize = 8;

/// Bytes at the beginning of a record that are hashed, and as many at its end. The first ones have
/// credentials, handle, offset, names and attributes of any call. Of the bytes between, the first 8
/// of each [`SAMPLED`] are hashed: a client that begins its numbers anew must not get the reply to
/// another WRITE.
const HASHED: usize = 4096;

/// See [`HASHED`].
const SAMPLED: usize = 512;

/// A call that may come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReplayKey {
    address: IpAddr,
    xid: u32,
    hash: u64,
}

enum Entry {
    /// It is being executed. Its repetitions wait.
    Running(Vec<Responder>),
    /// It has this reply since then.
    Done(Arc<Reply>, Instant),
}

#[derive(Default)]
struct Entries {
    by_key: HashMap<ReplayKey, Entry>,
    /// The finished calls of each client, oldest first, and when they finished.
    done: HashMap<IpAddr, VecDeque<(ReplayKey, Instant)>>,
    /// How many these are.
    count: usize,
}

impl Entries {
    /// Keeps the reply to a call that is running. Returns what waits for it.
    fn keep(&mut self, key: ReplayKey, reply: &Arc<Reply>, now: Instant) -> Option<Entry> {
        let own = self.done.entry(key.address).or_default();
        own.push_back((key, now));
        self.count += 1;
        let before = self.by_key.insert(key, Entry::Done(Arc::clone(reply), now));
        if self.count > MAX_REPLIES {
            self.drop_one(now);
        }
        before
    }

    /// Drops the reply to a call if it is old: a client that uses its numbers again, such as one
    /// that has booted, means another call.
    fn expire(&mut self, key: ReplayKey, now: Instant) {
        if let Some(Entry::Done(_, finished)) = self.by_key.get(&key)
            && now.saturating_duration_since(*finished) >= KEPT
        {
            self.by_key.remove(&key);
            self.count -= 1;
            if let Some(own) = self.done.get_mut(&key.address) {
                own.retain(|(other, _)| *other != key);
            }
        }
    }

    /// Drops the old replies, or the oldest one of the client that has most.
    fn drop_one(&mut self, now: Instant) {
        let mut dropped = Vec::new();
        let expired = |(_, finished): &mut (ReplayKey, Instant)| now - *finished >= KEPT;
        for own in self.done.values_mut() {
            while let Some((old, _)) = own.pop_front_if(expired) {
                dropped.push(old);
            }
        }
        if dropped.is_empty() {
            let largest = self.done.values_mut().max_by_key(|own| own.len());
            let oldest = largest.and_then(VecDeque::pop_front);
            dropped.extend(oldest.map(|(oldest, _)| oldest));
        }
        self.done.retain(|_, own| !own.is_empty());
        self.count -= dropped.len();
        for key in dropped {
            self.by_key.remove(&key);
        }
    }
}

/// The replies to the last calls that changed something.
#[derive(Default)]
pub struct ReplayCache {
    hasher: RandomState,
    entries: Mutex<Entries>,
}

impl std::fmt::Debug for ReplayCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplayCache").finish_non_exhaustive()
    }
}

impl ReplayCache {
    fn hash(&self, record: &[u8]) -> u64 {
        match (
            record.first_chunk::<HASHED>(),
            record.last_chunk::<HASHED>(),
        ) {
            (Some(first), Some(last)) if record.len() > 2 * HASHED => {
                let parts = record.chunks_exact(SAMPLED);
                let samples: Vec<&[u8; 8]> = parts.filter_map(|part| part.first_chunk()).collect();
                self.hasher.hash_one((record.len(), first, last, samples))
            }
            _ => self.hasher.hash_one(record),
        }
    }

    /// Registers a call. Returns its key and its responder if it is to be executed. If it is a
    /// repetition, it is answered here, at once or when the first one is.
    pub fn begin(
        &self,
        address: IpAddr,
        xid: u32,
        record: &[u8],
        respond: Responder,
    ) -> Option<(ReplayKey, Responder)> {
        let address = address.to_canonical();
        let hash = self.hash(record);
        let key = ReplayKey { address, xid, hash };
        let mut entries = self.entries.lock();
        entries.expire(key, Instant::now());
        match entries.by_key.get_mut(&key) {
            None => {
                entries.by_key.insert(key, Entry::Running(Vec::new()));
                Some((key, respond))
            }
            Some(Entry::Running(waiting)) if waiting.len() < MAX_WAITING => {
                waiting.push(respond);
                None
            }
            Some(Entry::Running(_)) => {
                drop(entries);
                respond(None);
                None
            }
            Some(Entry::Done(reply, _)) => {
                let reply = Arc::clone(reply);
                drop(entries);
                respond(Some(reply));
                None
            }
        }
    }

    /// Keeps the reply of a call that was executed, and answers its repetitions. With `keep` false
    /// the next repetition is executed.
    pub fn finish(&self, key: ReplayKey, reply: &Arc<Reply>, keep: bool) {
        let mut entries = self.entries.lock();
        let before = if keep && reply.len() <= MAX_REPLY {
            entries.keep(key, reply, Instant::now())
        } else {
            entries.by_key.remove(&key)
        };
        drop(entries);
        if let Some(Entry::Running(waiting)) = before {
            for respond in waiting {
                respond(Some(Arc::clone(reply)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::mpsc;

    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn responder() -> (Responder, mpsc::Receiver<Option<Arc<Reply>>>) {
        let (send, receive) = mpsc::channel();
        (Box::new(move |reply| send.send(reply).unwrap()), receive)
    }

    #[test]
    fn a_repetition_gets_the_first_reply_whether_it_comes_before_or_after_it() {
        let cache = ReplayCache::default();
        let (first, _) = responder();
        let (key, _) = cache.begin(CLIENT, 1, b"remove", first).unwrap();
        let (early, got_early) = responder();
        assert!(cache.begin(CLIENT, 1, b"remove", early).is_none());
        assert!(got_early.try_recv().is_err());
        cache.finish(key, &Arc::new(b"done".to_vec().into()), true);
        assert_eq!(got_early.recv().unwrap().unwrap().bytes, b"done");
        let (late, got_late) = responder();
        assert!(cache.begin(CLIENT, 1, b"remove", late).is_none());
        assert_eq!(got_late.recv().unwrap().unwrap().bytes, b"done");
    }

    #[test]
    fn a_long_write_that_differs_in_the_middle_alone_is_another_call() {
        let cache = ReplayCache::default();
        let before = vec![0; 20_000];
        let mut after = before.clone();
        let middle = 20 * SAMPLED;
        after[middle..middle + SAMPLED].fill(1);
        assert!(middle > HASHED && middle + HASHED < before.len());
        let (first, _) = responder();
        assert!(cache.begin(CLIENT, 1, &before, first).is_some());
        let (second, _) = responder();
        assert!(cache.begin(CLIENT, 1, &after, second).is_some());
        let (again, _) = responder();
        assert!(cache.begin(CLIENT, 1, &after, again).is_none());
    }

    #[test]
    fn an_old_reply_does_not_answer_a_call_that_looks_the_same() {
        let mut entries = Entries::default();
        let key = ReplayKey {
            address: CLIENT,
            xid: 1,
            hash: 2,
        };
        let finished = Instant::now();
        entries.keep(key, &Arc::default(), finished);
        entries.expire(key, finished + KEPT - Duration::from_secs(1));
        assert!(entries.by_key.contains_key(&key));
        entries.expire(key, finished + KEPT);
        assert!(entries.by_key.is_empty() && entries.count == 0);
        assert!(entries.done.values().all(VecDeque::is_empty));
    }

    #[test]
    fn another_call_with_the_same_number_is_executed() {
        let cache = ReplayCache::default();
        let begun = cache.begin(CLIENT, 1, b"remove a", responder().0).unwrap();
        cache.finish(begun.0, &Arc::default(), true);
        assert!(cache.begin(CLIENT, 1, b"remove b", responder().0).is_some());
        let other = IpAddr::V4(Ipv4Addr::BROADCAST);
        assert!(cache.begin(other, 1, b"remove a", responder().0).is_some());
    }

    #[test]
    fn large_calls_with_the_same_number_differ_by_their_head_their_end_and_their_length() {
        let cache = ReplayCache::default();
        let record = vec![0; 1 << 20];
        let is_new = |record: &[u8]| cache.begin(CLIENT, 1, record, responder().0).is_some();
        assert!(is_new(&record));
        assert!(!is_new(&record));
        let last = record.len() - 1;
        for at in [0, HASHED - 1, last - HASHED + 1, last] {
            let mut other = record.clone();
            other[at] = 1;
            assert!(is_new(&other), "{at}");
        }
        assert!(is_new(&record[1..]));
        // One that is short is compared as a whole.
        let mut short = vec![0; 2 * HASHED];
        assert!(is_new(&short));
        short[HASHED] = 1;
        assert!(is_new(&short));
    }

    #[test]
    fn a_call_that_was_put_off_is_executed_again() {
        let cache = ReplayCache::default();
        let (key, _) = cache.begin(CLIENT, 1, b"mkdir", responder().0).unwrap();
        cache.finish(key, &Arc::default(), false);
        assert!(cache.begin(CLIENT, 1, b"mkdir", responder().0).is_some());
    }

    #[test]
    fn a_busy_client_loses_its_own_replies_and_not_those_of_others() {
        let cache = ReplayCache::default();
        let others: Vec<_> = (1..=100)
            .map(|host| IpAddr::from([10, 0, 2, host]))
            .collect();
        let call = |client, xid: u32| {
            let begun = cache.begin(client, xid, b"x", responder().0);
            if let Some((key, _)) = &begun {
                cache.finish(*key, &Arc::default(), true);
            }
            begun.is_some()
        };
        for other in &others {
            assert!(call(*other, 1));
        }
        for xid in 0..10_000 {
            assert!(call(CLIENT, xid));
        }
        for other in &others {
            assert!(!call(*other, 1), "{other}");
        }
        assert!(!call(CLIENT, 9_999));
        assert!(call(CLIENT, 0));
        let entries = cache.entries.lock();
        assert_eq!(entries.by_key.len(), MAX_REPLIES);
        assert_eq!(entries.count, MAX_REPLIES);
    }

    #[test]
    fn old_replies_go_first() {
        let mut entries = Entries::default();
        let now = Instant::now();
        let key = |host: u8, xid| ReplayKey {
            address: IpAddr::from([10, 0, 2, host]),
            xid,
            hash: 0,
        };
        let reply = Arc::default();
        for (host, xid, seconds) in [(1, 1, 0), (2, 1, 10), (1, 2, 119), (1, 3, 121)] {
            entries.keep(key(host, xid), &reply, now + Duration::from_secs(seconds));
        }
        entries.drop_one(now + Duration::from_secs(131));
        assert!(!entries.by_key.contains_key(&key(1, 1)));
        assert!(!entries.by_key.contains_key(&key(2, 1)));
        assert_eq!((entries.count, entries.done.len()), (2, 1));
    }
}
