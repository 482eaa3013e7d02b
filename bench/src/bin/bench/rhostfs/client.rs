//! Access by an endpoint that calls the rhostfs server with protocol messages only.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_dvk::abi::rhostfs::UsrStat;
use gangplank_dvk::abi::{DcId, Endpoint, M1, M2, Message};
use gangplank_dvk::endpoint::{BoundEndpoint, Carrier, SharedBuffers};
use zerocopy::{FromZeros, IntoBytes};

use super::{FileAccess, whole};
use crate::tree::LARGE_LEN;

/// Limit for a reply, and for the server to appear.
const LIMIT: Duration = Duration::from_secs(30);

/// Numbers of the calls.
const OPEN: i32 = 5;
const FSTAT64: i32 = 197;
const PREAD64: i32 = 180;
const PWRITE64: i32 = 181;

/// Flags of open(2) on i386.
const O_RDWR: i32 = 2;

/// A file, by its handle at the server.
pub(super) struct Client {
    endpoint: Arc<dyn BoundEndpoint>,
    server: Endpoint,
    handle: i32,
    /// It must outlive its endpoints.
    _carrier: Box<dyn Carrier>,
}

impl Client {
    /// Binds `endpoint` of container 0 and opens `path` at `server`.
    pub(super) fn open(
        carrier: Box<dyn Carrier>,
        endpoint: Endpoint,
        server: Endpoint,
        path: &str,
    ) -> Result<Self> {
        let dc = DcId::new(0).context("container 0")?;
        let deadline = Instant::now() + LIMIT;
        let bound = until(deadline, || Ok(carrier.bind(dc, endpoint, "bench")?));
        let mut client = Self {
            endpoint: bound?,
            server,
            handle: 0,
            _carrier: carrier,
        };
        let name = format!("{path}\0");
        let opened = until(deadline, || {
            let mut lent = SharedBuffers::new();
            let arm = M1 {
                i1: i32::try_from(name.len())?,
                i3: O_RDWR,
                p1: lent.read_only(name.as_bytes()),
                ..M1::default()
            };
            client.ask(&Message::new(OPEN, &arm), &mut lent)
        });
        client.handle = opened.with_context(|| format!("opening {path}"))?;
        Ok(client)
    }

    fn ask(&self, message: &Message, lent: &mut SharedBuffers<'_>) -> Result<i32> {
        let answer = self.endpoint.sendrec(self.server, message, lent, LIMIT)?;
        ensure!(answer.kind >= 0, "it was refused: {}", answer.kind);
        Ok(answer.kind)
    }

    /// Reads or writes `size` bytes of the shared buffer at `address`.
    fn transfer(
        &self,
        kind: i32,
        at: u64,
        size: usize,
        address: u32,
        lent: &mut SharedBuffers<'_>,
    ) -> Result<()> {
        let arm = M2 {
            i1: self.handle,
            i2: i32::try_from(size)?,
            l1: i32::try_from(at)?,
            p1: address,
            ..M2::default()
        };
        let moved = self.ask(&Message::new(kind, &arm), lent)?;
        whole(usize::try_from(moved)?, size)
    }
}

/// Repeats `attempt` until it succeeds or `deadline` passes.
fn until<T>(deadline: Instant, attempt: impl Fn() -> Result<T>) -> Result<T> {
    loop {
        match attempt() {
            Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            done => return done,
        }
    }
}

impl FileAccess for Client {
    fn look(&mut self) -> Result<()> {
        let mut stat = UsrStat::new_zeroed();
        let mut lent = SharedBuffers::new();
        let arm = M1 {
            i1: self.handle,
            p1: lent.writable(stat.as_mut_bytes()),
            ..M1::default()
        };
        self.ask(&Message::new(FSTAT64, &arm), &mut lent)?;
        ensure!(u64::from(stat.size) == LARGE_LEN, "a file of another size");
        Ok(())
    }

    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<()> {
        let size = into.len();
        let mut lent = SharedBuffers::new();
        let address = lent.writable(into);
        self.transfer(PREAD64, at, size, address, &mut lent)
    }

    fn write(&mut self, at: u64, from: &[u8]) -> Result<()> {
        let mut lent = SharedBuffers::new();
        let address = lent.read_only(from);
        self.transfer(PWRITE64, at, from.len(), address, &mut lent)
    }
}
