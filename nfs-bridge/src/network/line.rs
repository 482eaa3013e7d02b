//! How frames go to and come from one machine at the switch.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::switch::{BURST, Frame, MAX_FRAME};

/// Bytes of the length before a frame on a stream.
const LENGTH: usize = 4;

/// How a machine is reached.
#[derive(Debug)]
pub(super) enum Line {
    /// A connection of bytes.
    Stream {
        stream: UnixStream,
        /// Bytes that have come and are no whole frame yet.
        received: Vec<u8>,
        /// Bytes of the first waiting frame that are written already.
        written: usize,
    },
    /// A connection of packets.
    Packets(OwnedFd),
    /// A TAP device, or another file with a frame in each read and write.
    Device(OwnedFd),
    /// The number of the datagram socket that the machine sends to, and its own path.
    Datagram { socket: usize, path: PathBuf },
}

impl Line {
    /// A machine that has connected by `stream`, which does not block.
    pub(super) const fn stream(stream: UnixStream) -> Self {
        Self::Stream {
            stream,
            received: Vec::new(),
            written: 0,
        }
    }

    /// The machine's own connection, if it has one.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Stream { stream, .. } => Some(stream.as_fd()),
            Self::Packets(fd) | Self::Device(fd) => Some(fd.as_fd()),
            Self::Datagram { .. } => None,
        }
    }

    /// Takes frames that have come on the machine's own connection.
    ///
    /// # Errors
    /// The machine has left, or breaks the rules.
    pub(super) fn receive(&mut self) -> io::Result<Vec<Frame>> {
        match self {
            Self::Stream {
                stream, received, ..
            } => read_frames(stream, received),
            Self::Packets(packets) => receive_each(|buffer| {
                let (_, len) = recv(&*packets, buffer, RecvFlags::empty())?;
                Ok(len)
            }),
            Self::Device(device) => receive_each(|buffer| Ok(rustix::io::read(&*device, buffer)?)),
            Self::Datagram { .. } => Ok(Vec::new()),
        }
    }

    /// Sends waiting frames, as far as the machine takes them. `datagrams` are the switch's
    /// sockets.
    ///
    /// # Errors
    /// The machine has left.
    pub(super) fn send(
        &mut self,
        datagrams: &[UnixDatagram],
        waiting: &mut VecDeque<Frame>,
    ) -> io::Result<()> {
        match self {
            Self::Stream {
                stream, written, ..
            } => write_frames(stream, written, waiting),
            Self::Packets(packets) => send_each(waiting, |frame| {
                Ok(send(&packets, frame, SendFlags::NOSIGNAL)?)
            }),
            Self::Device(device) => send_each(waiting, |frame| {
                match rustix::io::write(&*device, frame) {
                    // It is down. Frames to it are lost.
                    Err(Errno::IO) => Ok(frame.len()),
                    written => Ok(written?),
                }
            }),
            Self::Datagram { socket, path } => match datagrams.get(*socket) {
                Some(socket) => send_each(waiting, |frame| socket.send_to(frame, Path::new(path))),
                None => Ok(()),
            },
        }
    }
}

/// Reads what has come on a stream: the whole frames in it.
fn read_frames(stream: &mut UnixStream, received: &mut Vec<u8>) -> io::Result<Vec<Frame>> {
    let mut buffer = vec![0; BURST * 1518];
    match stream.read(&mut buffer) {
        Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
        Ok(len) => received.extend_from_slice(buffer.get(..len).unwrap_or_default()),
        Err(error) if is_later(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    let mut frames = Vec::new();
    let mut rest = received.as_slice();
    while let Some((length, after)) = rest.split_first_chunk::<LENGTH>() {
        let len = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if len > MAX_FRAME {
            return Err(io::Error::other(format!("it sent a frame of {len} bytes")));
        }
        let Some((frame, after)) = after.split_at_checked(len) else {
            break;
        };
        frames.push(frame.into());
        rest = after;
    }
    let consumed = received.len() - rest.len();
    received.drain(..consumed);
    Ok(frames)
}

/// Writes waiting frames to a stream. `written` counts the bytes of the first that are written.
fn write_frames(
    stream: &mut UnixStream,
    written: &mut usize,
    waiting: &mut VecDeque<Frame>,
) -> io::Result<()> {
    while let Some(frame) = waiting.front() {
        let length = u32::try_from(frame.len()).unwrap_or(0).to_be_bytes();
        let framed = [&length[..], frame].concat();
        match stream.write(framed.get(*written..).unwrap_or_default()) {
            Ok(len) => *written += len,
            Err(error) if is_later(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
        if *written >= framed.len() {
            *written = 0;
            waiting.pop_front();
        }
    }
    Ok(())
}

/// Takes the frames that have come, each by `receive`, up to a burst.
fn receive_each(receive: impl Fn(&mut [u8]) -> io::Result<usize>) -> io::Result<Vec<Frame>> {
    let mut buffer = vec![0; MAX_FRAME];
    let mut frames = Vec::new();
    while frames.len() < BURST {
        match receive(&mut buffer) {
            // An empty packet looks like the end, and is no frame.
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => frames.push(buffer.get(..len).unwrap_or(&buffer).into()),
            Err(error) if is_later(&error) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(frames)
}

/// Sends each waiting frame by `send`, until that would block.
fn send_each(
    waiting: &mut VecDeque<Frame>,
    send: impl Fn(&[u8]) -> io::Result<usize>,
) -> io::Result<()> {
    while let Some(frame) = waiting.front() {
        match send(&Arc::clone(frame)) {
            Ok(_) => {}
            Err(error) if is_later(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
        waiting.pop_front();
    }
    Ok(())
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
