//! The bytes of a guest's state, to be changed.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use crate::input::Input;

/// Bytes of a word.
const WORD: u64 = 8;

/// A copy of what a worker has left.
pub struct LeftState {
    file: File,
    /// Where the words are that are not zero. All others are in pages that no worker has used, or
    /// beside these.
    used: Vec<u64>,
}

impl LeftState {
    /// The state in this file.
    pub fn of(file: BorrowedFd<'_>) -> Self {
        let from = File::from(file.try_clone_to_owned().expect("a descriptor"));
        let len = from.metadata().expect("its length").len();
        // SAFETY: the name ends with NUL.
        let copy = unsafe { libc::memfd_create(c"state".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(copy >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the descriptor is new, and nothing else owns it.
        let copy = File::from(unsafe { OwnedFd::from_raw_fd(copy) });
        copy.set_len(len).expect("a file of this length");
        let mut used = Vec::new();
        let (mut start, mut bytes) = (0, Vec::new());
        while let Some(first) = seek(&from, start, libc::SEEK_DATA) {
            start = seek(&from, first, libc::SEEK_HOLE).unwrap_or(len);
            bytes.resize(usize::try_from(start - first).expect("it fits memory"), 0);
            from.read_exact_at(&mut bytes, first).expect("read");
            copy.write_all_at(&bytes, first).expect("written");
            // By words, since each comparison is traced.
            let (words, _) = bytes.as_chunks::<{ WORD as usize }>();
            let words = words.iter().zip(0..);
            let words = words.filter(|(word, _)| u64::from_ne_bytes(**word) != 0);
            used.extend(words.map(|(_, index)| first + index * WORD));
        }
        Self { file: copy, used }
    }

    /// Changes a word as the input says.
    pub fn change(&mut self, input: &mut Input<'_>) {
        let index = usize::from(input.u16()) % self.used.len();
        let beside = match input.byte() {
            0..128 => 0,
            beside => u64::from(beside % 16) * WORD,
        };
        let at = self.used[index] + beside;
        let before = self.word(at);
        let after = match input.byte() % 8 {
            0 => before ^ 1 << (input.byte() % 64),
            1 => 0,
            2 => u64::MAX,
            3 => input.u64(),
            4 => self.word(self.used[usize::from(input.u16()) % self.used.len()]),
            5 => before.wrapping_add(u64::from(input.byte()).wrapping_sub(128)),
            6 => before.wrapping_add(u64::from(input.byte()) << 32),
            _ => u64::from(input.byte()),
        };
        // The last page may end before.
        let _ = self.file.write_all_at(&after.to_ne_bytes(), at);
    }

    /// The file.
    pub fn into_file(self) -> OwnedFd {
        self.file.into()
    }

    fn word(&self, at: u64) -> u64 {
        let mut word = [0; WORD as usize];
        let _ = self.file.read_exact_at(&mut word, at);
        u64::from_ne_bytes(word)
    }
}

/// The first byte of data, or of a hole, from an offset on.
fn seek(file: &File, from: u64, whence: i32) -> Option<u64> {
    let from = libc::off_t::try_from(from).ok()?;
    // SAFETY: the call takes no pointers.
    let found = unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
    u64::try_from(found).ok()
}
