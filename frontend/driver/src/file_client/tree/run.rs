//! `cp` of trees, and `sync`: the directions, and what the paths of the command line mean.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use gangplank_service::output::Output;
use rustix::fs::FileType;

use super::super::error::{Error, Failures, Result};
use super::super::path::{LastLink, Share, last_name, split, text};
use super::copy::{CopyOptions, Place, TreeCopy};
use super::host::{self, HostTree};
use super::report::Report;
use super::share::{self, ShareFile, ShareTree};
use super::{Item, Tree};

/// Between which trees files are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Direction {
    /// From the host into the share.
    In,
    /// From the share to the host.
    Out,
    /// Within the share.
    Within,
}

impl Direction {
    /// The direction of a copy from `from` to `to`, where a path in the share begins with a colon.
    /// Also both paths without the colon.
    pub(in super::super) fn of<'p>(
        from: &'p [u8],
        to: &'p [u8],
    ) -> Result<(Self, &'p [u8], &'p [u8])> {
        match (from.strip_prefix(b":"), to.strip_prefix(b":")) {
            (Some(from), None) => Ok((Self::Out, from, to)),
            (None, Some(to)) => Ok((Self::In, from, to)),
            (Some(from), Some(to)) => Ok((Self::Within, from, to)),
            (None, None) => Err(Error::Path {
                path: format!("{} to {}", text(from), text(to)),
                why: "neither is in the share: a path in the share begins with a colon",
            }),
        }
    }
}

/// Finds what paths of the command line name.
pub(super) trait Start: Tree {
    /// What is at the path. A link itself with `LastLink::Keep`.
    fn find(&self, path: &[u8], last: LastLink) -> Result<Item<Self::File>>;

    /// The directory of a path that need not exist itself, and the name in it.
    fn parent(&self, path: &[u8]) -> Result<(Self::File, Vec<u8>)>;

    /// The directories that a copy in the same tree could destroy together with what is at the
    /// path: all above it. Follows a link.
    fn directories_above(&self, path: &[u8]) -> Result<Vec<Item<Self::File>>>;

    /// What is at the path, if anything. Follows a link.
    fn find_if_there(&self, path: &[u8]) -> Result<Option<Item<Self::File>>>;
}

impl Start for ShareTree<'_> {
    fn find(&self, path: &[u8], last: LastLink) -> Result<Item<ShareFile>> {
        let node = self.0.find(path, last)?;
        Ok(share::item(node, path.to_vec()))
    }

    fn parent(&self, path: &[u8]) -> Result<(ShareFile, Vec<u8>)> {
        let (node, name) = self.0.parent(path)?;
        let path = split(path).0.to_vec();
        Ok((ShareFile { node, path }, name.into_bytes()))
    }

    fn directories_above(&self, path: &[u8]) -> Result<Vec<Item<ShareFile>>> {
        let mut trail = self.0.trail(path, LastLink::Follow)?;
        trail.pop();
        let above = trail.into_iter();
        Ok(above.map(|(node, name)| share::item(node, name)).collect())
    }

    fn find_if_there(&self, path: &[u8]) -> Result<Option<Item<ShareFile>>> {
        let found = self.0.find_if_there(path)?;
        Ok(found.map(|node| share::item(node, path.to_vec())))
    }
}

impl Start for HostTree<'_> {
    fn find(&self, path: &[u8], last: LastLink) -> Result<Item<PathBuf>> {
        let path = Path::new(OsStr::from_bytes(path));
        match last {
            LastLink::Keep => host::look(path),
            LastLink::Follow => host::follow(path),
        }
    }

    fn parent(&self, path: &[u8]) -> Result<(PathBuf, Vec<u8>)> {
        let name = last_name(path)?;
        let directory = Path::new(OsStr::from_bytes(split(path).0));
        Ok((host::directory(directory.to_owned()), name.into_bytes()))
    }

    /// None: no copy goes from the host to the host.
    fn directories_above(&self, _: &[u8]) -> Result<Vec<Item<PathBuf>>> {
        Ok(Vec::new())
    }

    fn find_if_there(&self, path: &[u8]) -> Result<Option<Item<PathBuf>>> {
        let path = Path::new(OsStr::from_bytes(path));
        match path.metadata() {
            Ok(_) => host::follow(path).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Host {
                what: "look at",
                path: path.to_owned(),
                source,
            }),
        }
    }
}

impl Share {
    /// Copies files and trees into a directory, or one of them to a name. All paths are without
    /// colons.
    pub(in super::super) fn copy_trees(
        &self,
        direction: Direction,
        from: &[Vec<u8>],
        to: &[u8],
        options: CopyOptions,
        out: &mut Output,
    ) -> Result<()> {
        let (share, host) = (ShareTree(self), HostTree(&self.session));
        let report = Report::new(out, options.verbose, options.dry_run);
        match direction {
            Direction::In => begin(&host, &share, options, report).copy_all(from, to),
            Direction::Out => begin(&share, &host, options, report).copy_all(from, to),
            Direction::Within => begin(&share, &share, options, report).copy_all(from, to),
        }
    }

