//! What a supervisor leaves to the program that it becomes: numbers of descriptors and processes,
//! in a file in memory that the program inherits.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use gangplank_service::owned_file::FileId;
use rustix::fs::MemfdFlags;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::SUPERVISE;
use super::channel::Channel;
use crate::holder::store::{Holding, Left};
use crate::socket::Files;
use crate::supervisor::{Held, HeldKeeper, Supervisor};
use crate::sys::process;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    /// The channel to the acceptor.
    channel: RawFd,
    /// The acceptor.
    acceptor: i32,
    /// The locked pid file.
    lock: Option<RawFd>,
    /// The socket's file.
    socket: Option<(u64, u64)>,
    /// How often guests were handed over.
    count: u32,
    /// The listening socket.
    listener: Option<RawFd>,
    /// The user namespace.
    user_namespace: Option<RawFd>,
    /// The highest number of a guest so far.
    connections: u64,
    keepers: Vec<Keeper>,
    holders: Vec<Holder>,
    /// The connection to the holder of `--holder`.
    store: Option<RawFd>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Keeper {
    number: u64,
    is_logged: bool,
    process: i32,
    control: RawFd,
    handle: RawFd,
}

/// What is held of one guest outside of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    number: u64,
    /// The channel by which its processes have descriptors held.
    channel: RawFd,
    /// See [`Left`].
    names: BTreeSet<String>,
    files: BTreeMap<String, (u64, u64)>,
}

/// What is left to the next program, while this one has not become it. As a text, the value of
/// [`SUPERVISE`].
#[derive(Debug)]
pub struct Inherited<'a> {
    file: OwnedFd,
    passed: Vec<BorrowedFd<'a>>,
    store: Option<OwnedFd>,
}

impl<'a> Inherited<'a> {
    /// Leaves what `supervisor` watches and holds.
    ///
    /// # Errors
    /// The acceptor has died; there is no memory.
    pub fn leave(
        supervisor: &'a Supervisor,
        files: Option<&'a Files>,
        count: u32,
    ) -> io::Result<Self> {
        let ended = || io::Error::other("the acceptor has died");
        let channel = supervisor.channel().ok_or_else(ended)?;
        let acceptor = supervisor.acceptor().ok_or_else(ended)?;
        let held = supervisor.held();
        let store = held.holding.store().connection();
        let mut passed = Vec::new();
        let mut pass = |descriptor: BorrowedFd<'a>| {
            passed.push(descriptor);
            descriptor.as_raw_fd()
        };
        let content = Content {
            channel: pass(channel.as_fd()),
            acceptor: acceptor.as_raw_nonzero().get(),
            lock: files.map(|files| pass(files.lock())),
            socket: files.and_then(Files::socket_id).map(FileId::numbers),
            count,
            listener: held.listener.as_ref().map(|one| pass(one.as_fd())),
            user_namespace: held.user_namespace.as_ref().map(|one| pass(one.as_fd())),
            connections: held.connections,
            keepers: held
                .keepers
                .iter()
                .map(|keeper| Keeper {
                    number: keeper.number,
                    is_logged: keeper.is_logged,
                    process: keeper.process.as_raw_nonzero().get(),
                    control: pass(keeper.control.as_fd()),
                    handle: pass(keeper.handle.as_fd()),
                })
                .collect(),
            holders: (held.holding.leave())
                .map(|left: Left<'a>| Holder {
                    number: left.number,
                    channel: pass(left.channel),
                    names: left.names.clone(),
                    files: left.files.clone(),
                })
                .collect(),
            store: store.as_ref().map(AsRawFd::as_raw_fd),
        };
        let bytes = postcard::to_allocvec(&content).map_err(io::Error::other)?;
        let mut file = File::from(rustix::fs::memfd_create("supervised", MemfdFlags::empty())?);
        file.write_all(&bytes)?;
        file.rewind()?;
        for descriptor in &passed {
            fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        if let Some(store) = &store {
            fcntl_setfd(store, FdFlags::empty())?;
        }
        Ok(Self {
            file: file.into(),
            passed,
            store,
        })
    }

    /// Leaves nothing, since the process has not become the next program.
    pub fn take_back(self) {
        for descriptor in self.passed {
            let _ = fcntl_setfd(descriptor, FdFlags::CLOEXEC);
        }
        drop(self.store);
    }
}

