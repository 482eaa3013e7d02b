//! Listings of directories with cookies of our own.
//!
//! A cookie is a hash of the entry's name, and entries are listed by their cookies. So a client
//! continues after any entry, in whatever connection, after restarts, on any file system of the
//! host, and while entries come and go. Hard links have different cookies, and nothing has to be
//! remembered for a cookie. A daemon's own offsets would not do: on some file systems they are
//! positions in a list that ends with the open directory.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gangplank_fuse::{Attr, OpenIn, ReadIn, ReleaseIn};
use gangplank_service::fnv::fnv_1a;
use nfs3_types::nfs3::nfsstat3;
use parking_lot::Mutex;
use rustix::fs::OFlags;

use super::connection::Node;
use super::error::Result;
use super::handle::FileHandle;

/// The cookie of the entry ".".
const DOT: u64 = 1;

/// The cookie of the entry "..".
const DOT_DOT: u64 = 2;

/// The least cookie of a name.
const FIRST: u64 = 3;

/// The largest cookie of a name: clients treat cookies as signed.
const LAST: u64 = (1 << 62) - 1;

/// Bytes of one READDIR of the daemon.
const READ_SIZE: u32 = 64 << 10;

/// Listings that are kept for the clients that read on.
const MAX_LISTINGS: usize = 32;

/// Entries of all listings that are kept.
const MAX_KEPT_ENTRIES: usize = 1 << 20;

/// Most entries of a directory that is listed.
const MAX_ENTRIES: usize = 8 << 20;

/// How long a listing is kept.
const KEEP_TIME: Duration = Duration::from_secs(10);

/// The time of a change, from attributes.
type Change = (u64, u32, u64, u32);

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where a client continues after it.
    pub cookie: u64,
    /// Inode number.
    pub ino: u64,
    /// The name.
    pub name: Vec<u8>,
}

/// A directory's entries, by cookie.
pub type Listing = Arc<[Entry]>;

/// The listings of clients that read on.
#[derive(Debug, Default)]
pub struct Listings(Mutex<HashMap<FileHandle, Kept>>);

#[derive(Debug)]
struct Kept {
    listing: Listing,
    change: Change,
    made: Instant,
}

const fn change(attr: &Attr) -> Change {
    (attr.mtime, attr.mtimensec, attr.ctime, attr.ctimensec)
}

impl Listings {
    /// The entries of a directory. A client that begins (`cookie` 0) gets them as they are now. One
    /// that reads on gets those that it began with, if the directory has not changed.
    ///
    /// # Errors
    /// The daemon's.
    pub fn entries(&self, node: &Node, attr: &Attr, cookie: u64) -> Result<Listing> {
        if cookie != 0 {
            let kept = self.0.lock();
            let found = kept
                .get(&node.handle)
                .filter(|kept| kept.change == change(attr) && kept.made.elapsed() < KEEP_TIME);
            if let Some(kept) = found {
                return Ok(Arc::clone(&kept.listing));
            }
        }
        let entries = read(node)?;
        let listing: Listing = sorted(entries).into();
        self.keep(node.handle, change(attr), &listing);
        Ok(listing)
    }

    fn keep(&self, handle: FileHandle, change: Change, listing: &Listing) {
        if listing.len() > MAX_KEPT_ENTRIES {
            return;
        }
        let mut kept = self.0.lock();
        kept.retain(|_, kept| kept.made.elapsed() < KEEP_TIME);
        let entries = |kept: &HashMap<_, Kept>| -> usize {
            kept.values().map(|kept| kept.listing.len()).sum()
        };
        while kept.len() >= MAX_LISTINGS || entries(&kept) + listing.len() > MAX_KEPT_ENTRIES {
            let oldest = kept.iter().min_by_key(|(_, kept)| kept.made);
            let Some(oldest) = oldest.map(|(handle, _)| *handle) else {
                break;
            };
            kept.remove(&oldest);
        }
        kept.insert(
            handle,
            Kept {
                listing: Arc::clone(listing),
                change,
                made: Instant::now(),
            },
        );
    }
}

/// The entries after `cookie`.
#[must_use]
pub fn after(listing: &[Entry], cookie: u64) -> &[Entry] {
    let from = listing.partition_point(|entry| entry.cookie <= cookie);
    listing.get(from..).unwrap_or_default()
}

/// Reads a whole directory.
fn read(node: &Node) -> Result<Vec<(u64, Vec<u8>)>> {
    let session = &node.session;
    let flags = (OFlags::RDONLY | OFlags::DIRECTORY).bits();
    let open = session.opendir(
        node.id,
        OpenIn {
            flags,
            open_flags: 0,
        },
    )?;
    let entries = read_open(node, open.fh);
    let release = ReleaseIn {
        fh: open.fh,
        flags,
        ..ReleaseIn::default()
    };
    // The directory was read, or not; a lost daemon is reported by the next request.
    let _ = session.releasedir(node.id, release);
    entries
}

