//! The host's files as a tree.

use std::ffi::{CString, OsStr};
use std::fs::{self, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use gangplank_fuse::Attr;
use rustix::buffer::spare_capacity;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, lgetxattr, llistxattr, lsetxattr,
    mkdirat, mknodat, utimensat,
};
use rustix::io::Errno;

use super::super::attributes::umask;
use super::super::error::{Error, Result};
use super::super::host::HostReader;
use super::super::host_target::HostTarget;
use super::super::transfer::{Holes, MAX_REQUEST_LEN};
use super::{Entries, Item, Sink, Tree};
use crate::FuseSession;

/// Longest value and longest list of extended attributes (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX` of
/// linux/limits.h).
const XATTR_MAX: usize = 65_536;

/// The host's files. Data goes through the session's shared memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostTree<'s>(pub(super) &'s FuseSession);

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Host { what, path, source }
}

fn refused(what: &'static str, path: &Path) -> impl FnOnce(Errno) -> Error {
    let failed = failed(what, path);
    move |errno| failed(errno.into())
}

/// What is at a path, as lstat(2) or stat(2) tells it.
pub(super) fn item(path: PathBuf, metadata: &fs::Metadata) -> Item<PathBuf> {
    let seconds = |seconds: i64| seconds.cast_unsigned();
    let nanoseconds = |nanoseconds: i64| u32::try_from(nanoseconds).unwrap_or_default();
    Item {
        file: path,
        attr: Attr {
            ino: metadata.ino(),
            size: metadata.size(),
            blocks: metadata.blocks(),
            atime: seconds(metadata.atime()),
            mtime: seconds(metadata.mtime()),
            ctime: seconds(metadata.ctime()),
            atimensec: nanoseconds(metadata.atime_nsec()),
            mtimensec: nanoseconds(metadata.mtime_nsec()),
            ctimensec: nanoseconds(metadata.ctime_nsec()),
            mode: metadata.mode(),
            nlink: u32::try_from(metadata.nlink()).unwrap_or(u32::MAX),
            uid: metadata.uid(),
            gid: metadata.gid(),
            rdev: encode_device(metadata.rdev()),
            ..Attr::default()
        },
        identity: (metadata.dev(), metadata.ino()),
    }
}

/// A device number in the kernel's 32-bit encoding (`new_encode_dev`, linux/kdev_t.h).
fn encode_device(device: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12)
}

/// Undoes [`encode_device`].
fn decode_device(encoded: u32) -> u64 {
    let major = (encoded & 0xf_ff00) >> 8;
    let minor = (encoded & 0xff) | ((encoded >> 12) & 0xf_ff00);
    rustix::fs::makedev(major, minor)
}

impl HostTree<'_> {
    fn look(path: PathBuf) -> Result<Item<PathBuf>> {
        let metadata = path.symlink_metadata();
        let metadata = metadata.map_err(failed("look at", &path))?;
        Ok(item(path, &metadata))
    }
}

