//! READDIR, READDIRPLUS: the stream of directory entries that answers them.
//!
//! ```text
//! READDIR       [ino off namelen type | name | 0..7 zero bytes] ...
//! READDIRPLUS   [EntryOut (128) | ino off namelen type | name | 0..7 zero bytes] ...
//! ```
//!
//! Each record is padded to 8 bytes. `off` is where reading goes on *after* the entry. An empty
//! stream ends the directory.

use zerocopy::{FromBytes, IntoBytes};

use crate::cursor::{Cursor, record_align};
use crate::{DecodeError, EntryOut};

wire_struct! {
    /// One entry; `namelen` bytes of name follow, without NUL.
    Dirent = "fuse_dirent", 24 bytes {
        /// Inode number.
        ino: u64 => 0,
        /// Offset of the next entry, opaque to the client.
        off: u64 => 8,
        /// Length of the name, in bytes.
        namelen: u32 => 16,
        /// `DT_*` of readdir(3).
        r#type: u32 => 20,
    }
}

wire_struct! {
    /// One entry of READDIRPLUS; the name follows.
    Direntplus = "fuse_direntplus", 152 bytes {
        /// The node, one reference to it given to the client; `nodeid` zero if the entry was not
        /// looked up.
        entry_out: EntryOut => 0,
        /// The entry.
        dirent: Dirent => 128,
    }
}

/// The next entry does not fit in the reply any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the directory entry does not fit in what is left of the reply")]
pub struct Full;

/// Writes directory entries into a reply.
///
/// READDIR and READDIRPLUS streams must not be mixed. Padding is written, so no old byte of the
/// buffer reaches the client.
#[derive(Debug)]
pub struct DirentWriter<'a> {
    buffer: &'a mut [u8],
    written: usize,
}

impl<'a> DirentWriter<'a> {
    /// Writes from the start of `buffer`, which should be cut to the request's `size`.
    #[must_use]
    pub fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, written: 0 }
    }

    /// Bytes written so far: the length of the reply's payload.
    #[must_use]
    pub const fn written(&self) -> usize {
        self.written
    }

    /// Whether [`DirentWriter::push_plus`] would accept a name of `name_len` bytes. Ask before the
    /// entry is looked up: a lookup whose entry is then not sent would have to be forgotten again.
    #[must_use]
    pub fn fits_plus(&self, name_len: usize) -> bool {
        self.has_room(size_of::<Direntplus>().saturating_add(name_len))
    }

    /// Adds an entry to a READDIR stream: inode number, where reading goes on after it, `DT_*`,
    /// name.
    ///
    /// # Errors
    /// [`Full`] if it does not fit; nothing was written then.
    pub fn push(&mut self, ino: u64, off: u64, d_type: u32, name: &[u8]) -> Result<(), Full> {
        let dirent = dirent(ino, off, d_type, name)?;
        self.record(dirent.as_bytes(), name)
    }

    /// Adds an entry to a READDIRPLUS stream: as [`DirentWriter::push`], after the result of its
    /// lookup.
    ///
    /// # Errors
    /// [`Full`] if it does not fit; nothing was written then.
    pub fn push_plus(
        &mut self,
        entry_out: &EntryOut,
        ino: u64,
        off: u64,
        d_type: u32,
        name: &[u8],
    ) -> Result<(), Full> {
        let dirent = dirent(ino, off, d_type, name)?;
        let entry = Direntplus {
            entry_out: *entry_out,
            dirent,
        };
        self.record(entry.as_bytes(), name)
    }

    fn has_room(&self, length: usize) -> bool {
        record_align(length) <= self.buffer.len().saturating_sub(self.written)
    }

    fn record(&mut self, head: &[u8], name: &[u8]) -> Result<(), Full> {
        let length = head.len().saturating_add(name.len());
        if !self.has_room(length) {
            return Err(Full);
        }
        let end = self.written.saturating_add(record_align(length));
        let record = self.buffer.get_mut(self.written..end).ok_or(Full)?;
        let (to_head, rest) = record.split_at_mut_checked(head.len()).ok_or(Full)?;
        let (to_name, padding) = rest.split_at_mut_checked(name.len()).ok_or(Full)?;
        to_head.copy_from_slice(head);
        to_name.copy_from_slice(name);
        padding.fill(0);
        self.written = end;
        Ok(())
    }
}

fn dirent(ino: u64, off: u64, d_type: u32, name: &[u8]) -> Result<Dirent, Full> {
    // A name beyond 32 bits fits into no reply.
    let namelen = u32::try_from(name.len()).map_err(|_| Full)?;
    Ok(Dirent {
        ino,
        off,
        namelen,
        r#type: d_type,
    })
}

/// One entry read from a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirentRef<'a> {
    /// Inode number, offset, type.
    pub dirent: Dirent,
    /// The name, without NUL; any bytes.
    pub name: &'a [u8],
}

/// One entry read from a READDIRPLUS stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirentplusRef<'a> {
    /// The node, one reference to it now held, unless `nodeid` is zero.
    pub entry_out: EntryOut,
    /// Inode number, offset, type.
    pub dirent: Dirent,
    /// The name, without NUL; any bytes.
    pub name: &'a [u8],
}

/// Reads a READDIR stream. After an error there are no more entries.
#[derive(Debug, Clone)]
pub struct Dirents<'a>(Cursor<'a>);

