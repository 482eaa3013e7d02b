//! A guest that arrives: the input is a migration stream, raw or made of a guest with random inodes
//! and handles. Whatever it says, the session holds nothing after its end, nothing outside the
//! share changes, and a guest that has arrived can leave again.
#![no_main]

#[allow(dead_code, reason = "another target opens shares of its own")]
mod fixture;
#[allow(dead_code, reason = "the other target reads numbers as well")]
mod input;

use gangplank_backend::session::Session;
use gangplank_backend::state::migration::{
    GuestState, Handle, Inode, Location, MigratedGuest, ROOT_ID,
};
use libfuzzer_sys::fuzz_target;

use fixture::Fixture;
use input::Input;

/// Names in the share and others.
const NAMES: [&str; 7] = ["d", "f", "l", "missing", "..", "d/f", "d/../../secret"];

fuzz_target!(|bytes: &[u8]| fixture::on_own_thread(|| arrive(bytes)));

fn arrive(bytes: &[u8]) {
    let fixture = Fixture::get();
    let session = Session::new(fixture.file_system());
    let stream = match bytes.split_first() {
        Some((0, raw)) => Some(raw.to_vec()),
        _ => made(&mut Input::new(bytes)),
    };
    if let Some(stream) = stream
        && session.load(&stream).is_ok()
    {
        let saved = session.save().expect("a guest without locks can leave");
        let again = MigratedGuest::decode(&saved).expect("our own stream");
        let before = MigratedGuest::decode(&stream).expect("it was loaded");
        assert!(again.next_inode >= before.next_inode);
        assert_eq!(again.handles.len(), before.handles.len());
        session.load(&saved).expect("what has left can arrive");
    }
    session.end();
    drop(session);
    fixture.check_and_clean();
}

/// The stream of a guest as the input says; `None` if it cannot be one.
fn made(input: &mut Input<'_>) -> Option<Vec<u8>> {
    let mut state = GuestState {
        next_inode: 1 << 40,
        next_handle: 1 << 40,
        ..GuestState::default()
    };
    let mut ids = vec![ROOT_ID];
    let inode = |id, references, location| Inode {
        id,
        references,
        location,
        file_handle: None,
    };
    state.inodes.push(inode(ROOT_ID, 1000, Location::Root));
    while !input.is_empty() && ids.len() < 32 {
        let id = 2 + u64::from(input.byte()) * ((1 + u64::from(input.byte())) << 20);
        let parent = ids[usize::from(input.byte()) % ids.len()];
        let name = NAMES[usize::from(input.byte()) % NAMES.len()];
        let location = match input.byte() % 4 {
            0 => Location::Path(name.to_owned()),
            1 => Location::Invalid,
            _ => Location::Child {
                parent,
                name: name.to_owned(),
            },
        };
        let references = 32 + u64::from(input.byte());
        state.inodes.push(inode(id, references, location));
        state.handles.push(Handle {
            id: id ^ 0xff,
            inode: id,
            flags: i32::from(input.byte()) << (input.byte() % 24),
        });
        ids.push(id);
    }
    MigratedGuest::new(state).ok()?.encode().ok()
}
