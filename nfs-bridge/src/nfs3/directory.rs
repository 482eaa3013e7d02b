//! READDIR and READDIRPLUS.
//!
//! Cookies are those of [`crate::share::listing`]. They are valid for ever, so the verifier only
//! tells that they are ours.

use std::collections::VecDeque;
use std::ffi::CString;

use gangplank_driver::{self as driver, call};
use gangplank_fuse::{Attr, EntryOut};
use nfs3_types::nfs3::{
    Nfs3Option, READDIR3resfail, READDIR3resok, READDIRPLUS3resfail, READDIRPLUS3resok,
    cookieverf3, dirlist3, dirlistplus3, entry3, entryplus3, nfsstat3, post_op_attr,
};
use nfs3_types::xdr_codec::List;

use super::attributes::to_nfs;
use super::names::check_directory;
use super::{Context, Decoded, MAX_IO, Object, handle};
use crate::identity::{EXECUTE, READ};
use crate::share::component;
use crate::share::error::Result;
use crate::share::listing::{Entry, Listing, after, dots};
use crate::xdr::Reader;

/// Tells that a cookie is a hash of a name, as this version makes it.
const VERIFIER: cookieverf3 = cookieverf3(*b"names  1");

/// Bytes of results beside the entries: status, attributes, verifier, two marks.
const OVERHEAD: usize = 4 + 88 + 8 + 8;

/// Bytes of an entry of READDIR beside its padded name: mark, inode number, length, cookie.
const ENTRY: usize = 4 + 8 + 4 + 8;

/// Bytes that READDIRPLUS adds to an entry: attributes and handle, each with its mark.
const PLUS: usize = 88 + 4 + 4 + 32;

/// Look-ups of one READDIRPLUS that are in flight at once.
const IN_FLIGHT: usize = 16;

/// What a client asks for.
struct Page {
    cookie: u64,
    /// Bytes of entries by READDIR's count, without attributes and handles.
    names: usize,
    /// Bytes of results.
    all: usize,
}

impl Context<'_> {
    pub(super) fn readdir(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        let directory = self.object(handle(args)?);
        let cookie = args.u64()?;
        let verifier: cookieverf3 = args.structure()?;
        let all = size(args.u32()?);
        let names = all;
        let page = Page { cookie, names, all };
        let mut dir_attributes = post_op_attr::None;
        let done = directory.and_then(|directory| {
            let attr = directory.attributes()?;
            dir_attributes = Nfs3Option::Some(to_nfs(&attr, directory.export()));
            let (entries, eof) = directory.entries(&attr, &page, verifier, 0)?;
            let entries = entries.into_iter().map(|entry| entry3 {
                fileid: entry.ino,
                cookie: entry.cookie,
                name: entry.name.into(),
            });
            Ok(READDIR3resok {
                dir_attributes: std::mem::take(&mut dir_attributes),
                cookieverf: VERIFIER,
                reply: dirlist3 {
                    entries: List(entries.collect()),
                    eof,
                },
            })
        });
        self.put(reply, done, READDIR3resfail { dir_attributes });
        Ok(())
    }

    pub(super) fn readdirplus(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        let directory = self.object(handle(args)?);
        let cookie = args.u64()?;
        let verifier: cookieverf3 = args.structure()?;
        let (names, all) = (size(args.u32()?), size(args.u32()?));
        let page = Page { cookie, names, all };
        let mut dir_attributes = post_op_attr::None;
        let done = directory.and_then(|directory| {
            let attr = directory.attributes()?;
            dir_attributes = Nfs3Option::Some(to_nfs(&attr, directory.export()));
            directory.identity.check(&attr, EXECUTE)?;
            let (entries, eof) = directory.entries(&attr, &page, verifier, PLUS)?;
            Ok(READDIRPLUS3resok {
                dir_attributes: std::mem::take(&mut dir_attributes),
                cookieverf: VERIFIER,
                reply: dirlistplus3 {
                    entries: List(directory.with_attributes(entries, &attr)?),
                    eof,
                },
            })
        });
        self.put(reply, done, READDIRPLUS3resfail { dir_attributes });
        Ok(())
    }
}

/// Bytes that a client has room for.
fn size(count: u32) -> usize {
    usize::try_from(count.min(MAX_IO)).unwrap_or(0)
}