fn read_open(node: &Node, fh: u64) -> Result<Vec<(u64, Vec<u8>)>> {
    let mut entries = Vec::new();
    let mut offset = 0;
    loop {
        let args = ReadIn {
            fh,
            offset,
            size: READ_SIZE,
            ..ReadIn::default()
        };
        let read = node.session.readdir(node.id, args)?;
        let Some(last) = read.last() else {
            return Ok(entries);
        };
        offset = last.offset;
        if entries.len() > MAX_ENTRIES {
            return Err(nfsstat3::NFS3ERR_SERVERFAULT.into());
        }
        let named = read.into_iter().map(|entry| (entry.ino, entry.name));
        entries.extend(named.filter(|(_, name)| !matches!(&**name, b"." | b"..")));
    }
}

/// Gives entries their cookies, and sorts by them. Of two names with the same hash, the second by
/// name gets the next number.
fn sorted(entries: Vec<(u64, Vec<u8>)>) -> Vec<Entry> {
    let mut sorted: Vec<Entry> = entries
        .into_iter()
        .map(|(ino, name)| Entry {
            cookie: name_cookie(&name),
            ino,
            name,
        })
        .collect();
    number(&mut sorted);
    sorted
}

/// Sorts entries by their hashes, and makes cookies of these.
fn number(entries: &mut Vec<Entry>) {
    entries.sort_unstable_by(|a, b| (a.cookie, &a.name).cmp(&(b.cookie, &b.name)));
    // A name that was renamed while the directory was read may be there twice.
    entries.dedup_by(|a, b| a.name == b.name);
    let mut last = 0;
    for entry in entries {
        entry.cookie = entry.cookie.max(last + 1);
        last = entry.cookie;
    }
}

fn name_cookie(name: &[u8]) -> u64 {
    // FNV-1a alone leaves the high bits of short names alike.
    let mut hash = fnv_1a(name);
    hash = (hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    FIRST + (hash ^ hash >> 29) % (LAST - FIRST)
}

/// The entries "." and ".." that come before the names and after `cookie`.
#[must_use]
pub fn dots(directory: u64, parent: u64, cookie: u64) -> Vec<Entry> {
    let dots = [(DOT, directory, &b"."[..]), (DOT_DOT, parent, b"..")];
    dots.into_iter()
        .filter(|(number, ..)| *number > cookie)
        .map(|(cookie, ino, name)| Entry {
            cookie,
            ino,
            name: name.to_vec(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn listing(names: &BTreeSet<Vec<u8>>) -> Vec<Entry> {
        sorted(names.iter().map(|name| (1, name.clone())).collect())
    }

    proptest! {
        #[test]
        fn a_client_that_reads_on_sees_each_name_once_though_others_come_and_go(
            names: BTreeSet<Vec<u8>>, others: BTreeSet<Vec<u8>>, step in 1_usize..5,
        ) {
            let mut seen = Vec::new();
            let mut cookie = 0;
            for round in 0.. {
                // Every second time the others are there.
                let now = match round % 2 {
                    0 => names.clone(),
                    _ => names.union(&others).cloned().collect(),
                };
                let all = listing(&now);
                let page = after(&all, cookie);
                let page = &page[..step.min(page.len())];
                let Some(last) = page.last() else {
                    if round % 2 == 0 { continue } else { break }
                };
                cookie = last.cookie;
                seen.extend(page.iter().map(|entry| entry.name.clone()));
            }
            seen.retain(|name| names.contains(name));
            prop_assert_eq!(seen.len(), names.len());
            prop_assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), names);
        }
    }

    #[test]
    fn names_with_the_same_hash_have_different_cookies() {
        let entry = |cookie, name: &[u8]| Entry {
            cookie,
            ino: 1,
            name: name.to_vec(),
        };
        let mut same = vec![entry(9, b"b"), entry(9, b"a"), entry(10, b"c")];
        number(&mut same);
        let cookies: Vec<_> = same.iter().map(|entry| entry.cookie).collect();
        assert_eq!(cookies, [9, 10, 11]);
    }

    #[test]
    fn the_dots_come_first() {
        assert_eq!(dots(5, 4, 0).len(), 2);
        assert_eq!(dots(5, 4, DOT)[0].name, b"..");
        assert!(dots(5, 4, DOT_DOT).is_empty());
        assert!(name_cookie(b"") > DOT_DOT);
    }
}