impl fmt::Display for Inherited<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.as_raw_fd())
    }
}

/// What a program supervises that a supervisor has become.
#[derive(Debug)]
pub struct Supervised {
    /// The channel to the acceptor.
    pub channel: Channel,
    /// The acceptor.
    pub acceptor: Pid,
    /// What it holds for the acceptor.
    pub held: Held,
    /// The locked pid file.
    pub lock: Option<OwnedFd>,
    /// The socket's file.
    pub socket: Option<FileId>,
    /// How often guests were handed over.
    pub count: u32,
    /// The connection to the holder.
    pub store: Option<OwnedFd>,
}

impl Supervised {
    /// What the process supervised before it became this program. Must be called once, before the
    /// process opens descriptors.
    ///
    /// # Errors
    /// It is malformed, or a descriptor is not open.
    pub fn inherited() -> io::Result<Option<Self>> {
        let Some(text) = std::env::var_os(SUPERVISE) else {
            return Ok(None);
        };
        let number = text.to_str().and_then(|text| text.parse().ok());
        let mut bytes = Vec::new();
        File::from(adopt(number.ok_or_else(malformed)?)?).read_to_end(&mut bytes)?;
        let content = postcard::from_bytes(&bytes).map_err(|_| malformed())?;
        Self::adopt(content).map(Some)
    }

    fn adopt(content: Content) -> io::Result<Self> {
        let keepers = content.keepers.into_iter().map(|keeper| {
            Ok(HeldKeeper {
                number: keeper.number,
                is_logged: keeper.is_logged,
                process: Pid::from_raw(keeper.process).ok_or_else(malformed)?,
                control: Channel::new(adopt(keeper.control)?),
                handle: adopt(keeper.handle)?,
            })
        });
        let mut holding = Holding::default();
        for holder in content.holders {
            let channel = Channel::new(adopt(holder.channel)?);
            holding.go_on(holder.number, channel, holder.names, holder.files);
        }
        Ok(Self {
            channel: Channel::new(adopt(content.channel)?),
            acceptor: Pid::from_raw(content.acceptor).ok_or_else(malformed)?,
            held: Held {
                keepers: keepers.collect::<io::Result<_>>()?,
                listener: content.listener.map(adopt).transpose()?,
                user_namespace: content.user_namespace.map(adopt).transpose()?,
                connections: content.connections,
                holding,
            },
            lock: content.lock.map(adopt).transpose()?,
            socket: content
                .socket
                .map(|(device, inode)| FileId::from_numbers(device, inode)),
            count: content.count,
            store: content.store.map(adopt).transpose()?,
        })
    }
}

fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    let descriptor = process::adopt(number)?;
    fcntl_setfd(&descriptor, FdFlags::CLOEXEC)?;
    Ok(descriptor)
}

fn malformed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{SUPERVISE} is malformed"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_to_the_next_program_comes_back() {
        let socket = || Channel::pair().unwrap().0.into_inner();
        let held = Held {
            listener: Some(socket()),
            user_namespace: None,
            connections: 9,
            keepers: vec![HeldKeeper {
                number: 8,
                is_logged: true,
                process: rustix::process::getpid(),
                control: Channel::new(socket()),
                handle: socket(),
            }],
            holding: Holding::default(),
        };
        let own = rustix::process::getpid();
        let supervisor = Supervisor::new(own, Channel::new(socket()), held).unwrap();
        let left = Inherited::leave(&supervisor, None, 3).unwrap();
        let mut bytes = Vec::new();
        let file = left.file.try_clone().unwrap();
        File::from(file).read_to_end(&mut bytes).unwrap();
        let content: Content = postcard::from_bytes(&bytes).unwrap();
        left.take_back();
        assert_eq!((content.count, content.connections), (3, 9));
        let keeper = content.keepers[0];
        let of_keeper = &supervisor.held().keepers[0];
        assert_eq!(keeper.control, of_keeper.control.as_fd().as_raw_fd());
        assert_eq!(keeper.handle, of_keeper.handle.as_raw_fd());
        assert_eq!((keeper.number, keeper.is_logged), (8, true));
        let flags = rustix::io::fcntl_getfd(&of_keeper.handle).unwrap();
        assert_eq!(flags, FdFlags::CLOEXEC);
    }
}
