//! Requests that a session serves, and what every reply has to be.

use gangplank_backend::device::request::Scratch;
use gangplank_backend::passthrough::PassthroughFs;
use gangplank_backend::session::{IoMode, Served, Session};
use gangplank_backend::sys::buffers::{Reader, Segments, Writer};

use crate::requests::Guest;

/// Guard bytes behind a reply's room, which the session must not write.
const GUARD_LEN: usize = 64;

/// Value of the guard bytes.
const GUARD_BYTE: u8 = 0xa5;

/// Serves one request and checks its reply. Every other one is non-blocking first, and is repeated
/// if it would block.
pub fn serve(session: &Session<PassthroughFs>, request: &[u8], room: usize, guest: &mut Guest) {
    let mode = match request.len() % 2 {
        0 => IoMode::Blocking,
        _ => IoMode::NonBlocking,
    };
    let serve_in = |mode, guest: &mut Guest| {
        serve_by(session, request, room, guest, |reader, writer, scratch| {
            session.serve(reader, writer, scratch, mode)
        })
    };
    if !serve_in(mode, guest) {
        assert!(
            serve_in(IoMode::Blocking, guest),
            "a blocking request would block"
        );
    }
}

/// Has `by` serve one request, and checks its reply. Returns false if it would block.
pub fn serve_by(
    session: &Session<PassthroughFs>,
    request: &[u8],
    room: usize,
    guest: &mut Guest,
    by: impl FnOnce(&mut Reader<'_>, &mut Writer<'_>, &mut Scratch) -> Served,
) -> bool {
    let mut readable = request.to_vec();
    let mut writable = vec![GUARD_BYTE; room + GUARD_LEN];
    let mut scratch = Scratch::default();
    let (mut sent, mut asked) = (Segments::default(), Segments::default());
    // In two segments at an odd place, unlike a driver's.
    let (head, tail) = readable.split_at_mut(request.len() / 3);
    assert!(sent.push_slice(head) && sent.push_slice(tail));
    assert!(asked.push_slice(&mut writable[..room]));
    // SAFETY: both buffers outlive the reader and the writer, and are not reallocated meanwhile.
    let (mut reader, mut writer) = unsafe { (sent.reader(), asked.writer()) };
    let written = match by(&mut reader, &mut writer, &mut scratch) {
        Served::Replied(written) => written,
        Served::WouldBlock => return false,
        Served::WaitsForLock(lock) => {
            // The guest itself holds the lock, so only the end of the session ends the wait.
            session.end();
            session.wait_for_lock(&lock, &mut writer)
        }
        // The session of a share without a log of changes has no file that waits.
        Served::WaitsForEvents(_) => panic!("a request waits for changes that nobody tells"),
    };
    assert!(
        written <= room,
        "{written} bytes of reply in {room} bytes of room"
    );
    assert!(
        writable[room..].iter().all(|byte| *byte == GUARD_BYTE),
        "the session wrote behind the reply's room"
    );
    guest.reply(request, &writable[..written]);
    true
}
