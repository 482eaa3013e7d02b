//! Orders the deaths of workers.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_backend::crash_hook::{Death, Order, Point, VARIABLE};
use gangplank_fuse::Opcode;
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::tools;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::NamedTempFile;

/// Limit for a worker to get to the point at which it dies.
const REACHING: Duration = Duration::from_secs(60);

/// A daemon whose workers die where a test says.
pub(super) struct Crashing {
    /// The daemon.
    pub(super) fixture: Fixture,
    order: NamedTempFile,
}

impl Crashing {
    /// A daemon with further `arguments`.
    pub(super) fn new(arguments: &[&str]) -> Result<Self> {
        let order = NamedTempFile::new()?;
        order.as_file().set_len(Order::LEN as u64)?;
        let program = tools::gangplankd_that_crashes()?;
        let fixture = Fixture::quiet_with(|options| {
            let options = options.program(&program).arguments(arguments);
            options.variable(VARIABLE, order.path())
        })?;
        Ok(Self { fixture, order })
    }

    fn file(&self) -> &File {
        self.order.as_file()
    }

    /// Orders deaths at `point` with an operation; with any for `None`. The first `passes` are
    /// spared.
    pub(super) fn order(
        &self,
        (opcode, point): (Option<Opcode>, Point),
        death: Death,
        passes: u32,
        deaths: u32,
    ) -> Result<()> {
        let order = Order {
            point: point as u32,
            opcode: match point {
                // None is known there.
                Point::Taken => 0,
                _ => opcode.map_or(0, |opcode| opcode as u32),
            },
            death: death as u32,
            passes,
            deaths,
            died: 0,
        };
        // The point at last, which makes it valid.
        let bytes = order.to_bytes();
        self.clear()?;
        self.file().write_all_at(&bytes[4..], 4)?;
        self.file().write_all_at(&bytes[..4], 0)?;
        Ok(())
    }

    /// No further deaths.
    pub(super) fn clear(&self) -> Result<()> {
        Ok(self.file().write_all_at(&[0; 4], 0)?)
    }

    /// Deaths since the last order.
    pub(super) fn died(&self) -> Result<u32> {
        let mut bytes = [0; 4];
        let at = Order::LEN - bytes.len();
        self.file().read_exact_at(&mut bytes, at as u64)?;
        Ok(u32::from_ne_bytes(bytes))
    }

    /// Waits until a worker stands at the ordered point, the time number `count`, and kills it.
    /// Returns false if it does not get there before `is_over`.
    pub(super) fn kill(
        &self,
        count: u32,
        mut is_over: impl FnMut() -> Result<bool>,
    ) -> Result<bool> {
        let deadline = Instant::now() + REACHING;
        while self.died()? < count {
            if is_over()? && self.died()? < count {
                return Ok(false);
            }
            ensure!(Instant::now() < deadline, "no worker gets to the point");
            thread::sleep(Duration::from_micros(200));
        }
        let worker = Pid::from_raw(self.fixture.last_worker()?.try_into()?);
        kill_process(worker.context("a process")?, Signal::KILL)?;
        Ok(true)
    }
}
