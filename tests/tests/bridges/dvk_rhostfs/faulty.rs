//! A daemon in this process that can do a part of a request or fail. Its files are in memory.

use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::Result;
use gangplank_backend::device::Options;
use gangplank_backend::device::connection;
use gangplank_backend::device::reply_pipe::ReplyPipe;
use gangplank_backend::device::request::{Handled, Handler, Request};
use gangplank_backend::session::IoMode;
use gangplank_backend::state::arena::{Arena, Limits};
use gangplank_fuse::dir::DirentWriter;
use gangplank_fuse::{
    Attr, AttrOut, Dialect, EntryOut, InHeader, InitFlags, InitOut, NodeId, Opcode, OpenOut,
    Operation, OutHeader, StatfsOut, Unique, WriteOut,
};
use parking_lot::{Mutex, MutexGuard};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use tempfile::TempDir;
use zerocopy::{FromBytes, IntoBytes};

use crate::fixture::{self, Serving};
use crate::loopback_carrier::LoopbackCarrier;

/// The node of the first file. The root's is 1.
const FIRST: u64 = 2;

/// The state that tests and daemon share.
#[derive(Default)]
pub(crate) struct State {
    /// Files by name, each with its contents.
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// Limit of the bytes of a READ or WRITE.
    pub(crate) most: Option<usize>,
    /// READ and WRITE fail from this offset on, with this errno.
    pub(crate) bad: Option<(u64, Errno)>,
    /// The errors of the next requests by kind, in order.
    pub(crate) failing: Vec<(Opcode, Errno)>,
    /// The requests so far.
    pub(crate) asked: VecDeque<Opcode>,
}

/// The daemon's reply to a request.
type Answer = std::result::Result<Vec<u8>, Errno>;

#[derive(Clone, Default)]
struct Daemon(Arc<Mutex<State>>);

/// The daemon, a server on it, and clients of that.
pub(crate) struct Faulty {
    state: Daemon,
    pub(crate) carrier: LoopbackCarrier,
    serving: Option<Serving>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    _directory: TempDir,
}

impl Faulty {
    /// A daemon with one file, and a server whose options `choose` changes.
    pub(crate) fn new(
        contents: &[u8],
        choose: impl FnOnce(&mut gangplank_dvk::rhostfs::server::Options),
    ) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("fs.sock");
        let listener = UnixListener::bind(&socket)?;
        let state = Daemon::default();
        let file = ("file".to_owned(), contents.to_vec());
        state.lock().files.push(file);
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let thread = thread::spawn({
            let (state, stop) = (state.clone(), Arc::clone(&stop));
            move || serve(&listener, &stop, &state)
        });
        let carrier = LoopbackCarrier::default();
        let mut options = fixture::options(&socket);
        choose(&mut options);
        let serving = Serving::start(&carrier, &options)?;
        serving.wait()?;
        Ok(Self {
            state,
            carrier,
            serving: Some(serving),
            stop,
            thread: Some(thread),
            _directory: directory,
        })
    }

    /// An original client.
    pub(crate) fn client(&self) -> crate::client::Client {
        let endpoint = self.carrier.bind_as(fixture::dc(), fixture::CLIENT, 100);
        crate::client::Client::new(endpoint, fixture::SERVER)
    }

    /// The daemon's state.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The number of requests with `opcode`.
    pub(crate) fn count(&self, opcode: Opcode) -> usize {
        let state = self.state();
        state.asked.iter().filter(|it| **it == opcode).count()
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.serving = None;
        let stopped = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        stopped.expect("the daemon can be stopped");
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the daemon has not panicked");
        }
    }
}

/// Serves every connection on a thread of its own until `stop` is readable.
fn serve(listener: &UnixListener, stop: &OwnedFd, state: &Daemon) {
    listener.set_nonblocking(true).expect("a socket");
    let mut connections = Vec::new();
    loop {
        let mut ready = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        poll(&mut ready, None).expect("the daemon waits");
        if !ready[1].revents().is_empty() {
            break;
        }
        let Ok((stream, _)) = listener.accept() else {
            continue;
        };
        let served = stream.try_clone().expect("a descriptor");
        let handler: Arc<dyn Handler> = Arc::new(state.clone());
        let thread = thread::spawn(move || {
            let limits = Limits {
                inode_bytes: 0,
                descriptors: 1024,
                rings: 2,
                ring_size: 1024,
            };
            let guest = connection::Guest {
                number: 1,
                arena: &Arena::new(limits).expect("memory for its state"),
                kept: None,
                replies: &ReplyPipe::new().expect("a pipe"),
            };
            let result = connection::serve(&served, &Options::default(), &handler, guest);
            result.expect("the daemon serves");
        });
        connections.push((stream, thread));
    }
    for (stream, thread) in connections {
        // Fails if the server has hung up.
        let _ = stream.shutdown(Shutdown::Both);
        thread.join().expect("the daemon has not panicked");
    }
}

impl Handler for Daemon {
    fn handle(&self, mut request: Box<Request>, _mode: IoMode) -> Handled {
        let (mut reader, mut writer, _) = request.parts();
        let mut bytes = vec![0; reader.remaining()];
        reader.read(&mut bytes);
        let (header, args) = InHeader::read_from_prefix(&bytes).expect("a request has a header");
        let opcode = header.opcode().expect("a known operation");
        if matches!(opcode, Opcode::Forget | Opcode::BatchForget) {
            return Handled::Replied(request);
        }
        let room = writer.remaining().saturating_sub(size_of::<OutHeader>());
        let answer = self.lock().answer(opcode, &header, args, room);
        let unique = Unique::new(header.unique);
        let (head, payload) = match answer {
            Ok(payload) => (OutHeader::ok(unique, payload.len()), payload),
            Err(errno) => {
                let head = OutHeader::error(unique, errno.raw_os_error());
                (head, Vec::new())
            }
        };
        let written = writer.write(head.as_bytes()) + writer.write(&payload);
        request.set_reply_len(written);
        Handled::Replied(request)
    }

