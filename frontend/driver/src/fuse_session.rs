//! A FUSE session: INIT, calls, FORGET and DESTROY.

use std::sync::Arc;
use std::time::Duration;

use gangplank_fuse::{
    BatchForget, Dialect, ForgetOne, InitFlags, InitIn, InitOut, KERNEL_MINOR_VERSION,
    KERNEL_VERSION, MIN_KERNEL_MINOR_VERSION, NodeId, Opcode, Operation, reply,
};
use parking_lot::Mutex;

use super::core::Core;
use super::error::{BadReply, Error, Result};
use super::memory::Buffer;
use super::pending::{Pending, RequestSlot};
use super::request::Call;
use super::sender::{Caller, HIPRIO, Negotiated, Sender};
use super::slots::{RequestBuffers, room_for};

/// Nodes in one BATCH_FORGET request.
const FORGET_BATCH: usize = 64;

/// Most bytes of one READ or WRITE where INIT sets no other limit (32 pages,
/// `FUSE_DEFAULT_MAX_PAGES_PER_REQ`).
const DEFAULT_MAX_BYTES: u32 = 32 * 4096;

/// What INIT asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitOptions {
    /// The newest minor version to speak, at most [`KERNEL_MINOR_VERSION`].
    pub minor: u32,
    /// Features to accept.
    pub features: InitFlags,
    /// Read-ahead, in bytes. The driver itself reads nothing ahead.
    pub max_readahead: u32,
}

impl Default for InitOptions {
    /// For a program that caches nothing: requests of any size, locks held by the daemon, O_TRUNC
    /// carried out by the daemon.
    fn default() -> Self {
        Self {
            minor: KERNEL_MINOR_VERSION,
            features: InitFlags::ASYNC_READ
                | InitFlags::POSIX_LOCKS
                | InitFlags::FLOCK_LOCKS
                | InitFlags::ATOMIC_O_TRUNC
                | InitFlags::BIG_WRITES
                | InitFlags::DONT_MASK
                | InitFlags::DO_READDIRPLUS
                | InitFlags::PARALLEL_DIROPS
                | InitFlags::MAX_PAGES
                | InitFlags::SUBMOUNTS
                | InitFlags::HANDLE_KILLPRIV_V2
                | InitFlags::SETXATTR_EXT
                | InitFlags::INIT_EXT,
            max_readahead: 0,
        }
    }
}

/// A handle of a FUSE session: cheap to clone, and used by any number of threads at once.
///
/// A handle has a request queue, a caller and a time limit, which it uses for every request.
/// [`FuseSession::on_queue`], [`FuseSession::as_caller`] and [`FuseSession::within`] make handles
/// that differ in one of them. Nodes and open files belong to the session, not to a handle.
#[derive(Debug, Clone)]
pub struct FuseSession {
    sender: Sender,
}

impl FuseSession {
    /// Opens a session by INIT.
    pub(super) fn begin(core: Arc<Core>, options: &InitOptions, limit: Duration) -> Result<Self> {
        let mut asked = InitIn {
            major: KERNEL_VERSION,
            minor: options.minor.min(KERNEL_MINOR_VERSION),
            max_readahead: options.max_readahead,
            ..InitIn::default()
        };
        asked.set_features(options.features);
        let mut sender = Sender {
            core,
            negotiated: Arc::new(Negotiated {
                init: InitOut::default(),
                dialect: Dialect::default(),
                forgets: Mutex::new(Vec::new()),
            }),
            queue: 1,
            caller: Caller::default(),
            limit,
        };
        let before = Self {
            sender: sender.clone(),
        };
        let init = before.call(Call::new(
            NodeId::default(),
            Operation::Init(asked),
            |answer| Ok(reply::decode_init(&answer.payload)?),
        ))?;
        if init.major != KERNEL_VERSION || init.minor < MIN_KERNEL_MINOR_VERSION {
            return Err(Error::Reply {
                opcode: Opcode::Init,
                source: BadReply::Version {
                    major: init.major,
                    minor: init.minor,
                },
            });
        }
        sender.negotiated = Arc::new(Negotiated {
            init,
            dialect: init.dialect(&asked),
            forgets: Mutex::new(Vec::new()),
        });
        Ok(Self { sender })
    }

    /// The same session on another request queue. Queue 1 is the first.
    ///
    /// # Errors
    /// [`Error::NoQueue`].
    pub fn on_queue(&self, queue: usize) -> Result<Self> {
        let available = self.request_queues();
        if queue == HIPRIO || queue > available {
            return Err(Error::NoQueue {
                wanted: queue,
                available,
            });
        }
        Ok(Self {
            sender: Sender {
                queue,
                ..self.sender.clone()
            },
        })
    }

    /// The same session on behalf of another caller.
    #[must_use]
    pub fn as_caller(&self, caller: Caller) -> Self {
        Self {
            sender: Sender {
                caller,
                ..self.sender.clone()
            },
        }
    }

    /// The same session with another time limit for each call.
    #[must_use]
    pub fn within(&self, limit: Duration) -> Self {
        Self {
            sender: Sender {
                limit,
                ..self.sender.clone()
            },
        }
    }

    /// How long a call may take.
    #[must_use]
    pub const fn limit(&self) -> Duration {
        self.sender.limit
    }

    /// Request queues of the device.
    #[must_use]
    pub fn request_queues(&self) -> usize {
        self.sender.core.queues.len().saturating_sub(1)
    }

