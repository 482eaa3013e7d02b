//! The log of where inodes are, in two files, which survive this program.
//!
//! ```text
//!   magic        "gangplank-nfs handles 2\n"
//!   generation   u64, big-endian, as all numbers
//!   check        u32, of the bytes before
//!   records:
//!     length of what follows the check   u32
//!     check                              u32, of what follows
//!     inode                              export u32, ino u64, birth u64
//!     places, none if it is forgotten    parent's ino u64 and birth u64, length u16, name
//! ```
//!
//! Of the two files, the one with a valid header and the higher generation counts. The other one is
//! empty, or is being written. It gets its records first and its header when they are on the disk,
//! so an end of this program or of the host at any point leaves one that counts. Records that are
//! added meanwhile go to the one that counts, and behind the others of the new one before it
//! counts. Both files are opened at the start, since the program opens none once it is confined. A
//! record that was cut off ends the log.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use gangplank_service::fnv::checksum;

use super::handle::FileHandle;
use super::place_table::Place;
use crate::state_log::{LogError, failed, foreign, read, sync_directory};
use crate::xdr::Reader;

/// The first bytes of a log: this layout.
const MAGIC: &[u8; 24] = b"gangplank-nfs handles 2\n";

/// Bytes of a header.
const HEADER: usize = MAGIC.len() + 8 + 4;

/// The names of the files.
const NAMES: [&str; 2] = ["handles", "handles.other"];

/// Bytes of an inode in a record.
const INODE: usize = 20;

/// Longest record, in bytes, with two names of 255 bytes and room for longer ones.
const MAX_RECORD: usize = 4096;

/// Bytes that a log may have beside twice those of the places that are remembered.
const SLACK: u64 = 1 << 20;

/// A record: an inode, and where it is.
type Record = (FileHandle, Vec<Place>);

/// The log.
#[derive(Debug)]
pub(super) struct HandleLog {
    files: [Arc<File>; 2],
    /// The file that counts.
    current: usize,
    generation: u64,
    /// Bytes of that file. What is behind them is a record that could not be written.
    end: u64,
    /// Bytes of records, also of those that could not be written.
    appended: u64,
    /// It is not written anew below this number of bytes, since it could not be before.
    not_before: u64,
    /// Where records go beside that file, while the log is written anew.
    added: Added,
}

/// Where a record goes that is added while the log is written anew.
#[derive(Debug, Default)]
enum Added {
    /// It is not being written.
    #[default]
    Nowhere,
    /// Here, until the records before them are written.
    Kept(Vec<u8>),
    /// To the new file, which has this number of bytes.
    Written(u64),
    /// The new file lacks one, so that it must not count.
    Lost,
}

/// A log that is written anew. The old one counts until [`HandleLog::finish`].
#[derive(Debug)]
pub(super) struct Rewrite {
    file: Arc<File>,
    generation: u64,
    end: u64,
}

impl Rewrite {
    /// Adds records.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn write(&mut self, records: &[u8]) -> io::Result<()> {
        if self.end == 0 {
            // Its header, if it has one, is of a generation before the one that counts.
            self.file.set_len(0)?;
            self.end = u64::try_from(HEADER).unwrap_or(0);
        }
        self.file.write_all_at(records, self.end)?;
        self.end += u64::try_from(records.len()).unwrap_or(0);
        Ok(())
    }

    /// Makes it count for the next start. All records are there.
    ///
    /// # Errors
    /// The system's. It may count or not.
    pub(super) fn commit(&self) -> io::Result<()> {
        self.file.sync_data()?;
        self.file.write_all_at(&header(self.generation), 0)?;
        self.file.sync_data()
    }
}

