//! The chains of a workload's requests: laid out in memory once, then made available and taken
//! back.

use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use gangplank_fuse::{ForgetIn, NodeId, Operation, OutHeader};
use zerocopy::FromBytes;

use super::{Device, FORGETS, HIPRIO, LIMIT};
use crate::bench_queue::{DESCRIPTOR_LEN, Segment};
use crate::memory::PAGE;

/// Limit of a reply's bytes beside file data.
pub(crate) const ANSWER: usize = 256;

/// The layout of one kind of request in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestKind<'a> {
    /// A request of that kind. All requests of the kind have the same length.
    pub(crate) sample: Operation<'a>,
    /// Bytes of file data after the request.
    pub(crate) sent: usize,
    /// Bytes of structures after the reply's header.
    pub(crate) answer: usize,
    /// Bytes of room for file data after them.
    pub(crate) received: usize,
}

/// The offsets of one chain's parts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chain {
    pub(super) request: usize,
    pub(super) request_len: usize,
    pub(super) answer: usize,
    pub(super) answer_len: usize,
    pub(super) data: usize,
    pub(super) received: usize,
}

/// The reply to a request.
pub(crate) struct Answer<'a> {
    /// Zero, or the errno.
    pub(crate) errno: i32,
    /// The structures after the header.
    pub(crate) payload: &'a [u8],
    /// Bytes of file data.
    pub(crate) received: usize,
}

impl Device {
    pub(super) fn lay_out_forgets(&mut self) -> Result<()> {
        let len = self.encode(NodeId::ROOT, Operation::Forget(ForgetIn { nlookup: 1 }))?;
        for head in 0..FORGETS {
            let request = self.memory.take(len, 64)?;
            let table = self.memory.take(DESCRIPTOR_LEN, DESCRIPTOR_LEN)?;
            let segment = Segment {
                offset: request,
                len,
                writable: false,
            };
            let queue = self.queues.get(HIPRIO).context("no high-priority queue")?;
            queue.put_chain(head, table, &[segment]);
            self.forgets.push(Chain {
                request,
                request_len: len,
                ..Chain::default()
            });
            self.free_forgets.push(head);
        }
        Ok(())
    }

    /// Lays out the chains of a workload: `flows` of each kind on each request queue. Flow `f` of
    /// kind `k` has the head `k * flows + f`. No request may be in flight.
    pub(crate) fn lay_out(
        &mut self,
        request_kinds: &[RequestKind<'_>],
        flows: usize,
    ) -> Result<()> {
        self.memory.give_back_to(self.mark);
        for chains in &mut self.chains {
            chains.clear();
        }
        for queue in 1..self.queues.len() {
            let mut head = 0;
            for kind in request_kinds {
                for _ in 0..flows {
                    let chain = self.lay_out_chain(queue, head, kind)?;
                    if let Some(chains) = self.chains.get_mut(queue) {
                        chains.push(chain);
                    }
                    head += 1;
                }
            }
        }
        Ok(())
    }

    /// Lays out a chain as Linux does: header, arguments and pages each have a descriptor of their
    /// own, in both directions.
    pub(super) fn lay_out_chain(
        &mut self,
        queue: usize,
        head: u16,
        kind: &RequestKind<'_>,
    ) -> Result<Chain> {
        let request_len = self.encode(NodeId::ROOT, kind.sample)?;
        let answer_len = size_of::<OutHeader>() + kind.answer;
        ensure!(
            answer_len <= ANSWER,
            "a reply of {answer_len} bytes exceeds the limit of {ANSWER}"
        );
        let chain = Chain {
            request: self.memory.take(request_len, 64)?,
            request_len,
            answer: self.memory.take(answer_len, 64)?,
            answer_len,
            data: self.memory.take(kind.sent + kind.received, PAGE)?,
            received: kind.received,
        };
        let mut segments = Vec::new();
        let mut push = |offset, len, writable| {
            if len != 0 {
                segments.push(Segment {
                    offset,
                    len,
                    writable,
                });
            }
        };
        let header = size_of::<gangplank_fuse::InHeader>();
        push(chain.request, header, false);
        push(chain.request + header, request_len - header, false);
        for (offset, len) in scattered(chain.data, kind.sent) {
            // Touch the pages, as a guest's are.
            self.memory.write(offset, &vec![0x5a; len]);
            push(offset, len, false);
        }
        push(chain.answer, size_of::<OutHeader>(), true);
        push(chain.answer + size_of::<OutHeader>(), kind.answer, true);
        for (offset, len) in scattered(chain.data, kind.received) {
            self.memory.write(offset, &vec![0; len]);
            push(offset, len, true);
        }
        let table = self
            .memory
            .take(segments.len() * DESCRIPTOR_LEN, DESCRIPTOR_LEN)?;
        let queue = self.queues.get(queue).context("no such queue")?;
        queue.put_chain(head, table, &segments);
        Ok(chain)
    }

    /// Makes a request available on a request queue, without a kick.
    pub(crate) fn ask(
        &mut self,
        queue: usize,
        head: u16,
        node: NodeId,
        operation: Operation<'_>,
    ) -> Result<()> {
        let len = self.encode(node, operation)?;
        let chains = self.chains.get(queue).context("no such queue")?;
        let chain = chains.get(usize::from(head)).context("no such chain")?;
        ensure!(
            len == chain.request_len,
            "a request of {len} bytes where {} were expected",
            chain.request_len
        );
        self.memory.write(chain.request, &self.scratch);
        let queue = self.queues.get_mut(queue).context("no such queue")?;
        queue.publish(head);
        Ok(())
    }

    /// Sends FORGET for references to a node, without a kick.
    pub(crate) fn forget(&mut self, node: NodeId, nlookup: u64) -> Result<()> {
        self.reap_forgets()?;
        let deadline = Instant::now() + LIMIT;
        while self.free_forgets.is_empty() {
            self.kick()?;
            let queue = self.queues.get(HIPRIO).context("no high-priority queue")?;
            if !queue.ask_for_notice() {
                self.sleep(deadline)?;
            }
            self.reap_forgets()?;
        }
        self.encode(node, Operation::Forget(ForgetIn { nlookup }))?;
        let head = self.free_forgets.pop().context("no free chain")?;
        let chain = self.forgets.get(usize::from(head));
        let chain = chain.context("the chain of FORGET does not exist")?;
        self.memory.write(chain.request, &self.scratch);
        let queue = self.queues.get_mut(HIPRIO).context("no such queue")?;
        queue.publish(head);
        Ok(())
    }

    pub(super) fn reap_forgets(&mut self) -> Result<()> {
        let queue = self.queues.get_mut(HIPRIO).context("no such queue")?;
        while let Some((head, _)) = queue.take()? {
            self.free_forgets.push(head);
        }
        Ok(())
    }

    /// Waits until the daemon has taken every FORGET.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.kick()?;
        let deadline = Instant::now() + LIMIT;
        loop {
            self.reap_forgets()?;
            let queue = self.queues.get(HIPRIO).context("no such queue")?;
            if queue.in_flight() == 0 {
                return Ok(());
            }
            if !queue.ask_for_notice() {
                self.sleep(deadline)?;
            }
        }
    }

