//! What the shares' processes say of themselves, in the words that a service manager understands
//! (`sd_notify(3)`): each has the path of this socket in `NOTIFY_SOCKET`.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg, sockopt};
use rustix::process::Pid;

/// Most bytes of a message. What is longer is cut.
const MAX_BYTES: usize = 4096;

/// What a process says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// It serves, or a reload is done.
    Ready,
    /// It begins a reload.
    Reloading,
    /// Its acceptor has answered (the watchdog).
    Alive,
    /// How it is, in words: the reason of a failure.
    Status(String),
}

/// The socket.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
    path: PathBuf,
}

impl NotifySocket {
    /// Makes the socket in a directory that other users cannot enter.
    ///
    /// # Errors
    /// Those of bind(2).
    pub fn bind(path: PathBuf) -> io::Result<Self> {
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        sockopt::set_socket_passcred(&socket, true)?;
        Ok(Self { socket, path })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the next message: who says what. `None` if there is none yet.
    ///
    /// # Errors
    /// Those of recvmsg(2).
    pub fn receive(&self) -> io::Result<Option<(Pid, Vec<Said>)>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; MAX_BYTES];
        let parts = &mut [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = match recvmsg(&self.socket, parts, &mut control, flags) {
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let sender = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmCredentials(sender) => Some(sender.pid),
            _ => None,
        });
        let sender = sender.ok_or_else(|| io::Error::other("a message has no sender"))?;
        let text = bytes.get(..received.bytes).unwrap_or_default();
        Ok(Some((sender, understand(&String::from_utf8_lossy(text)))))
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Lines that mean nothing here are left out, as service managers do.
fn understand(text: &str) -> Vec<Said> {
    let said = text.lines().filter_map(|line| match line.split_once('=')? {
        ("READY", "1") => Some(Said::Ready),
        ("RELOADING", "1") => Some(Said::Reloading),
        ("WATCHDOG", "1") => Some(Said::Alive),
        ("STATUS", status) => Some(Said::Status(status.to_owned())),
        _ => None,
    });
    said.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_its_senders_process() {
        let dir = tempfile::tempdir().unwrap();
        let socket = NotifySocket::bind(dir.path().join("notify")).unwrap();
        assert_eq!(socket.receive().unwrap(), None);
        let sender = UnixDatagram::unbound().unwrap();
        let text = b"READY=1\nSTATUS=it serves\nFDSTORE=1\nrubbish\nWATCHDOG=1";
        sender.send_to(text, socket.path()).unwrap();
        let (process, said) = socket.receive().unwrap().unwrap();
        assert_eq!(process, rustix::process::getpid());
        let status = Said::Status("it serves".to_owned());
        assert_eq!(said, [Said::Ready, status, Said::Alive]);
    }
}