impl HandleLog {
    /// Opens the log in `directory`. Returns its records, oldest first. It takes further ones after
    /// [`HandleLog::begin`] and [`HandleLog::finish`] wrote them to the other file.
    ///
    /// # Errors
    /// [`LogError`].
    pub(super) fn open(directory: &Path) -> Result<(Self, Vec<Record>), LogError> {
        let open = |name: &str| {
            let path = directory.join(name);
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create(true).truncate(false);
            let file = options.open(&path).map_err(failed("open", &path))?;
            let bytes = read(&path)?.unwrap_or_default();
            let header = header_of(&bytes);
            let expected = "file handles";
            let generation = header.map_err(|()| foreign(path, expected, &bytes, MAGIC))?;
            Ok::<_, LogError>((file, generation, bytes))
        };
        let [one, other] = NAMES;
        let (one, other) = (open(one)?, open(other)?);
        sync_directory(directory)?;
        let current = usize::from(other.1 > one.1);
        let (_, generation, bytes) = if current == 0 { &one } else { &other };
        let records = match generation {
            Some(_) => records(bytes.get(HEADER..).unwrap_or_default()),
            None => Vec::new(),
        };
        let log = Self {
            generation: generation.unwrap_or(0),
            files: [Arc::new(one.0), Arc::new(other.0)],
            current,
            end: 0,
            appended: 0,
            not_before: 0,
            added: Added::Nowhere,
        };
        Ok((log, records))
    }

    /// Adds a record.
    ///
    /// # Errors
    /// The system's. The record is lost, and what comes later is not.
    pub(super) fn append(&mut self, record: &[u8]) -> io::Result<()> {
        let len = u64::try_from(record.len()).unwrap_or(0);
        self.appended += len;
        match &mut self.added {
            Added::Nowhere | Added::Lost => {}
            Added::Kept(kept) => kept.extend_from_slice(record),
            Added::Written(end) => match self.files[1 - self.current].write_all_at(record, *end) {
                Ok(()) => *end += len,
                Err(_) => self.added = Added::Lost,
            },
        }
        self.files[self.current].write_all_at(record, self.end)?;
        self.end += len;
        Ok(())
    }

    /// Whether far more was written than `live` bytes, which are still of use, and the log is not
    /// being written anew.
    pub(super) fn is_long(&self, live: u64) -> bool {
        let allowed = live.saturating_mul(2).saturating_add(SLACK);
        matches!(self.added, Added::Nowhere) && self.appended > allowed.max(self.not_before)
    }

    /// Begins to write the log anew; `None` if that has begun already. The caller writes what is
    /// to stay, has the rest added by [`Self::catch_up`], commits it, and ends it by
    /// [`Self::finish`], whatever has failed.
    pub(super) fn begin(&mut self) -> Option<Rewrite> {
        if !matches!(self.added, Added::Nowhere) {
            return None;
        }
        self.added = Added::Kept(Vec::new());
        Some(Rewrite {
            file: Arc::clone(&self.files[1 - self.current]),
            generation: self.generation + 1,
            end: 0,
        })
    }

    /// Adds what was appended since the beginning. From here on records go to both files.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn catch_up(&mut self, rewrite: &mut Rewrite) -> io::Result<()> {
        if let Added::Kept(kept) = &self.added {
            rewrite.write(kept)?;
            self.added = Added::Written(rewrite.end);
        }
        Ok(())
    }

    /// Goes on with the new log if all was `done`, and with the old one otherwise.
    ///
    /// # Errors
    /// Why the new one cannot be used. The old one stays as it is.
    pub(super) fn finish(&mut self, done: io::Result<()>) -> io::Result<()> {
        let next = 1 - self.current;
        let added = std::mem::take(&mut self.added);
        let end = match (done, added) {
            (Ok(()), Added::Written(end)) => Ok(end),
            (Ok(()), _) => Err(io::Error::other("a record is missing")),
            (Err(error), _) => Err(error),
        };
        let end = end.inspect_err(|_| {
            self.not_before = self.appended.saturating_mul(2);
            // Its header was not written, or not for certain.
            let _ = self.files[next].set_len(0);
        })?;
        // It counts no more. If it cannot be emptied now, it is before it is written again.
        let _ = self.files[self.current].set_len(0);
        (self.current, self.generation) = (next, self.generation + 1);
        (self.end, self.appended, self.not_before) = (end, end, 0);
        Ok(())
    }

    /// Writes the log anew with these records alone.
    ///
    /// # Errors
    /// The system's. The log stays as it is.
    #[cfg(test)]
    fn rewrite(&mut self, records: impl Iterator<Item = Vec<u8>>) -> io::Result<()> {
        let mut rewrite = self.begin().expect("nobody else writes it");
        let records = records.collect::<Vec<_>>().concat();
        let written = rewrite
            .write(&records)
            .and_then(|()| self.catch_up(&mut rewrite))
            .and_then(|()| rewrite.commit());
        self.finish(written)
    }
}

