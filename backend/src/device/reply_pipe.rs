//! Replies to the frontend go through a pipe that outlives the worker. By what is in it, the next
//! worker knows whether the last reply was sent: none is lost, and none is sent twice.
//!
//! | the worker dies | a message is pending | in the pipe | the next worker |
//! | --- | --- | --- | --- |
//! | before it puts the reply into the pipe | yes | nothing | carries the message out again |
//! | before it stores the end of the message | yes | the reply | empties the pipe, does the same |
//! | before it moves the reply to the socket | no | the reply | moves it |
//! | later | no | nothing | |
//!
//! One system call moves the reply (splice(2)), and a signal that ends the process comes before or
//! after it: each byte is in the pipe or in the socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

/// Longer than any reply, in bytes: a pipe has room for two pages at least.
const MOST: usize = 8192;

/// The pipe of one guest.
#[derive(Debug)]
pub struct ReplyPipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl ReplyPipe {
    /// An empty pipe.
    ///
    /// # Errors
    /// Those of pipe2(2).
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { reader, writer })
    }

    /// Both ends.
    pub fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.reader.as_fd(), self.writer.as_fd()]
    }

    /// Puts a reply into the empty pipe.
    ///
    /// # Errors
    /// Those of write(2); `WriteZero` if the pipe has no room for it.
    pub(super) fn put(&self, reply: &[u8]) -> io::Result<()> {
        match rustix::io::write(&self.writer, reply)? {
            written if written == reply.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Moves what is in the pipe to the frontend's socket, once that has room.
    ///
    /// # Errors
    /// Those of splice(2): EPIPE if the frontend has hung up.
    pub(super) fn send(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        while !self.send_now(socket)? {
            let mut ready = [PollFd::from_borrowed_fd(socket, PollFlags::OUT)];
            match poll(&mut ready, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The same without waiting. Returns whether the socket had room for all.
    ///
    /// # Errors
    /// Those of splice(2): EPIPE if the frontend has hung up.
    pub fn send_now(&self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        while !self.is_empty()? {
            match splice(
                &self.reader,
                None,
                socket,
                None,
                MOST,
                SpliceFlags::NONBLOCK,
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Takes everything out of the pipe.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn clear(&self) -> io::Result<()> {
        let mut taken = [0; MOST];
        loop {
            match rustix::io::read(&self.reader, &mut taken) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn is_empty(&self) -> io::Result<bool> {
        let mut ready = [PollFd::new(&self.reader, PollFlags::IN)];
        loop {
            match poll(&mut ready, Some(&Timespec::default())) {
                Ok(count) => return Ok(count == 0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    #[test]
    fn what_is_in_the_pipe_is_sent_once() {
        let pipe = ReplyPipe::new().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        for reply in [&b"first"[..], &[7; 4108]] {
            pipe.put(reply).unwrap();
            for _ in 0..2 {
                pipe.send(near.as_fd()).unwrap();
            }
            let mut received = vec![0; reply.len()];
            far.read_exact(&mut received).unwrap();
            assert_eq!(received, reply);
        }
        pipe.put(b"given up").unwrap();
        pipe.clear().unwrap();
        pipe.send(near.as_fd()).unwrap();
        far.set_nonblocking(true).unwrap();
        let error = far.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_full_socket_is_waited_for_and_a_closed_one_is_an_error() {
        let pipe = ReplyPipe::new().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let most = thread::scope(|scope| {
            let reader = scope.spawn(move || {
                thread::sleep(std::time::Duration::from_millis(50));
                let mut all = Vec::new();
                far.read_to_end(&mut all).unwrap();
                all.len()
            });
            for _ in 0..200 {
                pipe.put(&[1; 4000]).unwrap();
                pipe.send(near.as_fd()).unwrap();
            }
            near.shutdown(std::net::Shutdown::Write).unwrap();
            reader.join().unwrap()
        });
        assert_eq!(most, 200 * 4000);
        pipe.put(b"more").unwrap();
        let error = pipe.send(near.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