    fn end_waits(&self) {}

    fn reset(&self) {}
}

impl Daemon {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl State {
    fn answer(&mut self, opcode: Opcode, header: &InHeader, args: &[u8], room: usize) -> Answer {
        self.asked.push_back(opcode);
        if let Some(at) = self.failing.iter().position(|(of, _)| *of == opcode) {
            return Err(self.failing.remove(at).1);
        }
        let head = opcode.bulk_offset().map_or(args, |bulk| &args[..bulk]);
        let request = Operation::decode(header, head, Dialect::default());
        let request = request.expect("the driver's requests make sense");
        let node = header.nodeid;
        Ok(match request.operation {
            Operation::Init(args) => InitOut {
                major: args.major,
                minor: args.minor,
                max_write: 1 << 20,
                max_pages: 256,
                flags: (InitFlags::MAX_PAGES | InitFlags::BIG_WRITES).split().0,
                ..InitOut::default()
            }
            .as_bytes()
            .to_vec(),
            Operation::Lookup { name } => {
                let name = name.to_str().expect("names are text");
                let known = self.files.iter().position(|(known, _)| known == name);
                let node = FIRST + known.ok_or(Errno::NOENT)? as u64;
                self.entry(node).as_bytes().to_vec()
            }
            Operation::Create { name, .. } => {
                let name = name.to_str().expect("names are text").to_owned();
                self.files.push((name, Vec::new()));
                let entry = self.entry(FIRST - 1 + self.files.len() as u64);
                let open = OpenOut {
                    fh: 1,
                    ..OpenOut::default()
                };
                [entry.as_bytes(), open.as_bytes()].concat()
            }
            Operation::Getattr(_) => self.attributes(node),
            Operation::Setattr(args) => {
                let size = usize::try_from(args.size).expect("a size");
                self.contents(node).resize(size, 0);
                self.attributes(node)
            }
            Operation::Open(_) | Operation::Opendir(_) => OpenOut {
                fh: 1,
                ..OpenOut::default()
            }
            .as_bytes()
            .to_vec(),
            Operation::Read(args) => {
                let length = self.part(args.offset, args.size as usize)?;
                let start = usize::try_from(args.offset).expect("a position");
                let contents = self.contents(node).get(start..).unwrap_or_default();
                contents[..length.min(contents.len())].to_vec()
            }
            Operation::Write(args_of) => {
                let length = self.part(args_of.offset, args_of.size as usize)?;
                let start = usize::try_from(args_of.offset).expect("a position");
                let data = args[head.len()..][..length].to_vec();
                let contents = self.contents(node);
                contents.resize(contents.len().max(start + length), 0);
                contents[start..start + length].copy_from_slice(&data);
                WriteOut {
                    size: u32::try_from(length).expect("a length"),
                    ..WriteOut::default()
                }
                .as_bytes()
                .to_vec()
            }
            Operation::Readdir(args) => {
                let mut bytes = vec![0; room];
                let mut entries = DirentWriter::new(&mut bytes);
                let from = usize::try_from(args.offset).expect("a position");
                for (index, (name, _)) in self.files.iter().enumerate().skip(from) {
                    let (ino, off) = (FIRST + index as u64, 1 + index as u64);
                    if entries.push(ino, off, 8, name.as_bytes()).is_err() {
                        break;
                    }
                }
                let written = entries.written();
                bytes.truncate(written);
                bytes
            }
            Operation::Statfs => StatfsOut::default().as_bytes().to_vec(),
            Operation::Flush(_)
            | Operation::Fsync(_)
            | Operation::Release(_)
            | Operation::Releasedir(_)
            | Operation::Destroy => Vec::new(),
            _ => return Err(Errno::NOSYS),
        })
    }

    /// The number of bytes of a transfer that the daemon does.
    fn part(&self, position: u64, length: usize) -> std::result::Result<usize, Errno> {
        let most = self.most.map_or(length, |most| most.min(length));
        let Some((bad, errno)) = self.bad else {
            return Ok(most);
        };
        match bad.checked_sub(position) {
            None | Some(0) => Err(errno),
            Some(good) => Ok(most.min(usize::try_from(good).unwrap_or(usize::MAX))),
        }
    }

    fn contents(&mut self, node: u64) -> &mut Vec<u8> {
        let index = usize::try_from(node - FIRST).expect("a node");
        &mut self.files[index].1
    }

    fn entry(&mut self, node: u64) -> EntryOut {
        EntryOut {
            nodeid: node,
            attr: self.attr(node),
            ..EntryOut::default()
        }
    }

    fn attributes(&mut self, node: u64) -> Vec<u8> {
        let attr = self.attr(node);
        let out = AttrOut {
            attr,
            ..AttrOut::default()
        };
        out.as_bytes().to_vec()
    }

    fn attr(&mut self, node: u64) -> Attr {
        let root = node == NodeId::ROOT.get();
        Attr {
            ino: node,
            size: if root {
                0
            } else {
                self.contents(node).len() as u64
            },
            mode: if root { 0o040_755 } else { 0o100_644 },
            nlink: 1,
            ..Attr::default()
        }
    }
}