    /// The next request that the daemon returned on a queue: its head, and the number of bytes
    /// written.
    pub(crate) fn take(&mut self, queue: usize) -> Result<Option<(u16, u32)>> {
        let queue = self.queues.get_mut(queue).context("no such queue")?;
        queue.take()
    }

    /// The reply in a returned chain, of which `written` bytes were written.
    pub(crate) fn answer(&mut self, queue: usize, head: u16, written: u32) -> Result<Answer<'_>> {
        let chains = self.chains.get(queue).context("no such queue")?;
        let chain = chains.get(usize::from(head)).context("no such chain")?;
        let written = written as usize;
        ensure!(
            written <= chain.answer_len + chain.received,
            "the daemon claims {written} bytes written, more than the chain has room for"
        );
        let len = written.min(chain.answer_len);
        let bytes = self.answer.get_mut(..len).context("a long answer")?;
        self.memory.read(chain.answer, bytes);
        let (header, payload) = OutHeader::ref_from_prefix(bytes)
            .map_err(|_| anyhow!("a reply of {written} bytes has no header"))?;
        ensure!(
            header.len as usize == written,
            "a reply claims {} bytes, and {written} were written",
            header.len
        );
        Ok(Answer {
            errno: header.error.saturating_neg(),
            payload,
            received: written - len,
        })
    }

    /// Copies the file data of a returned chain.
    pub(crate) fn data(&self, queue: usize, head: u16, received: usize, into: &mut Vec<u8>) {
        into.clear();
        let chain = self
            .chains
            .get(queue)
            .and_then(|chains| chains.get(usize::from(head)));
        let Some(chain) = chain else { return };
        for (offset, len) in scattered(chain.data, chain.received) {
            let wanted = len.min(received.saturating_sub(into.len()));
            let start = into.len();
            into.resize(start + wanted, 0);
            if let Some(rest) = into.get_mut(start..) {
                self.memory.read(offset, rest);
            }
        }
    }
}

/// The pages of `len` bytes at `offset`, in an order in which no page follows its neighbour, as in
/// a guest that has run for a while.
fn scattered(offset: usize, len: usize) -> impl Iterator<Item = (usize, usize)> {
    let pages = len.div_ceil(PAGE);
    let stride = (pages / 2) | 1;
    (0..pages).map(move |page| {
        let at = page * stride % pages;
        (offset + at * PAGE, PAGE.min(len - page * PAGE))
    })
}
