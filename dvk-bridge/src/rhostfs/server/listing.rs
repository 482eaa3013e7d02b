//! opendir, seekdir, readdir, closedir, and the root's path.

use gangplank_service::rate_limited;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::call::Name;
use super::credentials::Access;
use super::dir_handles::DirHandle;
use super::failure::Result;
use super::path::PATH_MAX;
use super::request_context::{Answer, RequestContext};
use super::resolver::Last;
use super::wire;

/// `DT_LNK` and `DT_UNKNOWN` of readdir(3).
const LINK: u32 = 10;
const UNKNOWN: u32 = 0;

impl RequestContext<'_> {
    pub(super) fn opendir(&self, name: Name) -> Result<Answer> {
        let path = self.path(name)?;
        let found = self.resolver().find(&path, Last::Follow)?;
        if !found.is_directory() {
            return Err(Errno::NOTDIR.into());
        }
        self.settings.credentials.check(&found.attr, Access::READ)?;
        let dir_handle = DirHandle::open(self.backend, &found)?;
        let (number, oldest) = self.client.listing().dir_handles.insert(dir_handle);
        drop(oldest);
        Ok(Answer::DirHandle(number))
    }

    /// Continues from a cookie. The next read reports an unknown cookie.
    pub(super) fn seekdir(&self, dir_handle: u32, cookie: i32) -> Result<Answer> {
        let mut listing = self.client.listing();
        let listing = &mut *listing;
        let dir_handle = listing.dir_handles.get(dir_handle)?;
        let position = listing.cookies.position(dir_handle.ino(), cookie);
        dir_handle.seek(position);
        Ok(Answer::DONE)
    }

    pub(super) fn readdir(&self, dir_handle: u32, buffer: u32) -> Result<Answer> {
        let (raw, entry) = loop {
            let mut listing = self.client.listing();
            let listing = &mut *listing;
            let dir_handle = listing.dir_handles.get(dir_handle)?;
            let Some(entry) = dir_handle.next(self.backend)? else {
                return Ok(Answer::Entry(false));
            };
            let cookie = listing.cookies.cookie(dir_handle.ino(), entry.offset);
            let kind = match entry.kind {
                // The entry is shown as the link's target, whose type only a look-up tells.
                LINK if self.resolver().follows() => UNKNOWN,
                kind => kind,
            };
            match wire::dirent(&entry, cookie, kind) {
                Some(wire) => break (entry, wire),
                None => rate_limited!(
                    warn,
                    "a name of {} bytes cannot be listed",
                    entry.name.len()
                ),
            }
        };
        let copied = self.copy_to("a directory's entry", buffer, entry.as_bytes());
        if copied.is_err()
            && let Ok(dir_handle) = self.client.listing().dir_handles.get(dir_handle)
        {
            // The client may repeat the request and must get this entry.
            dir_handle.return_entry(raw);
        }
        copied?;
        Ok(Answer::Entry(true))
    }

    pub(super) fn closedir(&self, dir_handle: u32) -> Result<Answer> {
        let closed = self.client.listing().dir_handles.remove(dir_handle)?;
        drop(closed);
        Ok(Answer::DONE)
    }

    /// The name that the client prints when it mounts.
    pub(super) fn root_path(&self, buffer: u32) -> Result<Answer> {
        let mut path = self.settings.root_name.clone().into_bytes();
        path.truncate(PATH_MAX);
        path.push(0);
        self.copy_to("the root's path", buffer, &path)?;
        Ok(Answer::DONE)
    }
}
