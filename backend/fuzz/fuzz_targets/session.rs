//! A whole session: the input is a sequence of requests to a guest's file system over a temporary directory.
//!
//! Each request is one byte that says what it is and more that fill its arguments. Nodes and handles are mostly those that
//! earlier replies gave out, so that sequences get somewhere; some are made up, and some requests are raw bytes. After every
//! request the reply must be whole and within its room; after every sequence nothing may be held any more, and nothing
//! outside the share may have changed.
#![no_main]

mod input;
mod requests;
mod fixture;

use gangplank_backend::device::request::Scratch;
use gangplank_backend::session::{Served, Session};
use gangplank_backend::sys::buffers::Segments;
use libfuzzer_sys::fuzz_target;

use input::Input;
use requests::Guest;
use fixture::Fixture;

/// Bytes behind the room for a reply that must stay as they are.
const GUARD_LEN: usize = 64;

/// What those bytes are.
const GUARD_BYTE: u8 = 0xa5;

/// Requests in one sequence, at the most.
const MAX_REQUESTS: usize = 64;

fuzz_target!(|bytes: &[u8]| {
    // A thread that serves gets a working directory and umask of its own, and libFuzzer needs the ones it had.
    std::thread::scope(|scope| {
        scope
            .spawn(|| sequence(bytes))
            .join()
            .expect("a panic ends the process")
    });
});

/// A session from its beginning to its end.
fn sequence(bytes: &[u8]) {
    let fixture = Fixture::get();
    let mut input = Input::new(bytes);
    let session = Session::new(fixture.file_system());
    let mut guest = Guest::default();
    // Most sequences begin as they should; a few do not.
    if input.byte() & 0xf != 0 {
        serve(&session, &guest.init(), 256, &mut guest);
    }
    for _ in 0..MAX_REQUESTS {
        if input.is_empty() {
            break;
        }
        let request = guest.request(&mut input);
        let room = usize::from(input.byte()) * 64;
        serve(&session, &request, room, &mut guest);
    }
    session.end();
    drop(session);
    fixture.check_and_clean();
}

/// Serves one request and checks its reply. Every other one may not wait for a disk, and comes again if that is declined.
fn serve(
    session: &Session<gangplank_backend::passthrough::PassthroughFs>,
    request: &[u8],
    room: usize,
    guest: &mut Guest,
) {
    if !serve_as(session, request, room, guest, request.len() % 2 == 0) {
        assert!(
            serve_as(session, request, room, guest, true),
            "declined without need"
        );
    }
}

/// The same; whether it was served.
fn serve_as(
    session: &Session<gangplank_backend::passthrough::PassthroughFs>,
    request: &[u8],
    room: usize,
    guest: &mut Guest,
    may_block: bool,
) -> bool {
    let mut readable = request.to_vec();
    let mut writable = vec![GUARD_BYTE; room + GUARD_LEN];
    let mut scratch = Scratch::default();
    let (mut sent, mut asked) = (Segments::default(), Segments::default());
    // Cut in two, as no guest's driver would.
    let (head, tail) = readable.split_at_mut(request.len() / 3);
    assert!(sent.push_slice(head) && sent.push_slice(tail));
    assert!(asked.push_slice(&mut writable[..room]));
    // SAFETY: both buffers live and stay where they are until the reader and the writer are gone.
    let (mut reader, mut writer) = unsafe { (sent.reader(), asked.writer()) };
    let written = match session.serve(&mut reader, &mut writer, &mut scratch, may_block) {
        Served::Replied(written) => written,
        Served::WouldBlock => return false,
        Served::WaitsForLock(lock) => {
            // The same guest holds what it waits for: nobody but the end of the session ends this.
            session.end();
            session.wait_for_lock(&lock, &mut writer)
        }
    };
    assert!(
        written <= room,
        "{written} bytes of reply in {room} bytes of room"
    );
    assert!(
        writable[room..].iter().all(|byte| *byte == GUARD_BYTE),
        "something was written behind the reply's room"
    );
    guest.reply(request, &writable[..written]);
    true
}