impl<'a> Dirents<'a> {
    /// Reads the payload of a reply.
    #[must_use]
    pub fn new(payload: &'a [u8]) -> Self {
        Self(Cursor::new("READDIR reply", payload))
    }
}

impl<'a> Iterator for Dirents<'a> {
    type Item = Result<DirentRef<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = next_record(&mut self.0, |dirent: &Dirent| dirent.namelen)?;
        Some(record.map(|(dirent, name)| DirentRef { dirent, name }))
    }
}

/// Reads a READDIRPLUS stream. After an error there are no more entries.
#[derive(Debug, Clone)]
pub struct Direntplusses<'a>(Cursor<'a>);

impl<'a> Direntplusses<'a> {
    /// Reads the payload of a reply.
    #[must_use]
    pub fn new(payload: &'a [u8]) -> Self {
        Self(Cursor::new("READDIRPLUS reply", payload))
    }
}

impl<'a> Iterator for Direntplusses<'a> {
    type Item = Result<DirentplusRef<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = next_record(&mut self.0, |head: &Direntplus| head.dirent.namelen)?;
        Some(
            record.map(|(Direntplus { entry_out, dirent }, name)| DirentplusRef {
                entry_out,
                dirent,
                name,
            }),
        )
    }
}

/// The next record of a stream: its fixed part and its name. `None` at the end, and after an error,
/// since what follows a broken record has no known beginning.
fn next_record<'a, T: FromBytes>(
    cursor: &mut Cursor<'a>,
    namelen: impl Fn(&T) -> u32,
) -> Option<Result<(T, &'a [u8]), DecodeError>> {
    if cursor.left() == 0 {
        return None;
    }
    let record = record(cursor, namelen);
    if record.is_err() {
        cursor.rest();
    }
    Some(record)
}

fn record<'a, T: FromBytes>(
    cursor: &mut Cursor<'a>,
    namelen: impl Fn(&T) -> u32,
) -> Result<(T, &'a [u8]), DecodeError> {
    let head: T = cursor.fixed()?;
    let namelen = usize::try_from(namelen(&head)).unwrap_or(usize::MAX);
    let name = cursor.bytes(namelen)?;
    cursor.skip_padding(size_of::<T>().saturating_add(namelen));
    Ok((head, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_zeroed_over_what_the_buffer_held() {
        let mut buffer = [0xaa; 64];
        let mut writer = DirentWriter::new(&mut buffer);
        writer.push(1, 2, 4, b"abc").unwrap();
        assert_eq!(writer.written(), 32);
        assert_eq!(buffer[24..32], *b"abc\0\0\0\0\0");
        assert_eq!(buffer[32..], [0xaa; 32]);
    }

    #[test]
    fn a_name_of_eight_bytes_needs_no_padding() {
        let mut buffer = [0; 32];
        let mut writer = DirentWriter::new(&mut buffer);
        assert_eq!(writer.push(1, 2, 4, b"12345678"), Ok(()));
        assert_eq!(writer.written(), 32);
    }

    #[test]
    fn full_leaves_the_stream_as_it_was() {
        let mut buffer = [0xaa; 63];
        let mut writer = DirentWriter::new(&mut buffer);
        writer.push(1, 2, 4, b"one").unwrap();
        assert_eq!(writer.push(2, 3, 8, b"two"), Err(Full));
        assert_eq!(writer.written(), 32);
        assert_eq!(buffer[32..], [0xaa; 31]);
    }

    #[test]
    fn fits_plus_agrees_with_push_plus() {
        for room in 0..400 {
            for name in [&b"a"[..], b"12345678", b"123456789"] {
                let mut buffer = vec![0; room];
                let mut writer = DirentWriter::new(&mut buffer);
                let fits = writer.fits_plus(name.len());
                let pushed = writer.push_plus(&EntryOut::default(), 1, 1, 1, name);
                assert_eq!(fits, pushed.is_ok(), "{room} bytes, name of {}", name.len());
            }
        }
    }

    #[test]
    fn readers_give_back_what_writers_put_in() {
        let mut buffer = [0; 4096];
        let mut writer = DirentWriter::new(&mut buffer);
        let node = EntryOut {
            nodeid: 7,
            generation: 1,
            ..EntryOut::default()
        };
        writer.push_plus(&node, 70, 1, 8, b"seven").unwrap();
        writer
            .push_plus(&EntryOut::default(), 80, 2, 4, b"..")
            .unwrap();
        let written = writer.written();
        let entries: Vec<_> = Direntplusses::new(&buffer[..written])
            .map(Result::unwrap)
            .collect();
        assert_eq!(entries.len(), 2);
        assert_eq!(
            (entries[0].entry_out, entries[0].name),
            (node, &b"seven"[..])
        );
        assert_eq!(
            entries[0].dirent,
            Dirent {
                ino: 70,
                off: 1,
                namelen: 5,
                r#type: 8
            }
        );
        assert_eq!(
            (entries[1].entry_out.nodeid, entries[1].name),
            (0, &b".."[..])
        );
    }

    #[test]
    fn a_name_longer_than_the_stream_is_an_error_and_the_end() {
        let dirent = Dirent {
            ino: 1,
            off: 1,
            namelen: u32::MAX,
            r#type: 4,
        };
        let mut entries = Dirents::new(dirent.as_bytes());
        assert!(matches!(
            entries.next(),
            Some(Err(DecodeError::TooShort { .. }))
        ));
        assert_eq!(entries.next(), None);
    }
}
