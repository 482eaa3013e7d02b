//! The guest that a process or a thread serves, and that its messages name.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use log::{Log, Metadata, Record};

/// What names of threads begin with that serve one guest of several.
const GUEST_THREAD: &str = "guest_";

/// The guest that this process serves; 0 for none.
static GUEST: AtomicU64 = AtomicU64::new(0);

/// From now on, this process serves the guest of this number alone, and what it logs is about that.
/// Messages that do not name it begin with it.
pub fn set_guest(number: u64) {
    GUEST.store(number, Ordering::Relaxed);
}

/// The guest that the calling thread serves.
pub(super) fn guest() -> Option<u64> {
    match GUEST.load(Ordering::Relaxed) {
        0 => thread::current()
            .name()?
            .strip_prefix(GUEST_THREAD)?
            .parse()
            .ok(),
        number => Some(number),
    }
}

/// A log whose messages name the guest of the process or thread that logs them.
pub(super) struct NamesGuest<L>(pub(super) L);

impl<L: Log> Log for NamesGuest<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let guest = guest().filter(|_| self.0.enabled(record.metadata()));
        let Some(number) = guest else {
            return self.0.log(record);
        };
        let text = record.args().to_string();
        if names(&text, number) {
            return self.0.log(record);
        }
        self.0.log(
            &Record::builder()
                .metadata(record.metadata().clone())
                .args(format_args!("guest {number}: {text}"))
                .module_path(record.module_path())
                .file(record.file())
                .line(record.line())
                .build(),
        );
    }

    fn flush(&self) {
        self.0.flush();
    }
}

/// Whether a message names the guest already.
fn names(text: &str, number: u64) -> bool {
    let name = format!("guest {number}");
    text.match_indices(&name).any(|(at, _)| {
        let behind = text.get(at + name.len()..).unwrap_or_default();
        !behind.starts_with(|next: char| next.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_known_by_its_whole_number() {
        for (text, is_named) in [
            ("guest 3 has connected", true),
            ("the worker of guest 3", true),
            ("guest 31 knows guest 3: both", true),
            ("guest 31 has connected", false),
            ("a guest sent 3 bytes", false),
            ("", false),
        ] {
            assert_eq!(names(text, 3), is_named, "{text:?}");
        }
    }
}