    /// Requests that this handle's queue can hold at once. A caller that submits more without
    /// waiting for one blocks.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.sender.core.depth(self.sender.queue)
    }

    /// The daemon's reply to INIT.
    #[must_use]
    pub fn init(&self) -> &InitOut {
        &self.sender.negotiated.init
    }

    /// Most bytes of one READ.
    #[must_use]
    pub fn max_read(&self) -> u32 {
        let init = &self.sender.negotiated.init;
        if init.features().contains(InitFlags::MAX_PAGES) && init.max_pages != 0 {
            u32::from(init.max_pages) * 4096
        } else {
            DEFAULT_MAX_BYTES
        }
    }

    /// Most bytes of one WRITE.
    #[must_use]
    pub fn max_write(&self) -> u32 {
        self.sender
            .negotiated
            .init
            .max_write
            .max(4096)
            .min(self.max_read())
    }

    /// Shared memory for `len` bytes of file data.
    ///
    /// # Errors
    /// [`Error::NoMemory`] if buffers in use leave no room.
    pub fn buffer(&self, len: usize) -> Result<Buffer> {
        Buffer::new(&self.sender.core.memory, len)
    }

    /// Sends the request and waits for the reply.
    ///
    /// # Errors
    /// The daemon's errno, or the reason why there is no reply.
    pub fn call<T>(&self, call: Call<'_, T>) -> Result<T> {
        self.submit(call)?.wait()
    }

    /// Sends the request and does not wait for the reply, so that many requests can be in flight at
    /// once. If the queue is full, waits until it is not.
    ///
    /// # Errors
    /// [`Error::Full`], or the reason why the request could not be sent.
    pub fn submit<T>(&self, call: Call<'_, T>) -> Result<Pending<T>> {
        let opcode = call.request.operation.opcode();
        let (queue, limit) = (self.sender.queue, self.sender.limit);
        self.try_submit(call, limit)?.ok_or(Error::Full {
            opcode,
            queue,
            limit,
        })
    }

    /// As [`Self::submit`], but waits at most `limit` for room in the queue. `None` if there is
    /// none.
    pub(super) fn try_submit<T>(
        &self,
        call: Call<'_, T>,
        limit: Duration,
    ) -> Result<Option<Pending<T>>> {
        let unique = self.sender.core.next_unique();
        let Call {
            node,
            request,
            send,
            receive,
            decode,
        } = call;
        let opcode = request.operation.opcode();
        let moved = send.as_ref().or(receive.as_ref());
        let asked = match &request.operation {
            Operation::CopyFileRange(args) | Operation::CopyFileRange64(args) => args.len,
            _ => moved.map_or(0, |(_, len)| u64::from(*len)),
        };
        let reply_room = match &receive {
            // The data has a buffer of its own. The structures come before it.
            Some((_, len)) => {
                let all = request.operation.reply_capacity();
                all.saturating_sub(usize::try_from(*len).unwrap_or(usize::MAX))
            }
            None => request.operation.reply_capacity(),
        };
        let buffers = RequestBuffers {
            request: self.sender.encode(node, unique, request)?,
            send,
            reply_room: room_for(reply_room),
            receive,
        };
        let queue = self.sender.queue;
        let slot = self.sender.core.try_submit(queue, buffers, limit)?;
        Ok(slot.map(|slot| {
            let request_slot = RequestSlot {
                queue,
                slot,
                unique,
                opcode,
                asked,
            };
            Pending::new(self.sender.clone(), request_slot, decode)
        }))
    }

    /// Returns `count` references to a node. References are returned in batches: by
    /// [`FuseSession::flush_forgets`] at the latest.
    ///
    /// # Errors
    /// A batch was full and could not be sent.
    pub fn forget(&self, node: NodeId, count: u64) -> Result<()> {
        if count == 0 || node == NodeId::ROOT || node == NodeId::default() {
            return Ok(());
        }
        let one = ForgetOne {
            nodeid: node.get(),
            nlookup: count,
        };
        let batch = {
            let mut forgets = self.lock_forgets();
            forgets.push(one);
            if forgets.len() < FORGET_BATCH {
                return Ok(());
            }
            std::mem::take(&mut *forgets)
        };
        self.send_forgets(&batch)
    }

    /// Sends the references that [`FuseSession::forget`] has collected.
    ///
    /// # Errors
    /// The reason why they could not be sent.
    pub fn flush_forgets(&self) -> Result<()> {
        let batch = std::mem::take(&mut *self.lock_forgets());
        if batch.is_empty() {
            return Ok(());
        }
        self.send_forgets(&batch)
    }

    /// Ends the session by DESTROY, which releases all nodes and open files. The device can then
    /// have another session.
    ///
    /// # Errors
    /// The daemon's errno, or the reason why there is no reply.
    pub fn destroy(self) -> Result<()> {
        // It releases what these references hold. A BATCH_FORGET in flight goes through another
        // queue, and must not arrive after the nodes have gone.
        self.lock_forgets().clear();
        self.sender.core.wait_until_idle(HIPRIO, self.limit())?;
        self.call(Call::new(NodeId::default(), Operation::Destroy, |_| Ok(())))
    }

    fn lock_forgets(&self) -> parking_lot::MutexGuard<'_, Vec<ForgetOne>> {
        let forgets = &self.sender.negotiated.forgets;
        forgets.lock()
    }

    fn send_forgets(&self, batch: &[ForgetOne]) -> Result<()> {
        let operation = Operation::BatchForget(BatchForget::new(batch));
        let unique = self.sender.core.next_unique();
        self.sender
            .send_hiprio(NodeId::default(), unique, operation, false)
    }
}
