//! Copies a tree, or makes another tree like it.

use std::collections::{HashMap, HashSet};

use rustix::fs::FileType;

use super::super::error::{Error, Failures, Result};
use super::super::listing::MAX_DEPTH;
use super::attributes::{Xattrs, differ, is_same_time, preserve};
use super::report::{Action, Report};
use super::{Identity, Item, Tree};

/// How to copy.
#[derive(Debug, Clone, Copy, Default)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is an option of the command line"
)]
pub(in super::super) struct CopyOptions {
    /// Directories too, with everything below them.
    pub(in super::super) recursive: bool,
    /// Owner, permissions, times, extended attributes and hard links stay.
    pub(in super::super) preserve: bool,
    /// Copies of regular files continue what an interrupted copy has left.
    pub(in super::super) resume: bool,
    /// Files of the same size and time are not copied.
    pub(in super::super) update: bool,
    /// With `update`: files of the same data are not copied, whatever their times are.
    pub(in super::super) checksum: bool,
    /// With `update`: what the source does not have is removed.
    pub(in super::super) delete: bool,
    /// Nothing is changed.
    pub(in super::super) dry_run: bool,
    /// Each file is named.
    pub(in super::super) verbose: bool,
}

/// The copy of a file that has several names: the file, its copy, and the identity of that.
pub(super) type Link<S, T> = (<S as Tree>::File, <T as Tree>::File, Identity);

/// A copy at work.
pub(super) struct TreeCopy<'a, S: Tree, T: Tree> {
    pub(super) from: &'a S,
    pub(super) to: &'a T,
    pub(super) options: CopyOptions,
    pub(super) report: Report<'a>,
    /// The copies of files that have several names. The source's file is kept: its identity is
    /// valid as long.
    pub(super) links: HashMap<Identity, Link<S, T>>,
    /// Directories that this copy has made or entered in the target.
    pub(super) entered: HashSet<Identity>,
}

/// Where something is copied to.
pub(super) struct Place<'p, T: Tree> {
    /// None if it would be made, but for a dry run.
    pub(super) directory: Option<&'p T::File>,
    pub(super) name: &'p [u8],
    /// What has the name now.
    pub(super) old: Option<Item<T::File>>,
}

