//! Answers one client of the control socket or of the metrics.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use gangplank_service::deadline_io;
use gangplank_service::http;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::metrics;
use super::model::{Guest, Status};
use super::snapshot::{self, Room};
use crate::handover::channel::{Channel, Message};

/// What a client of the control socket sends.
pub const REQUEST: &str = "status 1";

/// How long all keepers together may take to pass their guests' states. One whose worker has just
/// died passes it when the next worker serves.
const KEEPERS_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a client may take, from when it is accepted to the end of its reply.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Most bytes of a request to the control socket.
const MAX_REQUEST: usize = 256;

/// Clients of each kind that are answered at a time. Others wait.
pub const MAX_CLIENTS: usize = 8;

/// What a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request line, and JSON.
    Control,
    /// HTTP, and OpenMetrics.
    Metrics,
}

impl Kind {
    /// Each.
    pub const ALL: [Self; 2] = [Self::Control, Self::Metrics];
}

/// Asks the keepers of `guests`, by number, and reads what they pass.
pub fn guests<'a>(guests: impl Iterator<Item = (u64, &'a Channel)>, room: Room) -> Vec<Guest> {
    let asked: Vec<_> = guests
        .map(|(number, keeper)| (number, ask(keeper)))
        .collect();
    let deadline = Instant::now() + KEEPERS_TIMEOUT;
    let read = asked.into_iter().map(|(number, answer)| {
        let guest = answer.and_then(|answer| {
            let arrived = answer.expect(Some(deadline))?;
            let state = arrived.descriptors.into_iter().next();
            let state = state.ok_or_else(|| io::Error::other("it has no memory file"))?;
            snapshot::read(number, state.as_fd(), room)
        });
        guest.unwrap_or_else(|error| match error.kind() {
            ErrorKind::TimedOut => Guest::unavailable(
                number,
                "it was not told in time: its next worker is starting, or the host is slow",
            ),
            _ => Guest::unavailable(number, error.to_string()),
        })
    });
    read.collect()
}

/// Returns the channel on which the keeper answers.
fn ask(keeper: &Channel) -> io::Result<Channel> {
    let (ours, theirs) = Channel::pair()?;
    let mut ready = [PollFd::new(keeper, PollFlags::OUT)];
    let is_ready = poll(&mut ready, Some(&Timespec::default()));
    if !is_ready.is_ok_and(|count| count == 1) {
        return Err(ErrorKind::TimedOut.into());
    }
    keeper.send(&Message::Report, &[theirs.as_fd()])?;
    Ok(ours)
}

/// Answers the client at the other end of `connection`, which was accepted just now, and returns
/// when it has the answer. Calls `status` once the client has asked for it.
///
/// # Errors
/// The client has gone, or takes too long.
pub fn answer(
    connection: BorrowedFd<'_>,
    kind: Kind,
    status: impl FnOnce() -> Status,
) -> io::Result<()> {
    let deadline = Instant::now() + CLIENT_TIMEOUT;
    match kind {
        Kind::Control => {
            let mut text = control_reply(connection, status, deadline)?;
            text.push('\n');
            deadline_io::write_all(connection, text.as_bytes(), deadline)
        }
        Kind::Metrics => answer_metrics(connection, deadline, status),
    }
}

/// Answers a client of the metrics. Calls `status` once the client has asked for it.
///
/// # Errors
/// The client has gone, or takes longer than `deadline`.
pub fn answer_metrics(
    connection: BorrowedFd<'_>,
    deadline: Instant,
    status: impl FnOnce() -> Status,
) -> io::Result<()> {
    http::answer_get(
        connection,
        "/metrics",
        metrics::MEDIA_TYPE,
        deadline,
        || {
            let mut text = String::new();
            metrics::encode(&mut text, status()).map_err(io::Error::other)?;
            Ok(text)
        },
    )
}

/// The first line that a client of the control socket sends, without its end, or up to `limit`
/// bytes of it.
///
/// # Errors
/// The client has gone, or takes longer than `deadline`.
pub fn request_line(
    connection: BorrowedFd<'_>,
    limit: usize,
    deadline: Instant,
) -> io::Result<Vec<u8>> {
    let is_end = |byte: &u8| *byte == b'\n';
    let mut request = deadline_io::read_until(connection, limit, deadline, |bytes| {
        bytes.iter().any(is_end)
    })?;
    let end = request.iter().position(is_end);
    request.truncate(end.unwrap_or(request.len()));
    Ok(request)
}

fn control_reply(
    connection: BorrowedFd<'_>,
    status: impl FnOnce() -> Status,
    deadline: Instant,
) -> io::Result<String> {
    let line = request_line(connection, MAX_REQUEST, deadline)?;
    let text = match line == REQUEST.as_bytes() {
        true => serde_json::to_string(&status()),
        false => serde_json::to_string(&serde_json::json!({
            "error": format!("this daemon answers the line {REQUEST:?} alone"),
        })),
    };
    text.map_err(io::Error::other)
}
