//! What the session tells of the request that the calling thread serves.

use std::cell::{Cell, RefCell};

use gangplank_fuse::{Dialect, InHeader};

thread_local! {
    static IS_ON: Cell<bool> = const { Cell::new(false) };
    static CAPTURE: RefCell<Option<Capture>> = const { RefCell::new(None) };
}

/// What was noted of a request.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Capture {
    pub(super) header: InHeader,
    pub(super) dialect: Dialect,
    pub(super) errno: i32,
    /// The first eight bytes of the reply's first two structures.
    pub(super) words: [u64; 2],
    /// Structures so far.
    structures: usize,
}

/// From now on, notes are taken of one request, in addition to those in `capture`.
pub(super) fn begin(capture: Capture) {
    IS_ON.set(true);
    CAPTURE.set(Some(capture));
}

/// Ends what [`begin`] began.
pub(super) fn end() -> Capture {
    IS_ON.set(false);
    CAPTURE.take().unwrap_or_default()
}

fn note(change: impl FnOnce(&mut Capture)) {
    CAPTURE.with_borrow_mut(|capture| {
        if let Some(capture) = capture {
            change(capture);
        }
    });
}

/// The request's header.
pub fn note_header(header: &InHeader) {
    if IS_ON.get() {
        note(|capture| {
            *capture = Capture {
                header: *header,
                ..Capture::default()
            }
        });
    }
}

/// How the session encodes requests.
pub fn note_dialect(dialect: Option<Dialect>) {
    if IS_ON.get() {
        note(|capture| capture.dialect = dialect.unwrap_or_default());
    }
}

/// The error in the reply; 0 for none.
pub fn note_errno(errno: i32) {
    if IS_ON.get() {
        note(|capture| capture.errno = errno);
    }
}

/// A structure of the reply.
pub fn note_reply(structure: &[u8]) {
    if IS_ON.get() {
        note(|capture| {
            if let Some(word) = capture.words.get_mut(capture.structures) {
                let mut bytes = [0; 8];
                for (to, from) in bytes.iter_mut().zip(structure) {
                    *to = *from;
                }
                *word = u64::from_le_bytes(bytes);
            }
            capture.structures += 1;
        });
    }
}