    /// Makes the tree `to` like the tree `from`. Both are without colons.
    pub(in super::super) fn sync(
        &self,
        direction: Direction,
        from: &[u8],
        to: &[u8],
        options: CopyOptions,
        out: &mut Output,
    ) -> Result<()> {
        let (share, host) = (ShareTree(self), HostTree(&self.session));
        let report = Report::new(out, options.verbose, options.dry_run);
        match direction {
            Direction::In => begin(&host, &share, options, report).sync(from, to),
            Direction::Out => begin(&share, &host, options, report).sync(from, to),
            Direction::Within => begin(&share, &share, options, report).sync(from, to),
        }
    }
}

fn begin<'a, S: Tree, T: Tree>(
    from: &'a S,
    to: &'a T,
    options: CopyOptions,
    report: Report<'a>,
) -> TreeCopy<'a, S, T> {
    TreeCopy {
        from,
        to,
        options,
        report,
        links: HashMap::new(),
        entered: HashSet::new(),
    }
}

impl<S: Start, T: Start> TreeCopy<'_, S, T> {
    fn copy_all(&mut self, from: &[Vec<u8>], to: &[u8]) -> Result<()> {
        let into = self.to.find_if_there(to)?;
        let into = into.filter(|found| found.kind() == FileType::Directory);
        if into.is_none() && (from.len() > 1 || (to.ends_with(b"/") && !self.options.recursive)) {
            return Err(Error::Path {
                path: text(to),
                why: "there is no such directory",
            });
        }
        self.entered.extend(into.as_ref().map(|into| into.identity));
        let mut failures = Failures::default();
        for path in from {
            failures.note(self.copy_one(path, to, into.as_ref()))?;
        }
        failures.into_result()
    }

    fn copy_one(&mut self, path: &[u8], to: &[u8], into: Option<&Item<T::File>>) -> Result<()> {
        let last = match self.options.recursive {
            true => LastLink::Keep,
            false => LastLink::Follow,
        };
        let item = self.from.find(path, last)?;
        if !self.options.recursive && item.kind() == FileType::RegularFile {
            self.report.progress.expect(item.attr.size);
        }
        let (directory, name) = match into {
            // All that is in "." or ".." or "/", and not a directory of that name.
            Some(into) => match split(path).1 {
                b"" | b"." | b".." if item.kind() == FileType::Directory => {
                    return self.copy_into(&item, into);
                }
                name => (into.file.clone(), name.to_vec()),
            },
            None => self.to.parent(to)?,
        };
        let old = self.to.child(&directory, &name)?;
        self.must_not_hold(path, old.as_ref())?;
        let place = Place {
            directory: Some(&directory),
            name: &name,
            old,
        };
        self.copy(&item, place, 0)
    }

    /// Copies what is in a directory into another, which exists.
    fn copy_into(&mut self, item: &Item<S::File>, into: &Item<T::File>) -> Result<()> {
        let place = Place {
            directory: Some(&into.file),
            name: b"",
            old: Some(into.clone()),
        };
        self.copy(item, place, 0)
    }

    /// Fails if `delete` would remove the source: it is somewhere in `old`.
    fn must_not_hold(&self, from: &[u8], old: Option<&Item<T::File>>) -> Result<()> {
        let Some(old) = old.filter(|_| self.options.delete) else {
            return Ok(());
        };
        // They are kept until the comparison: their identities are valid as long.
        let above = self.from.directories_above(from)?;
        match above.iter().any(|item| item.identity == old.identity) {
            true => Err(Error::Path {
                path: text(from),
                why: "it is in the directory that it would replace",
            }),
            false => Ok(()),
        }
    }

    fn sync(&mut self, from: &[u8], to: &[u8]) -> Result<()> {
        // A link that is typed stands for what it leads to.
        let item = self.from.find(from, LastLink::Follow)?;
        let done = match self.to.find_if_there(to)? {
            Some(into) if into.kind() == FileType::Directory => {
                if item.kind() != FileType::Directory {
                    return self
                        .copy_one(from, to, Some(&into))
                        .and(self.report.summary());
                }
                self.must_not_hold(from, Some(&into))?;
                self.copy_into(&item, &into)
            }
            old => {
                let (directory, name) = self.to.parent(to)?;
                let place = Place {
                    directory: Some(&directory),
                    name: &name,
                    old,
                };
                self.copy(&item, place, 0)
            }
        };
        let shown = self.report.summary();
        done.and(shown)
    }
}