impl Object<'_> {
    /// The entries of a page, each with `more` bytes beside those of READDIR, and whether they are
    /// the last.
    fn entries(
        &self,
        attr: &Attr,
        page: &Page,
        verifier: cookieverf3,
        more: usize,
    ) -> Result<(Vec<Entry>, bool)> {
        check_directory(attr)?;
        self.identity.check(attr, READ)?;
        if page.cookie != 0 && verifier != VERIFIER {
            return Err(nfsstat3::NFS3ERR_BAD_COOKIE.into());
        }
        let listings = &self.share.listings;
        let listing: Listing = listings.entries(&self.node, attr, page.cookie)?;
        let parent = self.share.parent(&self.node).ino;
        let dots = dots(attr.ino, parent, page.cookie);
        let rest = after(&listing, page.cookie);
        let (mut names, mut all) = (page.names, page.all.saturating_sub(OVERHEAD));
        let mut entries = Vec::new();
        for entry in dots.iter().chain(rest) {
            let len = ENTRY + entry.name.len().next_multiple_of(4);
            let fits = names.checked_sub(len).zip(all.checked_sub(len + more));
            let Some((names_left, all_left)) = fits else {
                return match entries.is_empty() {
                    true => Err(nfsstat3::NFS3ERR_TOOSMALL.into()),
                    false => Ok((entries, false)),
                };
            };
            (names, all) = (names_left, all_left);
            entries.push(entry.clone());
        }
        Ok((entries, true))
    }

    /// Looks entries up. One that is gone by now is without attributes and handle. `own` are the
    /// attributes of this directory.
    fn with_attributes(&self, entries: Vec<Entry>, own: &Attr) -> Result<Vec<entryplus3<'static>>> {
        // The dots have no component.
        let names: Vec<Option<CString>> = entries
            .iter()
            .map(|entry| component(&entry.name).ok())
            .collect();
        let looked_up: Vec<&CString> = names.iter().flatten().collect();
        let mut looked_up = looked_up.as_slice();
        let mut told = VecDeque::new();
        let mut found = Vec::with_capacity(entries.len());
        for (entry, name) in entries.into_iter().zip(&names) {
            let known = match name {
                None if entry.name == b"." => Some((self.node.handle, *own)),
                None => None,
                Some(_) => {
                    if told.is_empty() {
                        // No other request of this procedure is in flight.
                        told = self.lookups(&mut looked_up)?;
                    }
                    match told.pop_front() {
                        Some(Ok(told)) => self.entry(told).ok().map(|(node, attr)| {
                            self.remember(&node, &entry.name, &attr);
                            (node.handle, attr)
                        }),
                        Some(Err(error)) if error.is_fatal() => return Err(error.into()),
                        Some(Err(_)) | None => None,
                    }
                }
            };
            let (handle, attr) = known.unzip();
            found.push(entryplus3 {
                fileid: entry.ino,
                name: entry.name.into(),
                cookie: entry.cookie,
                name_attributes: super::post_op(attr.as_ref(), self.export()),
                name_handle: handle
                    .map_or(Nfs3Option::None, |handle| Nfs3Option::Some(handle.to_nfs())),
            });
        }
        Ok(found)
    }

    /// Looks up the first of `names`, and takes them off.
    fn lookups(&self, names: &mut &[&CString]) -> Result<VecDeque<driver::Result<EntryOut>>> {
        let batch = names.get(..IN_FLIGHT).unwrap_or(names);
        let told = self
            .session
            .call_batch(batch, |name| call::lookup(self.node.id, name))?;
        *names = names.get(told.len()..).unwrap_or_default();
        Ok(told.into())
    }
}

#[cfg(test)]
mod tests {
    use nfs3_types::xdr_codec::Pack;

    use super::*;
    use crate::share::handle::FileHandle;

    #[test]
    fn entries_are_as_long_as_counted() {
        let name = b"twelve bytes".to_vec();
        let plain = entry3 {
            fileid: 1,
            name: name.clone().into(),
            cookie: 2,
        };
        let list = List(vec![plain]);
        assert_eq!(list.packed_size(), ENTRY + 12 + 4, "and the end mark");
        let handle = FileHandle {
            export: 1,
            ino: 2,
            birth: 3,
        };
        let plus = entryplus3 {
            fileid: 1,
            name: name.into(),
            cookie: 2,
            name_attributes: Nfs3Option::Some(to_nfs(&Attr::default(), 1)),
            name_handle: Nfs3Option::Some(handle.to_nfs()),
        };
        assert_eq!(List(vec![plus]).packed_size(), ENTRY + 12 + PLUS + 4);
        let empty = READDIR3resok {
            dir_attributes: Nfs3Option::Some(to_nfs(&Attr::default(), 1)),
            cookieverf: VERIFIER,
            reply: dirlist3::default(),
        };
        assert!(4 + empty.packed_size() <= OVERHEAD);
    }
}
