//! Sends requests to one endpoint of the server, and completes them.

use std::time::{Duration, Instant};

use gangplank_service::error_chain;
use log::debug;
use rustix::io::Errno;

use super::behind;
use super::job::{Job, Next, Outcome, Place};
use super::memory::RequestMemory;
use super::serve::Shared;
use super::state::Fatal;
use crate::endpoint::{BoundEndpoint, SharedBuffers};
use crate::tunnel::wire::{Answer, Call, Request};

/// Works with endpoint number `index` until the guest has gone.
pub(super) fn run(shared: &Shared, index: u16, endpoint: &dyn BoundEndpoint) {
    let mut state = shared.state.lock();
    loop {
        match state.next(index) {
            Next::End => return,
            Next::Wait(until) => {
                if state.stopping.is_some() {
                    // Requests may have failed.
                    shared.changed.notify_all();
                }
                shared.wait(&mut state, index, until);
            }
            Next::Send(job, place, bytes) => {
                drop(state);
                let outcome = send(shared, index, endpoint, &job, place, &bytes);
                let outcome = match bytes.is_fault() {
                    true => Outcome::Fatal(Fatal::Memory),
                    false => outcome,
                };
                state = shared.state.lock();
                state.finish(job, place, outcome);
                shared.finished(&mut state);
            }
        }
    }
}

fn send(
    shared: &Shared,
    index: u16,
    endpoint: &dyn BoundEndpoint,
    job: &Job,
    place: Place,
    bytes: &RequestMemory,
) -> Outcome {
    let call = Call::Request(Request {
        session: place.session,
        slot: place.slot,
        number: place.number,
        readable: job.readable,
        writable: job.writable,
        address: bytes.address(),
    });
    let to = behind(shared.options.server, index);
    let left = job.deadline.saturating_duration_since(Instant::now());
    let limit = left.max(Duration::from_millis(1));
    let mut buffers = SharedBuffers::proxied(bytes);
    match endpoint.sendrec(to, &call.encode(), &mut buffers, limit) {
        Ok(message) => match Answer::decode(&message, &call) {
            Some(Answer::Done { written }) => Outcome::Done(written),
            Some(Answer::Pending) => Outcome::Pending,
            Some(Answer::Refused(Errno::STALE | Errno::NOTCONN)) => Outcome::Lost,
            // `forward` does not reach the server.
            Some(Answer::Refused(Errno::IO)) => Outcome::Unreached,
            Some(Answer::Refused(errno)) => {
                Outcome::Fatal(Fatal::Server(format!("refuses a request: {errno}")))
            }
            Some(Answer::Opened { .. }) | None => {
                Outcome::Fatal(Fatal::Server(format!("answers a request by {message:?}")))
            }
        },
        Err(error) => {
            debug!("{}", error_chain(&error));
            Outcome::Unreached
        }
    }
}