fn header(generation: u64) -> Vec<u8> {
    let content = [&MAGIC[..], &generation.to_be_bytes()].concat();
    let check = checksum(&content).to_be_bytes();
    [&content[..], &check].concat()
}

/// The generation of a log; `None` if its header was not written, or not wholly.
///
/// # Errors
/// It is another file.
fn header_of(bytes: &[u8]) -> Result<Option<u64>, ()> {
    let mut begun = bytes.iter().zip(MAGIC);
    if !begun.all(|(byte, magic)| byte == magic || *byte == 0) {
        return Err(());
    }
    let Some((found, _)) = bytes.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let generation = found.get(MAGIC.len()..).and_then(<[u8]>::first_chunk);
    let generation = generation.map(|bytes| u64::from_be_bytes(*bytes));
    Ok(generation.filter(|generation| header(*generation) == found))
}

/// A record of an inode, which is at `places`.
pub(super) fn record<'a>(handle: FileHandle, places: impl Iterator<Item = &'a Place>) -> Vec<u8> {
    let mut content = Vec::with_capacity(64);
    content.extend(handle.export.to_be_bytes());
    content.extend(handle.ino.to_be_bytes());
    content.extend(handle.birth.to_be_bytes());
    for place in places {
        content.extend(place.parent.ino.to_be_bytes());
        content.extend(place.parent.birth.to_be_bytes());
        // Names are far shorter.
        let len = u16::try_from(place.name.len()).unwrap_or(u16::MAX);
        content.extend(len.to_be_bytes());
        content.extend(&*place.name);
    }
    let len = u32::try_from(content.len()).unwrap_or(u32::MAX);
    let check = checksum(&content).to_be_bytes();
    [&len.to_be_bytes()[..], &check, &content].concat()
}

/// Bytes of the record of an inode at these places.
pub(super) fn record_len(places: &[Place]) -> usize {
    let places = places.iter().map(|place| 18 + place.name.len());
    8 + INODE + places.sum::<usize>()
}

/// The records in a log, up to its end or the first damaged one.
fn records(mut bytes: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    while let Some((record, after)) = read_record(bytes) {
        records.push(record);
        bytes = after;
    }
    records
}

