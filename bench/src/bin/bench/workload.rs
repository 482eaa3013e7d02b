//! A workload as the driver sees it, and the loop that drives it: a number of flows, each of which
//! repeats a sequence of requests.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{NodeId, Operation};

use crate::device::{Answer, Device, RequestKind};

/// Warm-up before anything counts, as a fraction (1/8) of the run's time.
const WARM_UP: u32 = 8;

/// Limit of the latencies that are kept of one run.
pub(crate) const LATENCIES: usize = 1 << 18;

/// Limit of a workload that runs once.
pub(crate) const LONGEST: Duration = Duration::from_secs(60);

/// What a flow does after a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It sends its next request, of that kind.
    Ask(usize),
    /// An operation is complete.
    Done,
}

/// References to nodes that FORGET returns to the daemon.
pub(crate) type Forgets = Vec<(NodeId, u64)>;

/// A reply.
pub(crate) struct Reply<'a> {
    /// The kind of the request.
    pub(crate) kind: usize,
    /// The reply's header and structures.
    pub(crate) answer: Answer<'a>,
    /// File data, if [`Workload::reads_data`].
    pub(crate) data: &'a [u8],
}

/// Work made of requests.
pub(crate) trait Workload {
    /// The kinds of request. Each operation begins with the first.
    fn request_kinds(&self) -> Vec<RequestKind<'_>>;

    /// Prepares the workload, untimed. `flows` flows will run at the same time.
    fn prepare(&mut self, device: &mut Device, flows: usize) -> Result<()>;

    /// Called when a flow begins another operation.
    fn begin(&mut self, flow: usize);

    /// The request of kind `kind` of a flow.
    fn request(&self, flow: usize, kind: usize) -> (NodeId, Operation<'_>);

    /// Whether the workload reads the file data in replies.
    fn reads_data(&self) -> bool {
        false
    }

    /// Handles the reply to a flow's request.
    fn answered(&mut self, flow: usize, reply: &Reply<'_>, forgets: &mut Forgets) -> Result<Next>;

    /// Whether the workload runs once from beginning to end, instead of for a time.
    fn is_once(&self) -> bool {
        false
    }

    /// Whether a workload that runs once is finished.
    fn is_over(&self) -> bool {
        false
    }

    /// The number of units that one operation counts for.
    fn units(&self) -> u64 {
        1
    }

    /// Releases, untimed, what [`Workload::prepare`] and the operations took.
    fn clean_up(&mut self, device: &mut Device) -> Result<()>;
}

/// The result of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Run {
    /// Finished units: operations, or their parts.
    pub(crate) units: u64,
    /// Duration in seconds.
    pub(crate) seconds: f64,
    /// Duration of each operation in microseconds, sorted: the first [`LATENCIES`] of a single
    /// flow.
    pub(crate) latencies: Vec<f32>,
}

/// Drives a workload with `depth` flows on all request queues of a device. Calls `at` when counting
/// begins and ends.
pub(crate) fn drive(
    device: &mut Device,
    workload: &mut dyn Workload,
    depth: usize,
    time: Duration,
    mut at: impl FnMut() -> Result<()>,
) -> Result<Run> {
    workload.prepare(device, depth)?;
    let queues = device.queues();
    let per_queue = depth.div_ceil(queues);
    device.lay_out(&workload.request_kinds(), per_queue)?;
    let mut driven = Driven {
        device,
        workload,
        per_queue,
        depth,
        forgets: Vec::with_capacity(1 << 14),
        data: Vec::with_capacity(1 << 20),
    };
    let time = if driven.workload.is_once() {
        LONGEST
    } else {
        driven.run(time / WARM_UP, &mut Vec::new())?;
        time
    };
    let mut latencies = Vec::with_capacity(if depth == 1 { LATENCIES } else { 0 });
    at()?;
    let started = Instant::now();
    let units = driven.run(time, &mut latencies)?;
    let seconds = started.elapsed().as_secs_f64();
    at()?;
    let Driven {
        device, workload, ..
    } = driven;
    workload.clean_up(device)?;
    device.settle()?;
    latencies.sort_by(f32::total_cmp);
    Ok(Run {
        units,
        seconds,
        latencies,
    })
}

struct Driven<'a> {
    device: &'a mut Device,
    workload: &'a mut dyn Workload,
    per_queue: usize,
    depth: usize,
    forgets: Forgets,
    data: Vec<u8>,
}

impl Driven<'_> {
    /// Runs all flows for `time` and until each has finished its last operation. Returns the
    /// finished units.
    fn run(&mut self, time: Duration, latencies: &mut Vec<f32>) -> Result<u64> {
        let started = Instant::now();
        let mut units = 0;
        let mut active = self.depth;
        for flow in 0..self.depth {
            self.workload.begin(flow);
            self.ask(flow, 0)?;
        }
        self.device.kick()?;
        let mut begun = started;
        while active > 0 {
            let mut came = false;
            for queue in 1..=self.device.queues() {
                while let Some((head, written)) = self.device.take(queue)? {
                    came = true;
                    let flow =
                        usize::from(head) % self.per_queue * self.device.queues() + queue - 1;
                    match self.answered(queue, head, flow, written)? {
                        Next::Ask(kind) => self.ask(flow, kind)?,
                        Next::Done => {
                            units += self.workload.units();
                            let now = Instant::now();
                            if latencies.len() < latencies.capacity() {
                                let taken = now - begun;
                                latencies.push(taken.as_secs_f32() * 1e6);
                            }
                            begun = now;
                            if now - started < time && !self.workload.is_over() {
                                self.workload.begin(flow);
                                self.ask(flow, 0)?;
                            } else {
                                active -= 1;
                            }
                        }
                    }
                }
            }
            for (node, count) in self.forgets.drain(..) {
                self.device.forget(node, count)?;
            }
            self.device.kick()?;
            if !came && active > 0 {
                self.device.wait()?;
            }
        }
        self.device.settle()?;
        Ok(units)
    }

    /// Sends a request. Flow `f` uses queue `f % queues`, and is flow `f / queues` there.
    fn ask(&mut self, flow: usize, kind: usize) -> Result<()> {
        let queues = self.device.queues();
        let head = kind * self.per_queue + flow / queues;
        let head = u16::try_from(head).context("more requests than a queue has room for")?;
        let (node, operation) = self.workload.request(flow, kind);
        self.device.ask(1 + flow % queues, head, node, operation)
    }

    fn answered(&mut self, queue: usize, head: u16, flow: usize, written: u32) -> Result<Next> {
        let kind = usize::from(head) / self.per_queue;
        if self.workload.reads_data() {
            let received = self.device.answer(queue, head, written)?.received;
            self.device.data(queue, head, received, &mut self.data);
        }
        let answer = self.device.answer(queue, head, written)?;
        let reply = Reply {
            kind,
            answer,
            data: &self.data,
        };
        self.workload.answered(flow, &reply, &mut self.forgets)
    }
}

/// Fails unless the request succeeded.
pub(crate) fn succeeded(reply: &Reply<'_>) -> Result<()> {
    let errno = reply.answer.errno;
    ensure!(
        errno == 0,
        "request {} of the workload failed with errno {errno}",
        reply.kind
    );
    Ok(())
}
