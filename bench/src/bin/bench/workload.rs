//! What a workload is to the driver, and driving it: a number of flows, each a sequence of requests
//! again and again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{NodeId, Operation};

use crate::device::{Answer, Device, RequestKind};

/// How long each run is warmed up before anything counts, as a part of its time.
const WARM_UP: u32 = 8;

/// Most latencies that are kept of one run.
pub(crate) const LATENCIES: usize = 1 << 18;

/// How long something may take that is done once.
pub(crate) const LONGEST: Duration = Duration::from_secs(60);

/// What a flow does after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It makes its next request, of that kind.
    Ask(usize),
    /// An operation is complete.
    Done,
}

/// References to nodes that go back to the daemon.
pub(crate) type Forgets = Vec<(NodeId, u64)>;

/// What an answer came to.
pub(crate) struct Reply<'a> {
    /// What was asked.
    pub(crate) kind: usize,
    /// The answer's header and structures.
    pub(crate) answer: Answer<'a>,
    /// File data, for request_kinds that look at it.
    pub(crate) data: &'a [u8],
}

/// A kind of work, made of requests.
pub(crate) trait Workload {
    /// The kinds of request. Each operation begins with the first.
    fn request_kinds(&self) -> Vec<RequestKind<'_>>;

    /// Does once, untimed, what has to be done before; `flows` will ask at the same time.
    fn prepare(&mut self, device: &mut Device, flows: usize) -> Result<()>;

    /// A flow begins another operation.
    fn begin(&mut self, flow: usize);

    /// The request of a flow at a kind.
    fn request(&self, flow: usize, kind: usize) -> (NodeId, Operation<'_>);

    /// Whether it looks at the file data that a kind's requests are answered with.
    fn reads_data(&self) -> bool {
        false
    }

    /// A flow's request was answered.
    fn answered(&mut self, flow: usize, reply: &Reply<'_>, forgets: &mut Forgets) -> Result<Next>;

    /// Whether it is done once, from beginning to end, and not as often as there is time for.
    fn is_once(&self) -> bool {
        false
    }

    /// Whether what is done once is done.
    fn is_over(&self) -> bool {
        false
    }

    /// What one operation counts for: itself, or the things it consists of.
    fn units(&self) -> u64 {
        1
    }

    /// Gives back, untimed, what [`Workload::prepare`] and the operations took.
    fn clean_up(&mut self, device: &mut Device) -> Result<()>;
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Run {
    /// Units of work done: operations, or what they consist of.
    pub(crate) units: u64,
    /// Seconds it took.
    pub(crate) seconds: f64,
    /// Microseconds of each operation, sorted, as far as they were kept; of flows that are alone.
    pub(crate) latencies: Vec<f32>,
}

/// Drives a workload with `depth` flows on all request queues of a device. `at` is told when
/// counting begins and ends.
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
    /// Has all flows work for `time`, and waits until each has completed its last operation. Units
    /// of work done.
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

    /// Flow `f` is on queue `f % queues`, and the `f / queues`-th there.
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

/// That a request succeeded.
pub(crate) fn succeeded(reply: &Reply<'_>) -> Result<()> {
    let errno = reply.answer.errno;
    ensure!(
        errno == 0,
        "request {} of the workload is answered with errno {errno}",
        reply.kind
    );
    Ok(())
}
