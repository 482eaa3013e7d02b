//! Fuzzes a whole session: the input is a sequence of requests to a guest's file system over a
//! temporary directory.
//!
//! One byte selects each request, and more bytes fill its arguments. Most nodes and handles come
//! from earlier replies, so that sequences have an effect; some are made up, and some requests are
//! raw bytes. Each reply must be complete and fit its room. After each sequence no descriptor may
//! be held and nothing outside the share may have changed.
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

/// Number of bytes behind the reply's room that must stay unchanged.
const BEHIND: usize = 64;

/// Value of these bytes.
const UNTOUCHED: u8 = 0xa5;

/// Limit of requests per sequence.
const MAX_REQUESTS: usize = 64;

fuzz_target!(|bytes: &[u8]| {
    // A serving thread gets its own working directory and umask; libFuzzer's thread must keep its
    // own.
    std::thread::scope(|scope| {
        scope
            .spawn(|| sequence(bytes))
            .join()
            .expect("a panic ends the process")
    });
});

/// Runs one session.
fn sequence(bytes: &[u8]) {
    let fixture = Fixture::get();
    let mut input = Input::new(bytes);
    let session = Session::new(fixture.file_system());
    let mut guest = Guest::default();
    // A few sequences start without INIT.
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

/// Serves a request and checks its reply. Every other request may not block and is repeated if it
/// is declined.
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

/// Serves a request and returns whether it was served.
fn serve_as(
    session: &Session<gangplank_backend::passthrough::PassthroughFs>,
    request: &[u8],
    room: usize,
    guest: &mut Guest,
    may_block: bool,
) -> bool {
    let mut readable = request.to_vec();
    let mut writable = vec![UNTOUCHED; room + BEHIND];
    let mut scratch = Scratch::default();
    let (mut sent, mut asked) = (Segments::default(), Segments::default());
    // Split in two segments, unlike a guest's driver.
    let (head, tail) = readable.split_at_mut(request.len() / 3);
    assert!(sent.push_slice(head) && sent.push_slice(tail));
    assert!(asked.push_slice(&mut writable[..room]));
    // SAFETY: both buffers outlive the reader and the writer and do not move.
    let (mut reader, mut writer) = unsafe { (sent.reader(), asked.writer()) };
    let written = match session.serve(&mut reader, &mut writer, &mut scratch, may_block) {
        Served::Replied(written) => written,
        Served::Declined => return false,
        Served::Waits(lock) => {
            // The same guest holds the lock, so only the end of the session ends the wait.
            session.end();
            session.wait_for_lock(&lock, &mut writer)
        }
    };
    assert!(
        written <= room,
        "{written} bytes of reply in {room} bytes of room"
    );
    assert!(
        writable[room..].iter().all(|byte| *byte == UNTOUCHED),
        "something was written behind the reply's room"
    );
    guest.reply(request, &writable[..written]);
    true
}