impl<S: Tree, T: Tree> TreeCopy<'_, S, T> {
    /// Copies one file, or a directory with everything below it. Goes on with the rest of a
    /// directory after an error.
    pub(super) fn copy(
        &mut self,
        item: &Item<S::File>,
        place: Place<'_, T>,
        depth: usize,
    ) -> Result<()> {
        let path = self.from.path(&item.file);
        if place
            .old
            .as_ref()
            .is_some_and(|old| old.identity == item.identity)
        {
            let why = "it is the same file";
            return Err(Error::Path { path, why });
        }
        if item.kind() == FileType::Directory {
            if !self.options.recursive {
                return Err(Error::Directory(path));
            }
            return self.copy_directory(item, place, depth);
        }
        if !self.options.recursive && is_special(item.kind()) {
            let why = "it is no regular file; with --recursive it is copied as what it is";
            return Err(Error::Path { path, why });
        }
        let Place {
            directory,
            name,
            old,
        } = place;
        if let Some(there) = &old {
            if self.is_up_to_date(item, there)? {
                return self.keep(item, there, &path);
            }
            if there.kind() == FileType::Directory && !self.options.delete {
                return Err(Error::Directory(self.to.path(&there.file)));
            }
            // A device that was typed is not replaced by a file: /dev/null, by root.
            let is_asked = !self.options.update || depth == 0;
            if is_asked && item.kind() == FileType::RegularFile && is_special(there.kind()) {
                return Err(Error::Path {
                    path: self.to.path(&there.file),
                    why: "it is no regular file",
                });
            }
        }
        self.report.tell(Action::Copy, &path)?;
        let Some(directory) = directory.filter(|_| !self.options.dry_run) else {
            return Ok(());
        };
        let old = old.as_ref();
        if self.copy_hard_link(item, directory, name, old)? {
            return Ok(());
        }
        let to = self.to;
        match item.kind() {
            FileType::RegularFile => self.copy_data(item, directory, name, old)?,
            FileType::Symlink => {
                let target = self.from.target(&item.file)?;
                self.put(directory, name, old, Some(item), |name| {
                    to.make_link(directory, name, &target).map(Some)
                })?;
            }
            _ => self.put(directory, name, old, Some(item), |name| {
                to.make_special(directory, name, &item.attr).map(Some)
            })?,
        }
        self.remember_names(item, || self.to.child(directory, name))
            .map(|link| self.links.extend(link))
    }

    pub(super) fn preserve(&self, item: &Item<S::File>, made: &Item<T::File>) -> Result<()> {
        match self.options.preserve {
            true => preserve(self.from, self.to, item, &made.file, Xattrs::Copy),
            false => Ok(()),
        }
    }

    /// What to remember of a file with several names, once it has a copy.
    fn remember_names(
        &self,
        item: &Item<S::File>,
        copy: impl FnOnce() -> Result<Option<Item<T::File>>>,
    ) -> Result<Option<(Identity, Link<S, T>)>> {
        if item.attr.nlink < 2 || !self.options.preserve {
            return Ok(None);
        }
        Ok(copy()?.map(|copy| {
            let known = (item.file.clone(), copy.file, copy.identity);
            (item.identity, known)
        }))
    }

    /// Makes another name of a file whose copy has one already. Returns false if it has none.
    fn copy_hard_link(
        &self,
        item: &Item<S::File>,
        directory: &T::File,
        name: &[u8],
        old: Option<&Item<T::File>>,
    ) -> Result<bool> {
        let Some((_, first, copy)) = self.links.get(&item.identity) else {
            return Ok(false);
        };
        // The same source twice. A rename to another name of the same file would do nothing.
        if old.is_some_and(|old| old.identity == *copy) {
            return Ok(true);
        }
        self.put(directory, name, old, None, |name| {
            let made = self.to.make_hard_link(first, directory, name);
            made.map(|()| None)
        })?;
        Ok(true)
    }

    /// Whether `there` need not be copied again.
    fn is_up_to_date(&self, item: &Item<S::File>, there: &Item<T::File>) -> Result<bool> {
        let options = self.options;
        if !(options.update || options.resume) || item.kind() != there.kind() {
            return Ok(false);
        }
        // Names of one file are names of one copy.
        if let Some((_, _, copy)) = self.links.get(&item.identity) {
            return Ok(*copy == there.identity);
        }
        match item.kind() {
            FileType::RegularFile if item.attr.size != there.attr.size => Ok(false),
            FileType::RegularFile if options.checksum || !options.update => {
                self.has_same_data(item, there)
            }
            FileType::RegularFile => Ok(is_same_time(item, there)),
            FileType::Symlink => Ok(self.from.target(&item.file)? == self.to.target(&there.file)?),
            _ => Ok(item.attr.rdev == there.attr.rdev),
        }
    }

    /// Keeps a file of the target, and gives it the attributes of its source if they differ.
    fn keep(&mut self, item: &Item<S::File>, there: &Item<T::File>, path: &str) -> Result<()> {
        let link = self.remember_names(item, || Ok(Some(there.clone())))?;
        self.links.extend(link);
        if !self.options.preserve || !self.attributes_differ(item, there) {
            self.report.unchanged();
            return Ok(());
        }
        self.report.tell(Action::Attributes, path)?;
        match self.options.dry_run {
            true => Ok(()),
            false => preserve(self.from, self.to, item, &there.file, Xattrs::Leave),
        }
    }

    /// Another owner counts as a difference only if it can be changed.
    fn attributes_differ(&self, item: &Item<S::File>, there: &Item<T::File>) -> bool {
        let owners = [&item.attr, &there.attr].map(|attr| (attr.uid, attr.gid));
        let is_root = rustix::process::geteuid().is_root();
        differ(item, there) || (is_root && owners[0] != owners[1])
    }

    fn copy_directory(
        &mut self,
        item: &Item<S::File>,
        place: Place<'_, T>,
        depth: usize,
    ) -> Result<()> {
        let path = self.from.path(&item.file);
        if depth >= MAX_DEPTH {
            let why = "directories are too deep within one another";
            return Err(Error::Path { path, why });
        }
        if self.entered.contains(&item.identity) {
            let why = "a directory cannot be copied into itself";
            return Err(Error::Path { path, why });
        }
        // Before the copy can appear among them.
        let entries = self.from.entries(&item.file)?;
        let (there, is_new) = self.enter(item, place, &path)?;
        if let Some(there) = &there {
            self.entered.insert(there.identity);
        }
        let mut failures = Failures::default();
        let mut present = match &there {
            Some(there) if !is_new => {
                let entries = self.to.entries(&there.file)?;
                entries.into_iter().collect::<HashMap<_, _>>()
            }
            _ => HashMap::new(),
        };
        if self.options.delete {
            let wanted: HashSet<&[u8]> = entries.iter().map(|(name, _)| name.as_slice()).collect();
            let extra = present
                .keys()
                .filter(|name| !wanted.contains(name.as_slice()));
            let mut extra: Vec<_> = extra.cloned().collect();
            extra.sort();
            for name in extra {
                let (Some(there), Some(old)) = (&there, present.remove(&name)) else {
                    continue;
                };
                failures.note(self.remove(&there.file, &name, &old))?;
            }
        }
        for (name, entry) in &entries {
            let old = present.remove(name);
            let place = Place {
                directory: there.as_ref().map(|there| &there.file),
                name,
                old,
            };
            failures.note(self.copy(entry, place, depth + 1))?;
        }
        if let Some(there) = there {
            failures.note(self.finish_directory(item, &there, is_new, &path))?;
        }
        failures.into_result()
    }

    /// The directory of the target, made if it does not exist yet, and whether it is new.
    fn enter(
        &mut self,
        item: &Item<S::File>,
        place: Place<'_, T>,
        path: &str,
    ) -> Result<(Option<Item<T::File>>, bool)> {
        let Place {
            directory,
            name,
            old,
        } = place;
        match &old {
            Some(old) if old.kind() == FileType::Directory => {
                return Ok((Some(old.clone()), false));
            }
            Some(old) if !self.options.delete => {
                return Err(Error::NotDirectory(self.to.path(&old.file)));
            }
            _ => {}
        }
        self.report.tell(Action::Copy, path)?;
        match directory.filter(|_| !self.options.dry_run) {
            None => Ok((None, true)),
            Some(directory) => {
                // Writable until everything is in it, and its owner's until it has the right one.
                let mode = match self.options.preserve {
                    true => 0o700,
                    false => (item.attr.mode & 0o777) | 0o700,
                };
                self.put(directory, name, old.as_ref(), None, |name| {
                    self.to.make_directory(directory, name, mode).map(Some)
                })?;
                let made = self.to.child(directory, name)?;
                let made = made.ok_or_else(|| Error::Missing(path.to_owned()))?;
                Ok((Some(made), true))
            }
        }
    }

    /// Gives a directory its attributes, once all that is in it is there.
    fn finish_directory(
        &mut self,
        item: &Item<S::File>,
        there: &Item<T::File>,
        is_new: bool,
        path: &str,
    ) -> Result<()> {
        if !self.options.preserve {
            let mode = item.attr.mode & 0o777;
            return match is_new && mode & 0o700 != 0o700 {
                true => self.to.set_mode(&there.file, mode),
                false => Ok(()),
            };
        }
        if is_new {
            return self.preserve(item, there);
        }
        let now = self.to.refresh(there)?;
        // Entries that were made or removed have changed the time. That is no news.
        if self.attributes_differ(item, there) {
            self.report.tell(Action::Attributes, path)?;
        } else {
            self.report.unchanged();
        }
        match !self.options.dry_run && self.attributes_differ(item, &now) {
            true => preserve(self.from, self.to, item, &now.file, Xattrs::Leave),
            false => Ok(()),
        }
    }

    fn remove(&mut self, directory: &T::File, name: &[u8], old: &Item<T::File>) -> Result<()> {
        self.report.tell(Action::Remove, &self.to.path(&old.file))?;
        match self.options.dry_run {
            true => Ok(()),
            false => self.to.remove(directory, name, old),
        }
    }
}

const fn is_special(kind: FileType) -> bool {
    matches!(
        kind,
        FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice
    )
}