impl Tree for HostTree<'_> {
    type File = PathBuf;
    type New<'a>
        = HostTarget
    where
        Self: 'a;

    fn path(&self, file: &PathBuf) -> String {
        super::super::path::text(file.as_os_str().as_bytes())
    }

    fn child(&self, directory: &PathBuf, name: &[u8]) -> Result<Option<Item<PathBuf>>> {
        let path = directory.join(OsStr::from_bytes(name));
        match path.symlink_metadata() {
            Ok(metadata) => Ok(Some(item(path, &metadata))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("look at", &path)(error)),
        }
    }

    fn refresh(&self, item: &Item<PathBuf>) -> Result<Item<PathBuf>> {
        Self::look(item.file.clone())
    }

    fn entries(&self, directory: &PathBuf) -> Result<Entries<PathBuf>> {
        let mut entries = Vec::new();
        let listed = fs::read_dir(directory).map_err(failed("list", directory))?;
        for entry in listed {
            let entry = entry.map_err(failed("list", directory))?;
            match entry.metadata() {
                Ok(metadata) => {
                    let found = item(entry.path(), &metadata);
                    entries.push((entry.file_name().into_vec(), found));
                }
                // Another program has removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("look at", &entry.path())(error)),
            }
        }
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(entries)
    }

    fn target(&self, link: &PathBuf) -> Result<Vec<u8>> {
        let target = link.read_link().map_err(failed("read the link", link))?;
        Ok(target.into_os_string().into_vec())
    }

    fn read(
        &self,
        file: &PathBuf,
        range: Range<u64>,
        holes: Holes,
        sink: &mut Sink<'_>,
    ) -> Result<u64> {
        // Another program may have put a pipe there, whose open would wait.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags.bits().cast_signed());
        let opened = options.open(file).map_err(failed("open", file))?;
        let mut reader = HostReader::of_range(opened, file.clone(), range, holes)?;
        let room = self.0.max_write().min(MAX_REQUEST_LEN);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        while let Some((offset, data)) = reader.next(self.0, room)? {
            sink(offset, data)?;
        }
        Ok(reader.len())
    }

    fn make_directory(&self, directory: &PathBuf, name: &[u8], mode: u32) -> Result<Item<PathBuf>> {
        let path = directory.join(OsStr::from_bytes(name));
        let made = mkdirat(CWD, &path, Mode::from_raw_mode(mode));
        made.map_err(refused("make", &path))?;
        Self::look(path)
    }

    fn make_link(&self, directory: &PathBuf, name: &[u8], target: &[u8]) -> Result<Item<PathBuf>> {
        let path = directory.join(OsStr::from_bytes(name));
        symlink(OsStr::from_bytes(target), &path).map_err(failed("make", &path))?;
        Self::look(path)
    }

    fn make_special(&self, directory: &PathBuf, name: &[u8], like: &Attr) -> Result<Item<PathBuf>> {
        let path = directory.join(OsStr::from_bytes(name));
        let kind = FileType::from_raw_mode(like.mode);
        let mode = Mode::from_raw_mode(like.mode & 0o777);
        let made = mknodat(CWD, &path, kind, mode, decode_device(like.rdev));
        made.map_err(refused("make", &path))?;
        Self::look(path)
    }

    fn make_hard_link(&self, file: &PathBuf, directory: &PathBuf, name: &[u8]) -> Result<()> {
        let path = directory.join(OsStr::from_bytes(name));
        fs::hard_link(file, &path).map_err(failed("make", &path))
    }

    fn rename(&self, directory: &PathBuf, from: &[u8], to: &[u8]) -> Result<()> {
        let [from, to] = [from, to].map(|name| directory.join(OsStr::from_bytes(name)));
        fs::rename(from, &to).map_err(failed("replace", &to))
    }

    fn remove(&self, directory: &PathBuf, name: &[u8], item: &Item<PathBuf>) -> Result<()> {
        let path = directory.join(OsStr::from_bytes(name));
        let removed = match item.kind() {
            FileType::Directory => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        };
        removed.map_err(failed("remove", &path))
    }

    fn begin(
        &self,
        directory: &PathBuf,
        name: &[u8],
        old: Option<&Item<PathBuf>>,
        mode: u32,
    ) -> Result<HostTarget> {
        let path = directory.join(OsStr::from_bytes(name));
        match old {
            Some(_) => HostTarget::begin(path, mode),
            None => HostTarget::begin_anew(path, mode),
        }
    }

    fn resume(
        &self,
        directory: &PathBuf,
        name: &[u8],
        temporary: &[u8],
        partial: Option<(&Item<PathBuf>, u64)>,
        mode: u32,
    ) -> Result<HostTarget> {
        let path = directory.join(OsStr::from_bytes(name));
        let temporary = directory.join(OsStr::from_bytes(temporary));
        HostTarget::resume(path, temporary, partial.map(|(_, start)| start), mode)
    }

    fn must_be_writable(&self, file: &PathBuf) -> Result<()> {
        // Another program may have put a pipe there, whose open would wait.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(flags.bits().cast_signed());
        options.open(file).map(drop).map_err(failed("open", file))
    }

    fn mode_of_new(&self, mode: u32) -> u32 {
        mode & !umask()
    }

    fn fill(
        &self,
        new: &mut HostTarget,
        read: &mut dyn FnMut(&mut Sink<'_>) -> Result<u64>,
    ) -> Result<u64> {
        read(&mut |offset, data| new.write(offset, &data))
    }

    fn publish(
        &self,
        new: HostTarget,
        len: u64,
        prepare: &mut dyn FnMut(&PathBuf) -> Result<()>,
    ) -> Result<()> {
        new.publish_with(len, |path| prepare(&path.to_owned()))
    }

    fn xattrs(&self, file: &PathBuf) -> Result<Vec<(CString, Vec<u8>)>> {
        let mut list = Vec::with_capacity(XATTR_MAX);
        match llistxattr(file, spare_capacity(&mut list)) {
            Ok(_) => {}
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(errno) => return Err(refused("list the attributes of", file)(errno)),
        }
        let mut found = Vec::new();
        for name in list
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
        {
            let mut value = Vec::with_capacity(XATTR_MAX);
            match lgetxattr(file, name, spare_capacity(&mut value)) {
                Ok(_) => {
                    let name = CString::new(name).unwrap_or_default();
                    value.shrink_to_fit();
                    found.push((name, value));
                }
                // Another program has removed it.
                Err(Errno::NODATA) => {}
                Err(errno) => return Err(refused("read an attribute of", file)(errno)),
            }
        }
        Ok(found)
    }

    fn set_xattr(&self, file: &PathBuf, name: &CString, value: &[u8]) -> Result<()> {
        let set = lsetxattr(file, name, value, rustix::fs::XattrFlags::empty());
        set.map_err(refused("set an attribute of", file))
    }

    fn set_owner(&self, file: &PathBuf, uid: Option<u32>, gid: u32) -> Result<()> {
        lchown(file, uid, Some(gid)).map_err(failed("set the owner of", file))
    }

    fn set_mode(&self, file: &PathBuf, mode: u32) -> Result<()> {
        let set = fs::set_permissions(file, fs::Permissions::from_mode(mode & 0o7777));
        set.map_err(failed("set the permissions of", file))
    }

    fn set_times(&self, file: &PathBuf, like: &Attr) -> Result<()> {
        let time = |seconds: u64, nanoseconds: u32| Timespec {
            tv_sec: seconds.cast_signed(),
            tv_nsec: nanoseconds.into(),
        };
        let times = Timestamps {
            last_access: time(like.atime, like.atimensec),
            last_modification: time(like.mtime, like.mtimensec),
        };
        let set = utimensat(CWD, file, &times, AtFlags::SYMLINK_NOFOLLOW);
        set.map_err(refused("set the times of", file))
    }
}

/// The file at a path of the command line, which may be a link to it.
pub(super) fn follow(path: &Path) -> Result<Item<PathBuf>> {
    let metadata = fs::metadata(path).map_err(failed("look at", path))?;
    // The name of the link stays the name of the copy.
    let file = path.canonicalize().map_err(failed("find", path))?;
    Ok(item(file, &metadata))
}

/// What is at a path of the command line, a link itself too.
pub(super) fn look(path: &Path) -> Result<Item<PathBuf>> {
    HostTree::look(path.to_owned())
}

/// Opens nothing: a directory of the host to copy into.
pub(super) fn directory(path: PathBuf) -> PathBuf {
    match path.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_keep_their_parts() {
        for (major, minor) in [(1, 3), (259, 300), (8, 0xf_ffff)] {
            let device = rustix::fs::makedev(major, minor);
            assert_eq!(decode_device(encode_device(device)), device);
        }
        assert_eq!(encode_device(rustix::fs::makedev(8, 258)), 0x0010_0802);
    }
}
