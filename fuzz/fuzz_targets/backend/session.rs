//! A whole session: the input is a sequence of requests to a file system on a temporary directory.
//!
//! One byte selects each request, and the following ones fill its arguments. Most nodes and handles
//! come from earlier replies, so that sequences reach deep states; others are random, and some
//! requests are raw bytes. After every request, the reply must be whole and within its room. After
//! every sequence, the session must hold nothing, and nothing outside the share may have changed.
#![no_main]

#[allow(dead_code, reason = "another target opens shares of its own")]
mod fixture;
mod input;
mod requests;
mod serving;

use gangplank_backend::session::Session;
use libfuzzer_sys::fuzz_target;

use fixture::Fixture;
use input::Input;
use requests::Guest;
use serving::serve;

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
