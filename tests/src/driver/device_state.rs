//! A daemon's state, saved and loaded (vhost-user, "Migrating back-end state").

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use gangplank_vhost_user::Deadline;
use gangplank_vhost_user::message::payload::{self, NO_DESCRIPTOR};
use gangplank_vhost_user::message::{StateDirection, StatePhase, TransferDeviceState};
use rustix::event::PollFlags;
use rustix::pipe::{PipeFlags, pipe_with};

use super::error::{Error, Result};
use super::vhost_user::{ANSWER_LIMIT, Peer, VERSION, message};
use super::{Dialect, Driver};

/// Bytes of state that one write takes: what a pipe has room for once poll says so.
const CHUNK_LEN: usize = 4096;

impl Driver {
    /// Stops all rings and reads what the daemon knows of the guest. [`Driver::start_ring`] goes on
    /// afterwards.
    ///
    /// # Errors
    /// The daemon refuses, or does not end the state in time.
    pub fn save_state(&self) -> Result<Vec<u8>> {
        self.stop_rings()?;
        let (near, far) = pipe()?;
        open_state(&self.peer, StateDirection::SAVE, far)?;
        let deadline = Deadline::after(ANSWER_LIMIT);
        let mut near = io::PipeReader::from(near);
        let mut state = Vec::new();
        let mut part = vec![0; CHUNK_LEN];
        loop {
            let ready = deadline.wait(&near, PollFlags::IN);
            let read = ready.map_err(io::Error::other);
            match read.and_then(|()| near.read(&mut part)) {
                Ok(0) => break,
                Ok(len) => state.extend_from_slice(part.get(..len).unwrap_or_default()),
                Err(source) => return Err(failed(source)),
            }
        }
        check_state(&self.peer)?;
        Ok(state)
    }

    /// Hands another daemon's state to this one, whose guest then goes on with its nodes and
    /// handles. `dialect` is what its INIT negotiated.
    ///
    /// # Errors
    /// The daemon refuses the state.
    pub fn load_state(&mut self, state: &[u8], dialect: Dialect) -> Result<()> {
        self.stop_rings()?;
        let (far, near) = pipe()?;
        open_state(&self.peer, StateDirection::LOAD, far)?;
        let deadline = Deadline::after(ANSWER_LIMIT);
        let mut near = io::PipeWriter::from(near);
        let mut written = Ok(());
        for part in state.chunks(CHUNK_LEN) {
            let ready = deadline.wait(&near, PollFlags::OUT);
            written = ready.map_err(io::Error::other);
            written = written.and_then(|()| near.write_all(part));
            if written.is_err() {
                break;
            }
        }
        drop(near);
        check_state(&self.peer)?;
        written.map_err(failed)?;
        self.dialect = dialect;
        for index in 0..self.rings.len() {
            self.start_ring(index)?;
        }
        Ok(())
    }

    fn stop_rings(&self) -> Result<()> {
        for index in 0..self.rings.len() {
            self.stop_ring(index)?;
        }
        Ok(())
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).map_err(Error::system("making a pipe"))
}

fn failed(source: io::Error) -> Error {
    Error::System {
        what: "transferring the daemon's state",
        source,
    }
}

/// SET_DEVICE_STATE_FD. A daemon that prefers a descriptor of its own is not supported.
fn open_state(peer: &Peer, direction: StateDirection, far: OwnedFd) -> Result<()> {
    let transfer = TransferDeviceState::new(direction, StatePhase::STOPPED);
    let request = message::SET_DEVICE_STATE_FD;
    peer.send(
        request,
        VERSION,
        &payload::encode(&transfer),
        &[far.as_fd()],
    )?;
    drop(far);
    expect(request, &peer.receive()?.payload, NO_DESCRIPTOR)
}

fn check_state(peer: &Peer) -> Result<()> {
    let request = message::CHECK_DEVICE_STATE;
    expect(request, &peer.ask(request, &[])?, 0)
}

fn expect(request: u32, answer: &[u8], expected: u64) -> Result<()> {
    match payload::to_u64(answer) {
        Some(code) if code == expected => Ok(()),
        code => Err(Error::Refused {
            request,
            code: code.unwrap_or(u64::MAX),
        }),
    }
}
