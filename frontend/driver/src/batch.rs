//! Calls that are in flight together.

use std::time::Duration;

use super::error::Result;
use super::fuse_session::FuseSession;
use super::request::Call;

impl FuseSession {
    /// Makes the calls for the first of `items` at once, as many as there is room for in the queue,
    /// and at least one. Returns what came of each, in order.
    ///
    /// A reply that was not taken occupies its room. So only the first call waits for room, when
    /// this thread has no other in the queue. Threads that wait for room with calls of theirs in it
    /// could wait for one another.
    ///
    /// # Errors
    /// As [`FuseSession::submit`].
    pub fn call_batch<'a, I, T>(
        &self,
        items: &'a [I],
        call: impl Fn(&'a I) -> Call<'a, T>,
    ) -> Result<Vec<Result<T>>> {
        let mut pending = Vec::with_capacity(items.len());
        for item in items {
            let sent = match pending.is_empty() {
                true => Some(self.submit(call(item))?),
                false => self.try_submit(call(item), Duration::ZERO)?,
            };
            match sent {
                Some(sent) => pending.push(sent),
                None => break,
            }
        }
        Ok(pending.into_iter().map(|sent| sent.wait()).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use gangplank_fuse::{AttrOut, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION, NodeId, Opcode};
    use zerocopy::IntoBytes;

    use super::super::call;
    use super::super::fake_daemon::{FakeDaemon, ReplyOrder};

    #[test]
    fn batches_of_several_threads_end_in_a_queue_with_room_for_fewer_calls() {
        // Without indirect descriptors, a call takes four.
        for room in [1, 2] {
            let daemon =
                FakeDaemon::with_queue_size(room * 4, ReplyOrder::Backward, |header, _| {
                    Ok(match header.opcode() {
                        Ok(Opcode::Init) => {
                            let init = InitOut {
                                major: KERNEL_VERSION,
                                minor: KERNEL_MINOR_VERSION,
                                max_write: 4096,
                                ..InitOut::default()
                            };
                            init.as_bytes().to_vec()
                        }
                        _ => {
                            let mut told = AttrOut::default();
                            told.attr.ino = header.nodeid;
                            told.as_bytes().to_vec()
                        }
                    })
                });
            let session = daemon.session();
            let nodes: Vec<NodeId> = (2..18).map(NodeId::new).collect();
            let work = || {
                let mut rest = &nodes[..];
                while !rest.is_empty() {
                    let told = session.call_batch(rest, |node| call::getattr(*node, None));
                    let told = told.unwrap();
                    assert!(!told.is_empty());
                    let (these, others) = rest.split_at(told.len());
                    for (node, told) in these.iter().zip(told) {
                        assert_eq!(told.unwrap().attr.ino, node.get());
                    }
                    rest = others;
                }
            };
            let begun = Instant::now();
            thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(work);
                }
            });
            assert!(
                begun.elapsed() < session.limit(),
                "a call waited for its whole limit"
            );
        }
    }
}
