//! The thread that takes changes off the host's queue and answers the READs that wait for them.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use gangplank_fuse::{InHeader, Opcode, ReadIn};
use gangplank_service::rate_limited;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::events::{Answer, Events};
use super::file_system::FileSystem;
use super::reply::{ReplyHeader, put_bytes};
use super::{Answer as Counted, Session};
use crate::trace::Tracer;

/// How long changes are collected before they are told: most come in groups, and equal ones are
/// told once.
const COLLECTING: Duration = Duration::from_millis(5);

/// Starts the thread. It ends when nobody reads changes any more.
///
/// # Errors
/// No thread can be started.
pub(super) fn start<F: FileSystem + 'static>(
    session: &Arc<Session<F>>,
    events: &Arc<Events>,
    tracer: Option<Arc<Tracer>>,
) -> io::Result<()> {
    let (session, events) = (Arc::clone(session), Arc::clone(events));
    let run = move || {
        while let Some(pause) = events.pause() {
            wait(&session, &events, pause);
            session
                .file_system
                .take_changes(&mut |change| events.tell(change));
            answer(&session, events.answers(), tracer.as_deref());
        }
    };
    thread::Builder::new()
        .name("events".into())
        .spawn(run)
        .map(drop)
}

/// Waits until there are changes, a READ has to be answered, or `pause` is over.
fn wait<F: FileSystem>(session: &Session<F>, events: &Events, pause: Duration) {
    let mut fds = vec![PollFd::from_borrowed_fd(events.wake_fd(), PollFlags::IN)];
    let changes = session.file_system.changes_fd();
    fds.extend(changes.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    let timeout = Timespec::try_from(pause).ok();
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => {
            rate_limited!(error, "cannot wait for changes of the share: {error}");
            thread::sleep(pause);
        }
    }
    if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) {
        thread::sleep(COLLECTING);
    }
}

/// Writes replies and returns their chains.
pub(super) fn answer<F: FileSystem>(
    session: &Session<F>,
    answers: Vec<Answer>,
    tracer: Option<&Tracer>,
) {
    for (mut waiting, lines) in answers {
        let unique = waiting.unique();
        let (_, mut reply, scratch) = waiting.request.parts();
        if let Some(tracer) = tracer {
            tracer.begin(&mut scratch.trace);
        }
        let is_error = lines.is_err();
        let len = ReplyHeader::reserve(&mut reply, Opcode::Read).map_or(0, |header| {
            let written = lines.and_then(|lines| put_bytes(&mut reply, &lines));
            header.fill(unique, written)
        });
        let request = size_of::<InHeader>() + size_of::<ReadIn>();
        let answer = Counted { len, is_error };
        session.count(Some(Opcode::Read), request as u64, answer);
        let mut request = waiting.request;
        if let Some(tracer) = tracer {
            request.end_trace(tracer, len);
        }
        request.set_reply_len(len);
        request.finish();
    }
}
