//! The FUSE session of a [`Device`]: INIT, and single requests that are not timed.

use anyhow::{Context, Result, bail, ensure};
use gangplank_fuse::reply::{Reply, decode_entry, decode_init, decode_open};
use gangplank_fuse::{
    InitFlags, InitIn, KERNEL_VERSION, NodeId, OpenIn, Operation, Request, RequestHeader, Unique,
};

use super::chains::Chain;
use super::{Device, QUEUE_SIZE, SIDE_REQUEST};
use crate::bench_queue::Segment;
use crate::memory::PAGE;

impl Device {
    pub(super) fn lay_out_side(&mut self) -> Result<()> {
        self.side = Chain {
            request: self.memory.take(SIDE_REQUEST, 64)?,
            request_len: SIDE_REQUEST,
            answer: self.memory.take(PAGE, 64)?,
            answer_len: PAGE,
            data: self.memory.take(PAGE, 64)?,
            received: 0,
        };
        Ok(())
    }

    /// Sends INIT with what Linux 6.12 offers, except flags by which it would send fewer requests.
    pub(super) fn init(&mut self) -> Result<()> {
        let mut asked = InitIn {
            major: KERNEL_VERSION,
            minor: 41,
            max_readahead: 128 << 10,
            ..InitIn::default()
        };
        asked.set_features(
            InitFlags::ASYNC_READ
                | InitFlags::POSIX_LOCKS
                | InitFlags::ATOMIC_O_TRUNC
                | InitFlags::EXPORT_SUPPORT
                | InitFlags::BIG_WRITES
                | InitFlags::DONT_MASK
                | InitFlags::FLOCK_LOCKS
                | InitFlags::HAS_IOCTL_DIR
                | InitFlags::AUTO_INVAL_DATA
                | InitFlags::DO_READDIRPLUS
                | InitFlags::READDIRPLUS_AUTO
                | InitFlags::ASYNC_DIO
                | InitFlags::PARALLEL_DIROPS
                | InitFlags::HANDLE_KILLPRIV
                | InitFlags::ABORT_ERROR
                | InitFlags::MAX_PAGES
                | InitFlags::CACHE_SYMLINKS
                | InitFlags::EXPLICIT_INVAL_DATA
                | InitFlags::SUBMOUNTS
                | InitFlags::HANDLE_KILLPRIV_V2
                | InitFlags::SETXATTR_EXT
                | InitFlags::INIT_EXT
                | InitFlags::CREATE_SUPP_GROUP,
        );
        let answer = self.call(NodeId::default(), Operation::Init(asked))?;
        let init = decode_init(&answer)?;
        self.dialect = init.dialect(&asked);
        Ok(())
    }

    /// Encodes a request into `scratch`. Returns its length.
    pub(super) fn encode(&mut self, node: NodeId, operation: Operation<'_>) -> Result<usize> {
        self.unique += 2;
        let header = RequestHeader {
            unique: Unique::new(self.unique),
            node,
            pid: 1,
            ..RequestHeader::default()
        };
        self.scratch.clear();
        Request::from(operation).encode(&header, self.dialect, &mut self.scratch)?;
        Ok(self.scratch.len())
    }

    /// Makes an untimed request while no other is in flight. Returns the reply's structures.
    pub(crate) fn call(&mut self, node: NodeId, operation: Operation<'_>) -> Result<Vec<u8>> {
        const HEAD: u16 = QUEUE_SIZE - 1;
        let opcode = operation.opcode();
        let len = self.encode(node, operation)?;
        ensure!(len <= SIDE_REQUEST, "a request of {len} bytes");
        let chain = self.side;
        self.memory.write(chain.request, &self.scratch);
        let segments = [(chain.request, len, false), (chain.answer, PAGE, true)];
        let segments = segments.map(|(offset, len, writable)| Segment {
            offset,
            len,
            writable,
        });
        let queue = self.queues.get_mut(1).context("no request queue")?;
        queue.put_chain(HEAD, chain.data, &segments);
        queue.publish(HEAD);
        queue.kick()?;
        let written = loop {
            if let Some((HEAD, written)) = self.take(1)? {
                break written as usize;
            }
            self.wait()?;
        };
        let mut bytes = vec![0; written.min(PAGE)];
        self.memory.read(chain.answer, &mut bytes);
        match Reply::decode(&bytes)?.result {
            Ok(payload) => Ok(payload.to_vec()),
            Err(errno) => bail!("{opcode:?} is answered with errno {errno}"),
        }
    }

    /// Looks up a name.
    pub(crate) fn lookup(&mut self, parent: NodeId, name: &std::ffi::CStr) -> Result<NodeId> {
        let answer = self
            .call(parent, Operation::Lookup { name })
            .with_context(|| format!("looking {name:?} up"))?;
        Ok(NodeId::new(decode_entry(&answer)?.nodeid))
    }

    /// Opens a file, or a directory if the flags have `O_DIRECTORY`. Returns the handle.
    pub(crate) fn open_file(&mut self, node: NodeId, flags: u32) -> Result<u64> {
        let directory = rustix::fs::OFlags::DIRECTORY.bits();
        let args = OpenIn {
            flags,
            ..OpenIn::default()
        };
        let operation = if flags & directory != 0 {
            Operation::Opendir(args)
        } else {
            Operation::Open(args)
        };
        Ok(decode_open(&self.call(node, operation)?)?.fh)
    }
}
