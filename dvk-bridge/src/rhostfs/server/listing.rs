//! opendir, seekdir, readdir, closedir, and the root's path.

use log::warn;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::call::Name;
use super::failure::Result;
use super::identity::Access;
use super::path::LONGEST;
use super::stream::Stream;
use super::tree::Last;
use super::wire;
use super::work::{Answer, Work};

/// `DT_LNK` and `DT_UNKNOWN` of readdir(3).
const LINK: u32 = 10;
const UNKNOWN: u32 = 0;

impl Work<'_> {
    pub(super) fn opendir(&self, name: Name) -> Result<Answer> {
        let path = self.path(name)?;
        let found = self.tree().find(&path, Last::Follow)?;
        if !found.is_directory() {
            return Err(Errno::NOTDIR.into());
        }
        self.settings.identity.check(&found.attr, Access::READ)?;
        let stream = Stream::open(self.link, &found)?;
        let (number, oldest) = self.client.listing().streams.insert(stream);
        drop(oldest);
        Ok(Answer::Stream(number))
    }

    /// Goes on from a cookie. One that is not known is told of when the directory is read.
    pub(super) fn seekdir(&self, stream: u32, cookie: i32) -> Result<Answer> {
        let mut listing = self.client.listing();
        let listing = &mut *listing;
        let stream = listing.streams.get(stream)?;
        let position = listing.cookies.position(stream.ino(), cookie);
        stream.seek(position);
        Ok(Answer::DONE)
    }

    pub(super) fn readdir(&self, stream: u32, buffer: u32) -> Result<Answer> {
        let (raw, entry) = loop {
            let mut listing = self.client.listing();
            let listing = &mut *listing;
            let stream = listing.streams.get(stream)?;
            let Some(entry) = stream.next(self.link)? else {
                return Ok(Answer::Entry(false));
            };
            let cookie = listing.cookies.cookie(stream.ino(), entry.offset);
            let kind = match entry.kind {
                // It is shown as what it leads to, which only a look-up finds out.
                LINK if self.tree().follows() => UNKNOWN,
                kind => kind,
            };
            match wire::dirent(&entry, cookie, kind) {
                Some(wire) => break (entry, wire),
                None => warn!("a name of {} bytes cannot be listed", entry.name.len()),
            }
        };
        let copied = self.copy_to("a directory's entry", buffer, entry.as_bytes());
        if copied.is_err()
            && let Ok(stream) = self.client.listing().streams.get(stream)
        {
            // The client may ask again, and is not to miss it.
            stream.put_back(raw);
        }
        copied?;
        Ok(Answer::Entry(true))
    }

    pub(super) fn closedir(&self, stream: u32) -> Result<Answer> {
        let closed = self.client.listing().streams.remove(stream)?;
        drop(closed);
        Ok(Answer::DONE)
    }

    /// What the client prints when it mounts.
    pub(super) fn root_path(&self, buffer: u32) -> Result<Answer> {
        let mut path = self.settings.root_name.clone().into_bytes();
        path.truncate(LONGEST);
        path.push(0);
        self.copy_to("the root's path", buffer, &path)?;
        Ok(Answer::DONE)
    }
}
