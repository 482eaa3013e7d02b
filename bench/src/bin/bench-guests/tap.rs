//! A socket between a guest and its daemon, which tells how many requests the daemon has returned.
//!
//! Messages and descriptors pass unchanged. On their way the tap learns where the guest's rings are,
//! and reads from time to time how far their used indices have come. Requests and notifications do
//! not pass through it, so it costs neither side anything.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use gangplank_vhost_user::Deadline;
use gangplank_vhost_user::message::{FrontendReq, Inbox, Message};
use tempfile::TempDir;

/// Pause between two looks at the rings: too short for 65,536 requests, the range of an index.
const LOOK: Duration = Duration::from_millis(5);

/// How long no request may have been returned until a guest counts as quiet.
const QUIET: Duration = Duration::from_millis(200);

/// How long a guest may take to become quiet.
const QUIET_LIMIT: Duration = Duration::from_secs(30);

/// Offset of the index in a used ring (virtio 1.2, section 2.7.8).
const USED_INDEX: u64 = 2;

/// Bytes of a memory region's description in a message: guest address, size, user address, offset
/// in the file, 8 bytes each.
const REGION_LEN: usize = 32;

/// A tap, until it is dropped. Its connections last as long as both ends.
pub(crate) struct Tap {
    socket: PathBuf,
    rings: Arc<Mutex<Rings>>,
    _dir: TempDir,
}

/// What the tap knows of the guest.
#[derive(Default)]
struct Rings {
    regions: Vec<Region>,
    by_index: BTreeMap<u32, Ring>,
}

/// A part of the guest's memory.
struct Region {
    file: File,
    user_address: u64,
    size: u64,
    offset: u64,
}

/// A ring whose address is known.
struct Ring {
    /// The used ring's address, as the frontend sees it.
    used: u64,
    seen: u16,
    /// Requests returned so far.
    returned: u64,
}

impl Tap {
    /// A tap on the daemon's socket.
    pub(crate) fn start(daemon: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-tap-")
            .tempdir()?;
        let socket = dir.path().join("tap.sock");
        let listener = UnixListener::bind(&socket)?;
        let rings = Arc::new(Mutex::new(Rings::default()));
        let (known, daemon) = (Arc::clone(&rings), daemon.to_owned());
        thread::spawn(move || {
            for frontend in listener.incoming().map_while(Result::ok) {
                if let Err(error) = connect(frontend, &daemon, &known) {
                    eprintln!("bench-guests: cannot tap {}: {error:#}", daemon.display());
                }
            }
        });
        let looked_at = Arc::downgrade(&rings);
        thread::spawn(move || {
            while let Some(rings) = looked_at.upgrade() {
                lock(&rings).look();
                drop(rings);
                thread::sleep(LOOK);
            }
        });
        Ok(Self {
            socket,
            rings,
            _dir: dir,
        })
    }

    /// Where guests connect.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Requests that the daemon has returned so far, once no more come.
    pub(crate) fn returned(&self) -> Result<u64> {
        let read = || {
            let mut rings = lock(&self.rings);
            rings.look();
            rings.by_index.values().map(|ring| ring.returned).sum()
        };
        let (begun, mut last, mut since) = (Instant::now(), read(), Instant::now());
        while since.elapsed() < QUIET {
            thread::sleep(LOOK);
            let now = read();
            if now != last {
                (last, since) = (now, Instant::now());
            }
            if begun.elapsed() > QUIET_LIMIT {
                bail!(
                    "the guest still makes requests {} s after its work",
                    QUIET_LIMIT.as_secs()
                );
            }
        }
        Ok(last)
    }
}

fn lock(rings: &Mutex<Rings>) -> std::sync::MutexGuard<'_, Rings> {
    rings.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect(frontend: UnixStream, daemon: &Path, rings: &Arc<Mutex<Rings>>) -> Result<()> {
    let backend = UnixStream::connect(daemon).context("connecting")?;
    let (requests, replies) = (
        (frontend.try_clone()?, backend.try_clone()?),
        (backend, frontend),
    );
    let rings = Arc::clone(rings);
    thread::spawn(move || {
        pass_on(&requests.0, &requests.1, |message| {
            lock(&rings).learn(message)
        });
    });
    thread::spawn(move || pass_on(&replies.0, &replies.1, |_| {}));
    Ok(())
}

/// Passes messages on until one side ends, and ends the other.
fn pass_on(from: &UnixStream, to: &UnixStream, mut learn: impl FnMut(&Message)) {
    let mut inbox = Inbox::default();
    while let Ok(message) = inbox.wait(from.as_fd(), Deadline::NONE) {
        learn(&message);
        let descriptors = message.borrowed_descriptors();
        if message
            .send(to.as_fd(), &descriptors, Deadline::NONE)
            .is_err()
        {
            break;
        }
    }
    for side in [from, to] {
        let _ = side.shutdown(std::net::Shutdown::Both);
    }
}

