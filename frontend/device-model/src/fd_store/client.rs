//! The device model's end: finds the fd store or starts it, and sends requests.

use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use gangplank_service::fnv::fnv_1a;
use gangplank_service::peer_cred::PeerCred;
use log::{error, info, warn};
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use super::channel::{Received, receive, send};
use super::error::FdStoreError;
use super::executable::Executable;
use super::message::{Answer, Request, Slot};
use super::start_options::StartOptions;

/// How long the fd store may take to answer. It does nothing that takes time.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// Most attempts to connect, while other processes start an fd store at the same time.
const MAX_ATTEMPTS: u32 = 50;

/// Pause between two attempts to connect.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// Bytes of the longest abstract name (unix(7)): those of `sun_path`, without the leading zero
/// byte.
const MAX_NAME_LEN: usize = 107;

/// The fd store's `argv[0]`. systemd lets a process whose `argv[0]` begins with `@` live until the
/// machine is switched off.
const ARGV0: &str = "@gangplank-fd-store";

/// A connection to the fd store.
#[derive(Debug)]
pub struct FdStore {
    name: String,
    start: StartOptions,
    link: Mutex<Link>,
}

#[derive(Debug)]
struct Link {
    socket: Arc<OwnedFd>,
    process: u32,
}

/// What [`FdStore::put`] asks for, in errors.
const KEEP: &str = "keep a descriptor";

impl FdStore {
    /// Connects to the fd store of that name. Starts one as `start` says if there is none.
    ///
    /// # Errors
    /// [`FdStoreError::Start`], [`FdStoreError::Stranger`], [`FdStoreError::Lost`].
    pub fn connect(name: &str, start: StartOptions) -> Result<Self, FdStoreError> {
        Ok(Self {
            name: name.to_owned(),
            link: Mutex::new(find(name, &start)?),
            start,
        })
    }

    /// Uses a connection that exists already.
    #[cfg(test)]
    pub(super) fn on(socket: OwnedFd) -> Self {
        let socket = Arc::new(socket);
        Self {
            name: "test".to_owned(),
            start: StartOptions::default(),
            link: Mutex::new(Link { socket, process: 0 }),
        }
    }

    /// The fd store's process.
    pub fn process(&self) -> u32 {
        self.link.lock().process
    }

    /// A descriptor that polls as `RDHUP` once the fd store has gone. Nothing may be read from it.
    pub fn connection(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.link.lock().socket)
    }

    /// Connects again, to another fd store if the previous one has gone. The new one keeps nothing
    /// of the previous one's.
    ///
    /// # Errors
    /// As [`FdStore::connect`].
    pub fn renew(&self) -> Result<(), FdStoreError> {
        let link = find(&self.name, &self.start)?;
        *self.link.lock() = link;
        Ok(())
    }

    pub(super) fn claim(&self, device: u32) -> Result<(), FdStoreError> {
        let doing = "let this process claim a device";
        match self.ask(doing, Request::Claim { device }, None)?.0 {
            Answer::Done { .. } => Ok(()),
            Answer::Busy { process } => Err(FdStoreError::Busy { device, process }),
            _ => Err(FdStoreError::Refused { doing }),
        }
    }

    pub(super) fn get(&self, device: u32, slot: Slot) -> Result<Option<OwnedFd>, FdStoreError> {
        let doing = "return a descriptor";
        match self.ask(doing, Request::Get { device, slot }, None)? {
            (Answer::Done { .. }, Some(descriptor)) => Ok(Some(descriptor)),
            (Answer::Empty, _) => Ok(None),
            _ => Err(FdStoreError::Refused { doing }),
        }
    }

    pub(super) fn put(
        &self,
        device: u32,
        slot: Slot,
        descriptor: BorrowedFd<'_>,
    ) -> Result<(), FdStoreError> {
        match self.ask_to_keep(device, slot, descriptor)? {
            Answer::Done { .. } => Ok(()),
            _ => Err(FdStoreError::Refused { doing: KEEP }),
        }
    }

    /// As [`FdStore::put`], but a descriptor that the fd store has already is no error.
    pub(super) fn put_again(
        &self,
        device: u32,
        slot: Slot,
        descriptor: BorrowedFd<'_>,
    ) -> Result<(), FdStoreError> {
        match self.ask_to_keep(device, slot, descriptor)? {
            Answer::Done { .. } => Ok(()),
            Answer::Occupied if !slot.is_replaceable() => Ok(()),
            _ => Err(FdStoreError::Refused { doing: KEEP }),
        }
    }

    fn ask_to_keep(
        &self,
        device: u32,
        slot: Slot,
        descriptor: BorrowedFd<'_>,
    ) -> Result<Answer, FdStoreError> {
        let request = Request::Put { device, slot };
        Ok(self.ask(KEEP, request, Some(descriptor))?.0)
    }

    /// Shuts the connection down, so that the thread that polls it connects again.
    pub(super) fn hang_up(&self) {
        // Fails if the fd store has closed the connection already.
        let _ = rustix::net::shutdown(self.connection(), rustix::net::Shutdown::Both);
    }

    pub(super) fn remove(&self, device: u32, slot: Slot) -> Result<(), FdStoreError> {
        let doing = "remove a descriptor";
        match self.ask(doing, Request::Drop { device, slot }, None)?.0 {
            Answer::Done { .. } | Answer::Empty => Ok(()),
            _ => Err(FdStoreError::Refused { doing }),
        }
    }

    fn ask(
        &self,
        doing: &'static str,
        request: Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(Answer, Option<OwnedFd>), FdStoreError> {
        let link = self.link.lock();
        ask(&link.socket, request, descriptor).map_err(|errno| {
            // A late answer would be taken for the answer to the next request.
            let _ = rustix::net::shutdown(&link.socket, rustix::net::Shutdown::Both);
            let source = errno.into();
            FdStoreError::Lost { doing, source }
        })
    }
}

