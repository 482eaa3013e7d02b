//! A share with one file, "file", whose daemon behaves as the test says.

use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use gangplank_fuse::{
    Attr, AttrOut, EntryOut, InHeader, InitOut, LseekIn, LseekOut, Opcode, OpenOut, ReadIn,
    SetattrIn, WriteIn, WriteOut,
};
use gangplank_service::output::Output;
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::super::path::Share;
use crate::fake_daemon::{FakeDaemon, Reply, ReplyOrder};

/// Bytes of one request: the daemon accepts no more.
pub(super) const PIECE: usize = 4096;

/// The node that CREATE makes.
const MADE: u64 = 3;

/// What the daemon has, and how it fails.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The file's data.
    pub(super) data: Vec<u8>,
    /// The size in the file's attributes, if it is wrong.
    pub(super) told_size: Option<u64>,
    /// The data of the file that CREATE made, until it is renamed.
    pub(super) made: Vec<u8>,
    /// Where the file has data; None if the daemon does not know LSEEK.
    pub(super) extents: Option<Vec<Range<u64>>>,
    /// LOOKUPs that find nothing at first.
    pub(super) missing: usize,
    /// The name that LOOKUP finds all the same.
    pub(super) found: Option<&'static str>,
    /// The first reply to READDIR.
    pub(super) entries: Vec<u8>,
    /// Most bytes of each READ or WRITE, from the first on; all bytes when the list is empty.
    pub(super) most: Vec<usize>,
    /// READ and WRITE fail from this offset on.
    pub(super) fails_from: Option<(u64, Errno)>,
    /// WRITE counts more bytes than were sent.
    pub(super) exaggerates: bool,
    /// Errors of other operations.
    pub(super) failing: Vec<(Opcode, Errno)>,
    /// The count in the reply to COPY_FILE_RANGE.
    pub(super) copied: u32,
    /// The order in which the daemon answers.
    pub(super) order: ReplyOrder,
    /// Flags in the reply to OPEN.
    pub(super) open_flags: u32,
    /// All operations asked for, except those that find the file.
    pub(super) asked: Vec<Opcode>,
    /// The flags of each READ and WRITE.
    pub(super) flags: Vec<u32>,
}

/// A share with a daemon that fails as told.
pub(super) struct Fixture {
    pub(super) share: Share,
    state: Arc<Mutex<State>>,
    _daemon: FakeDaemon,
}

