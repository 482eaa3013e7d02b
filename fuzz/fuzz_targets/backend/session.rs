//! A whole session: the input is a sequence of requests to a file system on a temporary directory.
//!
//! One byte selects each request, and the following ones fill its arguments. Most nodes and handles
//! come from earlier replies, so that sequences reach deep states; others are random, and some
//! requests are raw bytes. After every request, the reply must be whole and within its room. After
//! every sequence, the session must hold nothing, and nothing outside the share may have changed.
#![no_main]

mod fixture;
mod input;
mod requests;

use gangplank_backend::device::request::Scratch;
use gangplank_backend::session::{IoMode, Served, Session};
use gangplank_backend::sys::buffers::Segments;
use libfuzzer_sys::fuzz_target;

use fixture::Fixture;
use input::Input;
use requests::Guest;

/// Guard bytes behind a reply's room, which the session must not write.
const GUARD_LEN: usize = 64;

/// Value of the guard bytes.
const GUARD_BYTE: u8 = 0xa5;

/// Most requests of one sequence.
const MAX_REQUESTS: usize = 64;

fuzz_target!(|bytes: &[u8]| fixture::on_own_thread(|| sequence(bytes)));

/// Runs a session from its beginning to its end.
fn sequence(bytes: &[u8]) {
    let fixture = Fixture::get();
    let mut input = Input::new(bytes);
    let session = Session::new(fixture.file_system());
    let mut guest = Guest::default();
    // Most sequences begin with INIT; a few do not.
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

/// Serves one request and checks its reply. Every other one is non-blocking first, and is repeated
/// if it would block.
fn serve(
    session: &Session<gangplank_backend::passthrough::PassthroughFs>,
    request: &[u8],
    room: usize,
    guest: &mut Guest,
) {
    let mode = match request.len() % 2 {
        0 => IoMode::Blocking,
        _ => IoMode::NonBlocking,
    };
    if !serve_in(session, request, room, guest, mode) {
        assert!(
            serve_in(session, request, room, guest, IoMode::Blocking),
            "a blocking request would block"
        );
    }
}

/// Serves one request in one mode and checks its reply. Returns false if it would block.
fn serve_in(
    session: &Session<gangplank_backend::passthrough::PassthroughFs>,
    request: &[u8],
    room: usize,
    guest: &mut Guest,
    mode: IoMode,
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
    let written = match session.serve(&mut reader, &mut writer, &mut scratch, mode) {
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