/// The name of the fd store for the devices of a device node. Each user has one of their own.
#[must_use]
pub fn name_for_node(node: &Path) -> String {
    let node = fs::canonicalize(node).unwrap_or_else(|_| node.to_owned());
    let user = rustix::process::geteuid().as_raw();
    let name = format!("gangplank-holder:{user}:{}", node.display());
    if name.len() <= MAX_NAME_LEN {
        return name;
    }
    format!(
        "gangplank-holder:{user}:{:016x}",
        fnv_1a(node.as_os_str().as_bytes())
    )
}

fn ask(
    socket: &OwnedFd,
    request: Request,
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(Answer, Option<OwnedFd>), Errno> {
    send(socket, request.to_wire(), descriptor)?;
    match receive(socket)? {
        Received::End => Err(Errno::PIPE),
        Received::Message { wire, descriptor } => match Answer::from_wire(wire) {
            None => Err(Errno::PROTO),
            Some(answer) => Ok((answer, descriptor)),
        },
    }
}

fn find(name: &str, options: &StartOptions) -> Result<Link, FdStoreError> {
    let failed = |doing| {
        move |errno: Errno| FdStoreError::Start {
            doing,
            name: name.to_owned(),
            source: errno.into(),
        }
    };
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).map_err(failed("name"))?;
    let mut last = Errno::CONNREFUSED;
    for _ in 0..MAX_ATTEMPTS {
        let socket = seqpacket().map_err(failed("connect to"))?;
        match connect(&socket, &address) {
            Ok(()) => match greet(name, socket) {
                // The fd store was about to end, because it had nothing to keep.
                Err(FdStoreError::Lost { .. }) => thread::sleep(RETRY_INTERVAL),
                greeted => return greeted,
            },
            Err(Errno::CONNREFUSED) => {
                let listener = seqpacket().map_err(failed("start"))?;
                match bind(&listener, &address) {
                    Ok(()) => start(name, options, listener).map_err(failed("start"))?,
                    // Another process is about to start one.
                    Err(Errno::ADDRINUSE) => thread::sleep(RETRY_INTERVAL),
                    Err(errno) => return Err(failed("start")(errno)),
                }
            }
            // The fd store's queue of connections is full.
            Err(errno @ (Errno::AGAIN | Errno::INTR)) => {
                last = errno;
                thread::sleep(RETRY_INTERVAL);
            }
            Err(errno) => return Err(failed("connect to")(errno)),
        }
    }
    Err(failed("connect to")(last))
}

fn seqpacket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(REPLY_TIMEOUT))?;
    set_socket_timeout(&socket, Timeout::Send, Some(REPLY_TIMEOUT))?;
    Ok(socket)
}

/// Starts this program as the fd store. Connections from now on wait until it accepts them.
fn start(name: &str, options: &StartOptions, listener: OwnedFd) -> Result<(), Errno> {
    set_socket_timeout(&listener, Timeout::Recv, None)?;
    listen(&listener, BACKLOG)?;
    let earlier_score = options.protect();
    let executable = Executable::copy_of_this_program();
    let started = Command::new(executable.path())
        .arg0(ARGV0)
        .args(["hold", &format!("--seccomp={}", options.seccomp), name])
        .stdin(Stdio::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        // A process group of its own, so that a terminal's or a shell's signals to this program do
        // not reach it.
        .process_group(0)
        .spawn();
    if let Some(score) = earlier_score {
        options.set_oom_score(&score);
    }
    let mut child =
        started.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::CHILD))?;
    info!("process {} keeps the devices over a restart", child.id());
    // If the fd store ends before this process, this thread reaps it.
    let wait = move || match child.wait() {
        // It has nothing to keep any more.
        Ok(status) if status.success() => {}
        Ok(status) => error!("process {} keeps the devices no more: {status}", child.id()),
        Err(error) => warn!("cannot wait for the process that keeps the devices: {error}"),
    };
    let waiting = thread::Builder::new().name("holder".to_owned()).spawn(wait);
    waiting.map(|_| ()).map_err(|_| Errno::AGAIN)
}

fn greet(name: &str, socket: OwnedFd) -> Result<Link, FdStoreError> {
    let lost = |errno: Errno| FdStoreError::Lost {
        doing: "identify itself",
        source: errno.into(),
    };
    let peer = PeerCred::of(&socket).map_err(lost)?;
    if !peer.is_root_or_own() {
        return Err(FdStoreError::Stranger {
            name: name.to_owned(),
            user: peer.user,
        });
    }
    match ask(&socket, Request::Hello, None).map_err(lost)? {
        (Answer::Done { process }, _) => Ok(Link {
            socket: Arc::new(socket),
            process,
        }),
        _ => Err(lost(Errno::PROTO)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_fits_whatever_the_node_is_called() {
        let user = rustix::process::geteuid().as_raw();
        assert_eq!(
            name_for_node(Path::new("/dev/null")),
            format!("gangplank-holder:{user}:/dev/null")
        );
        let long = |last| format!("/nonexistent/{}/{last}", "x".repeat(200));
        let names = ["a", "b"].map(|last| name_for_node(Path::new(&long(last))));
        assert!(names.iter().all(|name| name.len() <= MAX_NAME_LEN));
        assert_ne!(names[0], names[1]);
    }
}