impl Rings {
    fn learn(&mut self, message: &Message) {
        let files = || {
            message
                .descriptors
                .iter()
                .map(|file| file.try_clone().map(File::from))
        };
        let payload = message.payload.as_slice();
        match message.frontend_request() {
            Some(FrontendReq::SET_MEM_TABLE) => {
                self.regions.clear();
                let described = payload.get(8..).unwrap_or_default();
                self.add(described, files().collect());
            }
            Some(FrontendReq::ADD_MEM_REG) => {
                self.add(payload.get(8..).unwrap_or_default(), files().collect());
            }
            Some(FrontendReq::SET_VRING_ADDR) => {
                let index = payload.get(..4).and_then(|bytes| bytes.try_into().ok());
                if let (Some(index), Some(used)) = (index, number(payload, 16)) {
                    let index = u32::from_ne_bytes(index);
                    let ring = self.by_index.entry(index).or_insert(Ring {
                        used,
                        seen: 0,
                        returned: 0,
                    });
                    ring.used = used;
                    ring.seen = 0;
                }
            }
            _ => {}
        }
    }

    fn add(&mut self, described: &[u8], files: Vec<std::io::Result<File>>) {
        for (region, file) in described.chunks_exact(REGION_LEN).zip(files) {
            if let (Ok(file), Some(size), Some(user_address), Some(offset)) = (
                file,
                number(region, 8),
                number(region, 16),
                number(region, 24),
            ) {
                self.regions.push(Region {
                    file,
                    user_address,
                    size,
                    offset,
                });
            }
        }
    }

    /// Counts what was returned since the last look.
    fn look(&mut self) {
        let Self { regions, by_index } = self;
        for ring in by_index.values_mut() {
            if let Some(index) = used_index(regions, ring.used) {
                ring.returned += u64::from(index.wrapping_sub(ring.seen));
                ring.seen = index;
            }
        }
    }
}

fn used_index(regions: &[Region], used: u64) -> Option<u16> {
    let region = regions.iter().find(|region| {
        let within = used.checked_sub(region.user_address);
        within.is_some_and(|within| within + USED_INDEX + 2 <= region.size)
    })?;
    let mut index = [0; 2];
    let at = region.offset + (used - region.user_address) + USED_INDEX;
    region.file.read_exact_at(&mut index, at).ok()?;
    Some(u16::from_le_bytes(index))
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 8)?;
    Some(u64::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn table(size: u64, user: u64, offset: u64) -> Vec<u8> {
        let mut payload = vec![1, 0, 0, 0, 0, 0, 0, 0];
        for number in [0, size, user, offset] {
            payload.extend_from_slice(&u64::to_ne_bytes(number));
        }
        payload
    }

    fn with_file(request: FrontendReq, payload: Vec<u8>, file: &File) -> Message {
        let mut message = Message::new(request, payload);
        message.descriptors.push(file.try_clone().unwrap().into());
        message
    }

    #[test]
    fn requests_are_counted_beyond_the_range_of_an_index() {
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(0x3000).unwrap();
        let mut rings = Rings::default();
        rings.learn(&with_file(
            FrontendReq::SET_MEM_TABLE,
            table(0x2000, 0x7000, 0x1000),
            &memory,
        ));
        // Index and flags, then the addresses of descriptors, used and available ring, and log.
        let mut payload = vec![1, 0, 0, 0, 0, 0, 0, 0];
        for address in [0x7000_u64, 0x7400, 0x7800, 0] {
            payload.extend_from_slice(&address.to_ne_bytes());
        }
        rings.learn(&Message::new(FrontendReq::SET_VRING_ADDR, payload));
        for index in [3_u16, 0xffff, 4] {
            memory.write_all_at(&index.to_le_bytes(), 0x1402).unwrap();
            rings.look();
        }
        assert_eq!(rings.by_index[&1].returned, 0x1_0004);
    }

    #[test]
    fn an_address_outside_of_memory_counts_nothing() {
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(0x1000).unwrap();
        let region = Region {
            file: memory,
            user_address: 0x7000,
            size: 0x1000,
            offset: 0,
        };
        let regions = [region];
        assert_eq!(used_index(&regions, 0x7000), Some(0));
        for outside in [0, 0x6fff, 0x7ffd, u64::MAX - 8] {
            assert_eq!(used_index(&regions, outside), None, "{outside:#x}");
        }
    }

    #[test]
    fn messages_pass_with_their_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let daemon = dir.path().join("daemon.sock");
        let listener = UnixListener::bind(&daemon).unwrap();
        let tap = Tap::start(&daemon).unwrap();
        let frontend = UnixStream::connect(tap.socket()).unwrap();
        let (backend, _) = listener.accept().unwrap();
        let memory = tempfile::tempfile().unwrap();
        let sent = with_file(FrontendReq::SET_MEM_TABLE, table(1, 2, 3), &memory);
        let descriptors = sent.borrowed_descriptors();
        let deadline = Deadline::after(Duration::from_secs(10));
        sent.send(frontend.as_fd(), &descriptors, deadline).unwrap();
        let mut ready = [PollFd::new(&backend, PollFlags::IN)];
        poll(&mut ready, None).unwrap();
        let mut inbox = Inbox::default();
        let arrived = inbox.wait(backend.as_fd(), deadline).unwrap();
        assert_eq!(arrived.payload, sent.payload);
        assert_eq!(arrived.descriptors.len(), 1);
        drop(frontend);
        assert!(
            inbox.wait(backend.as_fd(), deadline).is_err(),
            "the end is passed on"
        );
    }
}
