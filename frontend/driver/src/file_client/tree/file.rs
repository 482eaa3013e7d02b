//! The data of one regular file: copied in one go, or continued and verified.

use rustix::fs::FileType;
use twox_hash::XxHash3_128;

use super::super::error::{Error, Result};
use super::super::path::text;
use super::super::transfer::Holes;
use super::attributes::{Xattrs, preserve};
use super::checksum::Checksums;
use super::copy::TreeCopy;
use super::{Item, Tree};

/// Longest file name (`NAME_MAX`).
const NAME_MAX: usize = 255;

/// Permission bits that a copy takes over.
const PERMISSIONS: u32 = 0o777;

/// Permission bits that a file can have.
const MODE: u32 = 0o7777;

/// The name of a copy that is not complete. Another copy of the same file finds it by its name.
pub(super) fn partial_name(name: &[u8]) -> Vec<u8> {
    const END: &[u8] = b".gangplank-partial";
    let whole = [b".", name, END].concat();
    match whole.len() > NAME_MAX {
        true => [
            format!(".{:032x}", XxHash3_128::oneshot(name)).as_bytes(),
            END,
        ]
        .concat(),
        false => whole,
    }
}

/// The checksums of a file's first bytes, at most `len`.
fn checksums<T: Tree>(tree: &T, file: &T::File, len: u64) -> Result<Checksums> {
    let mut sums = Checksums::new();
    let end = tree.read(file, 0..len, Holes::Skip, &mut |offset, data| {
        sums.push(offset, &data);
        Ok(())
    })?;
    sums.finish(end);
    Ok(sums)
}

/// Gives a file the owner, where that is permitted, and the permissions of the one that it
/// replaces.
fn take_over<T: Tree>(tree: &T, old: &Item<T::File>, made: &T::File) -> Result<()> {
    // Only root may. Everybody else's copy is their own.
    let _ = tree.set_owner(made, Some(old.attr.uid), old.attr.gid);
    tree.set_mode(made, old.attr.mode & PERMISSIONS)
}

impl<S: Tree, T: Tree> TreeCopy<'_, S, T> {
    /// Whether two files have the same data. Both are read.
    pub(super) fn has_same_data(&self, from: &Item<S::File>, to: &Item<T::File>) -> Result<bool> {
        if from.attr.size != to.attr.size {
            return Ok(false);
        }
        let from = checksums(self.from, &from.file, u64::MAX)?;
        Ok(from.is_same(&checksums(self.to, &to.file, u64::MAX)?))
    }

    /// Makes a regular file or replaces the `old` one.
    pub(super) fn copy_data(
        &mut self,
        item: &Item<S::File>,
        directory: &T::File,
        name: &[u8],
        old: Option<&Item<T::File>>,
    ) -> Result<()> {
        let (from, to) = (self.from, self.to);
        // A directory with its place, which no rename replaces.
        let in_the_way = old.filter(|old| old.kind() == FileType::Directory);
        let in_the_way = in_the_way.map(|old| (directory, name, old));
        // A copy with the attributes of its source needs none of the old file.
        let old = old.filter(|old| old.kind() == FileType::RegularFile && !self.options.preserve);
        if self.options.resume {
            return self.resume_data(item, directory, name, old);
        }
        let mode = self.first_mode(item, None);
        let mut new = to.begin(directory, name, old, mode)?;
        let progress = &mut self.report.progress;
        let len = to.fill(&mut new, &mut |sink| {
            from.read(&item.file, 0..u64::MAX, Holes::Skip, &mut |offset, data| {
                progress.add(data.len() as u64);
                sink(offset, data)
            })
        })?;
        to.publish(new, len, &mut |made| {
            if self.options.preserve {
                preserve(from, to, item, made, Xattrs::Copy)?;
            }
            match in_the_way {
                Some((directory, name, old)) => to.remove(directory, name, old),
                None => Ok(()),
            }
        })
    }

    /// Permissions of a copy that is not complete. If others have rights to it, they get them with
    /// its owner.
    const fn first_mode(&self, item: &Item<S::File>, old: Option<&Item<T::File>>) -> u32 {
        match self.options.preserve || old.is_some() {
            true => 0o600,
            false => item.attr.mode & PERMISSIONS,
        }
    }

    /// Continues what an interrupted copy has left, and compares the copy with the file at the end.
    fn resume_data(
        &mut self,
        item: &Item<S::File>,
        directory: &T::File,
        name: &[u8],
        old: Option<&Item<T::File>>,
    ) -> Result<()> {
        let (from, to) = (self.from, self.to);
        if let Some(old) = old {
            to.must_be_writable(&old.file)?;
        }
        let temporary = partial_name(name);
        let partial = to.child(directory, &temporary)?;
        let mut sums = Checksums::new();
        let mut start = 0;
        if let Some(partial) = &partial {
            if partial.kind() != FileType::RegularFile {
                return Err(Error::Path {
                    path: to.path(&partial.file),
                    why: "it is in the way: no regular file",
                });
            }
            let there = checksums(to, &partial.file, u64::MAX)?;
            sums = checksums(from, &item.file, partial.attr.size)?;
            // Blocks in flight at the interruption may be missing amid the others.
            start = sums.common(&there);
            sums.cut(start);
        }
        let mode = self.first_mode(item, old);
        if let Some(partial) = &partial
            && partial.attr.mode & !mode & MODE != 0
        {
            // It was begun for others to read.
            to.set_mode(&partial.file, mode)?;
        }
        let new_mode = to.mode_of_new(mode);
        let has_other_mode = partial
            .as_ref()
            .is_some_and(|partial| partial.attr.mode & MODE != new_mode);
        let partial = partial.as_ref().map(|partial| (partial, start));
        let mut new = to.resume(directory, name, &temporary, partial, mode)?;
        let progress = &mut self.report.progress;
        progress.skip(start);
        let len = to.fill(&mut new, &mut |sink| {
            from.read(
                &item.file,
                start..u64::MAX,
                Holes::Skip,
                &mut |offset, data| {
                    progress.add(data.len() as u64);
                    sums.push(offset, &data);
                    sink(offset, data)
                },
            )
        })?;
        sums.finish(len);
        to.publish(new, len, &mut |made| {
            if !sums.is_same(&checksums(to, made, u64::MAX)?) {
                return Err(Error::Path {
                    path: text(name),
                    why: "the copy differs from the file; the next copy with --resume mends it",
                });
            }
            match old {
                _ if self.options.preserve => preserve(from, to, item, made, Xattrs::Copy),
                Some(old) => take_over(to, old, made),
                // Another copy may have begun it with other permissions.
                None if has_other_mode => to.set_mode(made, new_mode),
                None => Ok(()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_copies_have_names_that_file_systems_take() {
        assert_eq!(partial_name(b"disk.img"), b".disk.img.gangplank-partial");
        let (long, other) = ([b'x'; 255], [b'y'; 255]);
        assert!(partial_name(&long).len() <= NAME_MAX);
        assert_ne!(partial_name(&long), partial_name(&other));
    }
}
