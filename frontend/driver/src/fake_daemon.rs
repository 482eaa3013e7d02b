//! A daemon for tests, in this process: a function answers each request.

use std::io::{Read, Write};
use std::iter;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use gangplank_fuse::{InHeader, OutHeader, Unique};
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::core::Core;
use super::fake_device::FakeDevice;
use super::{Driver, FuseSession, InitOptions, Options};
use gangplank_vhost_user::feature;

/// The order in which the daemon answers requests that arrived together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ReplyOrder {
    /// In the order of arrival.
    #[default]
    Forward,
    /// The last one first, among those that arrive within some milliseconds: as a daemon with
    /// several threads does.
    Backward,
}

impl ReplyOrder {
    /// Time between two looks at the rings.
    const fn poll_interval(self) -> Duration {
        match self {
            Self::Forward => Duration::from_micros(50),
            Self::Backward => Duration::from_millis(5),
        }
    }
}

/// The answer to a request: the bytes behind the header, or an errno.
pub(crate) type Reply = std::result::Result<Vec<u8>, Errno>;

/// A daemon that serves until it is dropped.
#[derive(Debug)]
pub(crate) struct FakeDaemon {
    driver: Driver,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FakeDaemon {
    /// `answer` gets each request's header and the bytes behind it, with the data of a WRITE.
    pub(crate) fn start(
        order: ReplyOrder,
        answer: impl FnMut(&InHeader, &[u8]) -> Reply + Send + 'static,
    ) -> Self {
        Self::with_queue_size(Options::default().queue_size, order, answer)
    }

    /// As [`Self::start`], with rings of `queue_size` descriptors.
    pub(crate) fn with_queue_size(
        queue_size: u16,
        order: ReplyOrder,
        answer: impl FnMut(&InHeader, &[u8]) -> Reply + Send + 'static,
    ) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || converse(theirs));
        let options = Options {
            request_queues: Some(1),
            queue_size,
            limit: Duration::from_secs(10),
            ..Options::default()
        };
        let driver = Driver::on_stream(ours, Path::new("fake"), &options).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (core, told) = (Arc::clone(&driver.core), Arc::clone(&stop));
        let thread = thread::spawn(move || serve(&core, &told, order, answer));
        Self {
            driver,
            stop,
            thread: Some(thread),
        }
    }

    pub(crate) fn driver(&self) -> &Driver {
        &self.driver
    }

    pub(crate) fn session(&self) -> FuseSession {
        self.driver.session(&InitOptions::default()).unwrap()
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the daemon panicked");
        }
    }
}

/// vhost-user: a daemon without protocol features answers GET_FEATURES alone.
fn converse(mut stream: UnixStream) {
    let mut header = [0; 12];
    while stream.read_exact(&mut header).is_ok() {
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; word(8) as usize];
        stream.read_exact(&mut payload).unwrap();
        if word(0) == 1 {
            let mut reply = [1, 5, 8].map(u32::to_le_bytes).concat();
            reply.extend_from_slice(&feature::VERSION_1.to_le_bytes());
            stream.write_all(&reply).unwrap();
        }
    }
}

fn serve(
    core: &Core,
    stop: &AtomicBool,
    order: ReplyOrder,
    mut answer: impl FnMut(&InHeader, &[u8]) -> Reply + Send + 'static,
) {
    let mut devices: Vec<FakeDevice> = core
        .queues
        .iter()
        .map(|queue| {
            let (addresses, size) = queue.layout();
            FakeDevice::new(&core.memory, addresses, size)
        })
        .collect();
    while !stop.load(Ordering::Relaxed) {
        for (device, queue) in devices.iter_mut().zip(&core.queues) {
            let mut chains: Vec<_> = iter::from_fn(|| device.take()).collect();
            if order == ReplyOrder::Backward {
                chains.reverse();
            }
            for (head, segments) in chains {
                let request = device.request(&segments);
                let (header, body) = InHeader::read_from_prefix(&request).unwrap();
                let reply = answer(&header, body);
                let mut len = 0;
                if segments.iter().any(|segment| segment.writable) {
                    let bytes = encode(header.unique, reply);
                    device.answer(&segments, &bytes);
                    len = u32::try_from(bytes.len()).unwrap();
                }
                device.give_back(u32::from(head), len);
                queue.call().write(1).unwrap();
            }
        }
        thread::sleep(order.poll_interval());
    }
}

fn encode(unique: u64, reply: Reply) -> Vec<u8> {
    let unique = Unique::new(unique);
    match reply {
        Ok(payload) => {
            let header = OutHeader::ok(unique, payload.len());
            [header.as_bytes(), &payload].concat()
        }
        Err(errno) => OutHeader::error(unique, errno.raw_os_error())
            .as_bytes()
            .to_vec(),
    }
}