fn read_record(bytes: &[u8]) -> Option<(Record, &[u8])> {
    let mut reader = Reader::new(bytes);
    let len = usize::try_from(reader.u32().ok()?).ok()?;
    let check = reader.u32().ok()?;
    let (content, after) = reader.rest().split_at_checked(len)?;
    if !(INODE..=MAX_RECORD).contains(&len) || checksum(content) != check {
        return None;
    }
    let mut reader = Reader::new(content);
    let handle = FileHandle {
        export: reader.u32().ok()?,
        ino: reader.u64().ok()?,
        birth: reader.u64().ok()?,
    };
    let mut places = Vec::new();
    while !reader.rest().is_empty() {
        let parent = FileHandle {
            export: handle.export,
            ino: reader.u64().ok()?,
            birth: reader.u64().ok()?,
        };
        let (len, rest) = reader.rest().split_first_chunk()?;
        let (name, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        let name = name.into();
        places.push(Place { parent, name });
        reader = Reader::new(rest);
    }
    Some(((handle, places), after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(ino: u64) -> FileHandle {
        FileHandle {
            export: 1,
            ino,
            birth: ino * 7,
        }
    }

    fn all() -> Vec<Record> {
        let place = |ino: u64, name: &[u8]| Place {
            parent: inode(ino),
            name: name.into(),
        };
        vec![
            (inode(2), vec![place(1, b"directory")]),
            (inode(3), vec![place(2, b"\xff no UTF-8"), place(1, b"")]),
            (inode(4), vec![]),
        ]
    }

    fn bytes(records: &[Record]) -> impl Iterator<Item = Vec<u8>> {
        let records = records.iter();
        records.map(|(handle, places)| record(*handle, places.iter()))
    }

    /// Writing a log anew, ended at any point, leaves all records, in the old or in the new file.
    #[test]
    fn a_rewrite_loses_nothing_wherever_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, found) = HandleLog::open(directory.path()).unwrap();
        assert!(found.is_empty());
        log.rewrite(bytes(&all())).unwrap();
        let path = |number: usize| directory.path().join(NAMES[number]);
        let old = (log.current, std::fs::read(path(log.current)).unwrap());
        log.rewrite(bytes(&all())).unwrap();
        let new = (log.current, std::fs::read(path(log.current)).unwrap());
        assert_eq!(std::fs::read(path(old.0)).unwrap(), b"");
        drop(log);
        let check = |old_bytes: &[u8], new_bytes: &[u8]| {
            std::fs::write(path(old.0), old_bytes).unwrap();
            std::fs::write(path(new.0), new_bytes).unwrap();
            let (_, found) = HandleLog::open(directory.path()).unwrap();
            assert_eq!(found, all(), "{} {}", old_bytes.len(), new_bytes.len());
        };
        let without_header = [&[0; HEADER], &new.1[HEADER..]].concat();
        for len in 0..without_header.len() {
            check(&old.1, &without_header[..len]);
        }
        for len in 0..=HEADER {
            let header = [&new.1[..len], &without_header[len..]].concat();
            check(&old.1, &header);
        }
        for len in 0..old.1.len() {
            check(&old.1[..len], &new.1);
        }
    }

    /// Records that are added while the log is written anew are there afterwards, wherever it ends,
    /// and count more than the older ones.
    #[test]
    fn what_is_added_during_a_rewrite_is_in_the_log_that_counts() {
        let all = all();
        let [first, second, third] = &all[..] else {
            panic!("three records");
        };
        let bytes = |record: &Record| super::record(record.0, record.1.iter());
        for steps in 0..7 {
            let directory = tempfile::tempdir().unwrap();
            let (mut log, _) = HandleLog::open(directory.path()).unwrap();
            log.rewrite([bytes(first)].into_iter()).unwrap();
            let mut rewrite = log.begin().unwrap();
            assert!(log.begin().is_none(), "one at a time");
            for step in 0..steps {
                match step {
                    0 => log.append(&bytes(second)).unwrap(),
                    1 => rewrite.write(&bytes(first)).unwrap(),
                    2 => log.catch_up(&mut rewrite).unwrap(),
                    3 => log.append(&bytes(third)).unwrap(),
                    4 => rewrite.commit().unwrap(),
                    _ => log.finish(Ok(())).unwrap(),
                }
            }
            if steps == 6 {
                log.append(&bytes(second)).unwrap();
            }
            drop(log);
            let (_, found) = HandleLog::open(directory.path()).unwrap();
            let expected = match steps {
                0 => vec![first],
                1..4 => vec![first, second],
                4..6 => vec![first, second, third],
                _ => vec![first, second, third, second],
            };
            assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{steps}");
        }
    }

    #[test]
    fn a_log_that_is_cut_off_is_read_up_to_there() {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, _) = HandleLog::open(directory.path()).unwrap();
        log.rewrite(std::iter::empty()).unwrap();
        let mut ends = vec![log.end];
        for (record, (_, places)) in bytes(&all()).zip(all()) {
            assert_eq!(record.len(), record_len(&places));
            log.append(&record).unwrap();
            ends.push(log.end);
        }
        let path = directory.path().join(NAMES[log.current]);
        let whole = std::fs::read(&path).unwrap();
        for len in HEADER..=whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let (_, found) = HandleLog::open(directory.path()).unwrap();
            let ends = ends.iter().skip(1);
            let complete = ends.filter(|end| **end <= u64::try_from(len).unwrap());
            assert_eq!(found, all()[..complete.count()], "{len}");
        }
    }

    #[test]
    fn another_file_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAMES[1]);
        std::fs::write(&path, "something else").unwrap();
        let foreign = HandleLog::open(directory.path());
        assert!(matches!(foreign, Err(LogError::Foreign { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"something else");
        std::fs::write(&path, "gangplank-nfs handles 1\n\0\0\0\0").unwrap();
        let older = HandleLog::open(directory.path());
        assert!(matches!(older, Err(LogError::Layout { found: 1, .. })));
    }
}
