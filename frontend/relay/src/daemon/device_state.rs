//! A daemon's state, saved and loaded through a pipe (vhost-user, "Migrating back-end state").
//!
//! ```text
//!   SET_DEVICE_STATE_FD with a pipe ── the state, until the writer closes it ── CHECK_DEVICE_STATE
//! ```

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use gangplank_vhost_user::Deadline;
use gangplank_vhost_user::connection::check_acknowledgement;
use gangplank_vhost_user::message::payload::{self, NO_DESCRIPTOR};
use gangplank_vhost_user::message::{
    FrontendReq, Message, StateDirection, StatePhase, TransferDeviceState,
};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::{Daemon, DaemonError, Result};

/// Bytes of state that the relay keeps for a guest at most. A daemon needs some hundred for each
/// file that its guest knows.
const MAX_STATE_LEN: usize = 1 << 30;

/// Bytes of state that one read takes: the capacity of a pipe.
const STATE_CHUNK_LEN: usize = 1 << 16;

impl Daemon {
    /// Reads what the daemon knows of the guest's files. Its rings have to be stopped.
    pub(crate) fn save(&mut self) -> Result<Vec<u8>> {
        let (near, far) = self.pipe()?;
        let near = self.open_state(StateDirection::SAVE, far)?.unwrap_or(near);
        let read = read_all(&near, self.limits.state);
        let state = read.map_err(|source| self.state_error(source))?;
        drop(near);
        self.check_state()?;
        Ok(state)
    }

    /// Hands over what another daemon knew.
    pub(crate) fn load(&mut self, state: &[u8]) -> Result<()> {
        let (far, near) = self.pipe()?;
        let near = self.open_state(StateDirection::LOAD, far)?.unwrap_or(near);
        let written = write_all(&near, state, self.limits.state);
        drop(near);
        // A daemon that rejects the state stops reading it. Its reply says why, the pipe does not.
        let checked = self.check_state();
        written.map_err(|source| self.state_error(source))?;
        checked
    }

    fn pipe(&self) -> Result<(OwnedFd, OwnedFd)> {
        pipe_with(PipeFlags::CLOEXEC).map_err(|errno| self.state_error(errno.into()))
    }

    /// SET_DEVICE_STATE_FD; returns a descriptor if the daemon uses another than `far`.
    fn open_state(&mut self, direction: StateDirection, far: OwnedFd) -> Result<Option<OwnedFd>> {
        let request = FrontendReq::SET_DEVICE_STATE_FD;
        let transfer = TransferDeviceState::new(direction, StatePhase::STOPPED);
        let message = Message::new(request, payload::encode(&transfer));
        self.send(request, &message, &[far.as_fd()])?;
        drop(far);
        let mut reply = self.receive(request, &message)?;
        match reply.u64() {
            Some(NO_DESCRIPTOR) => Ok(None),
            Some(0) => match reply.descriptors.pop() {
                Some(theirs) => Ok(Some(theirs)),
                None => Err(self.wrong_reply(request)),
            },
            Some(_) => Err(self.refused(request)),
            None => Err(self.wrong_reply(request)),
        }
    }

    fn check_state(&mut self) -> Result<()> {
        let request = FrontendReq::CHECK_DEVICE_STATE;
        let message = Message::new(request, Vec::new());
        self.send(request, &message, &[])?;
        let reply = self.receive_within(request, &message, self.limits.state)?;
        check_acknowledgement(&reply).map_err(|error| self.failed(request, error))
    }

    fn state_error(&self, source: io::Error) -> DaemonError {
        DaemonError::State {
            daemon: self.path.clone(),
            source,
        }
    }
}

fn read_all(pipe: &OwnedFd, limit: Duration) -> io::Result<Vec<u8>> {
    let deadline = Deadline::after(limit);
    let mut state = Vec::new();
    let mut part = vec![0; STATE_CHUNK_LEN];
    loop {
        let ready = deadline.wait(pipe, PollFlags::IN);
        ready.map_err(io::Error::other)?;
        match rustix::io::read(pipe, &mut part) {
            Ok(0) => return Ok(state),
            Ok(len) => {
                state.extend_from_slice(part.get(..len).unwrap_or_default());
                if state.len() > MAX_STATE_LEN {
                    return Err(io::Error::other(format!(
                        "it is longer than {MAX_STATE_LEN} bytes"
                    )));
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn write_all(pipe: &OwnedFd, state: &[u8], limit: Duration) -> io::Result<()> {
    let deadline = Deadline::after(limit);
    rustix::io::ioctl_fionbio(pipe, true)?;
    let mut written = 0;
    while let Some(rest @ [_, ..]) = state.get(written..) {
        match rustix::io::write(pipe, rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(len) => written += len,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let ready = deadline.wait(pipe, PollFlags::OUT);
                ready.map_err(io::Error::other)?;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