impl Fixture {
    pub(super) fn new(state: State) -> Self {
        let state = Arc::new(Mutex::new(state));
        let of_daemon = Arc::clone(&state);
        let order = state.lock().unwrap().order;
        let daemon = FakeDaemon::start(order, move |header, body| {
            let mut state = of_daemon.lock().unwrap();
            state.answer(header, body)
        });
        let session = daemon.session();
        Self {
            share: Share::new(session, false),
            state,
            _daemon: daemon,
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn answer(&mut self, header: &InHeader, body: &[u8]) -> Reply {
        let opcode = header.opcode().unwrap();
        if let Some((_, errno)) = self.failing.iter().find(|(failing, _)| *failing == opcode) {
            self.asked.push(opcode);
            return Err(*errno);
        }
        match opcode {
            Opcode::Init => Ok(init().as_bytes().to_vec()),
            Opcode::Getattr => Ok(self.attributes(header.nodeid).as_bytes().to_vec()),
            Opcode::Lookup
                if self
                    .found
                    .is_some_and(|name| body.starts_with(name.as_bytes())) =>
            {
                Ok(self.entry(2).as_bytes().to_vec())
            }
            Opcode::Lookup if self.missing > 0 => {
                self.missing -= 1;
                Err(Errno::NOENT)
            }
            Opcode::Lookup => Ok(self.entry(2).as_bytes().to_vec()),
            Opcode::Forget | Opcode::BatchForget => Ok(Vec::new()),
            _ => {
                self.asked.push(opcode);
                self.operate(opcode, header.nodeid, body)
            }
        }
    }

    fn operate(&mut self, opcode: Opcode, node: u64, body: &[u8]) -> Reply {
        match opcode {
            Opcode::Open | Opcode::Opendir => {
                let opened = OpenOut {
                    fh: 7,
                    open_flags: self.open_flags,
                    ..OpenOut::default()
                };
                Ok(opened.as_bytes().to_vec())
            }
            Opcode::Read => self.read(&ReadIn::read_from_prefix(body).unwrap().0),
            Opcode::Write => {
                let (args, data) = WriteIn::read_from_prefix(body).unwrap();
                self.write(node, &args, data)
            }
            Opcode::Setattr => {
                let (args, _) = SetattrIn::read_from_prefix(body).unwrap();
                let len = usize::try_from(args.size).unwrap();
                self.contents(node).resize(len, 0);
                Ok(self.attributes(node).as_bytes().to_vec())
            }
            Opcode::Create => {
                self.made.clear();
                let opened = OpenOut::default();
                Ok([self.entry(MADE).as_bytes(), opened.as_bytes()].concat())
            }
            Opcode::Rename => {
                self.data = std::mem::take(&mut self.made);
                Ok(Vec::new())
            }
            Opcode::Unlink => Ok(Vec::new()),
            Opcode::Lseek => self.seek(&LseekIn::read_from_prefix(body).unwrap().0),
            Opcode::Flush | Opcode::Release | Opcode::Releasedir | Opcode::Destroy => {
                Ok(Vec::new())
            }
            Opcode::CopyFileRange => {
                let written = WriteOut {
                    size: self.copied,
                    padding: 0,
                };
                Ok(written.as_bytes().to_vec())
            }
            Opcode::Readdir => Ok(std::mem::take(&mut self.entries)),
            _ => Err(Errno::NOSYS),
        }
    }

    fn read(&mut self, args: &ReadIn) -> Reply {
        self.flags.push(args.read_flags);
        let most = self.take_most(args.offset, args.size as usize)?;
        let from = usize::try_from(args.offset).unwrap().min(self.data.len());
        let rest = &self.data[from..];
        Ok(rest[..most.min(rest.len())].to_vec())
    }

    /// The data of a file.
    fn contents(&mut self, node: u64) -> &mut Vec<u8> {
        match node {
            MADE => &mut self.made,
            _ => &mut self.data,
        }
    }

    fn seek(&self, args: &LseekIn) -> Reply {
        let extents = self.extents.as_ref().ok_or(Errno::NOSYS)?;
        let here = extents.iter().find(|extent| extent.end > args.offset);
        let here = here.ok_or(Errno::NXIO)?;
        let found = match args.whence {
            3 => here.start.max(args.offset),
            _ if here.contains(&args.offset) => here.end,
            _ => args.offset,
        };
        Ok(LseekOut { offset: found }.as_bytes().to_vec())
    }

    fn write(&mut self, node: u64, args: &WriteIn, data: &[u8]) -> Reply {
        self.flags.push(args.flags);
        assert_eq!(data.len(), args.size as usize);
        let most = self.take_most(args.offset, data.len())?;
        let from = usize::try_from(args.offset).unwrap();
        let end = from + most;
        let contents = self.contents(node);
        if contents.len() < end {
            contents.resize(end, 0);
        }
        contents[from..end].copy_from_slice(&data[..most]);
        let size = u32::try_from(most).unwrap() + u32::from(self.exaggerates);
        let written = WriteOut { size, padding: 0 };
        Ok(written.as_bytes().to_vec())
    }

    /// Bytes of `wanted` at `offset` that the daemon processes: up to where it fails.
    fn take_most(&mut self, offset: u64, wanted: usize) -> Result<usize, Errno> {
        let most = match self.most.is_empty() {
            true => wanted,
            false => self.most.remove(0).min(wanted),
        };
        match self.fails_from {
            Some((from, errno)) if offset >= from => Err(errno),
            Some((from, _)) => Ok(most.min(usize::try_from(from - offset).unwrap())),
            None => Ok(most),
        }
    }

    fn attr(&self, node: u64) -> Attr {
        Attr {
            ino: node,
            size: self.told_size.unwrap_or(self.data.len() as u64),
            mode: if node == 1 { 0o40755 } else { 0o100_644 },
            nlink: 1,
            ..Attr::default()
        }
    }

    fn attributes(&self, node: u64) -> AttrOut {
        AttrOut {
            attr: self.attr(node),
            ..AttrOut::default()
        }
    }

    fn entry(&self, node: u64) -> EntryOut {
        EntryOut {
            nodeid: node,
            attr: self.attr(node),
            ..EntryOut::default()
        }
    }
}

fn init() -> InitOut {
    InitOut {
        major: 7,
        minor: 45,
        max_write: u32::try_from(PIECE).unwrap(),
        ..InitOut::default()
    }
}

/// Bytes that differ from piece to piece.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..=250u8)
        .cycle()
        .flat_map(|byte| [byte; 7])
        .take(len)
        .collect()
}

/// An output into a file, and the file.
pub(super) fn output() -> (Output, File) {
    let file = tempfile::tempfile().unwrap();
    (Output::new(file.try_clone().unwrap()), file)
}

/// An error with its causes.
pub(super) fn text(error: &super::super::Error) -> String {
    gangplank_service::error_chain(error)
}
