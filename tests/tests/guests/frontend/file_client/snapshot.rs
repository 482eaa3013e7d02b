//! What is in a tree of the host, for comparisons.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{lgetxattr, llistxattr};

/// Which attributes are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Types, data and link targets.
    Data,
    /// Also permissions, owners, times, extended attributes and hard links.
    All,
}

/// One file.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    kind: &'static str,
    data: Vec<u8>,
    rdev: u64,
    attributes: Option<Attributes>,
}

#[derive(Debug, PartialEq, Eq)]
struct Attributes {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name of the same file.
    first: OsString,
}

/// All files below a directory, by their paths.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Snapshot(BTreeMap<OsString, Entry>);

impl Snapshot {
    pub(crate) fn of(root: &Path, depth: Depth) -> Result<Self> {
        let mut snapshot = Self(BTreeMap::new());
        let mut names = BTreeMap::new();
        snapshot.add(root, OsStr::new(""), depth, &mut names)?;
        Ok(snapshot)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Fails with the first path that differs.
    pub(crate) fn must_be(&self, expected: &Self) -> Result<()> {
        for (path, entry) in &expected.0 {
            let found = self.0.get(path);
            ensure!(found.is_some(), "{path:?} is missing");
            ensure!(found == Some(entry), "{path:?}: {found:?}, not {entry:?}");
        }
        let more = self.0.keys().find(|path| !expected.0.contains_key(*path));
        ensure!(more.is_none(), "{more:?} should not be there");
        Ok(())
    }

    fn add(
        &mut self,
        root: &Path,
        below: &OsStr,
        depth: Depth,
        names: &mut BTreeMap<u64, OsString>,
    ) -> Result<()> {
        let directory = root.join(below);
        let listed = fs::read_dir(&directory);
        let listed = listed.with_context(|| format!("listing {}", directory.display()))?;
        let mut entries: Vec<_> = listed.collect::<std::io::Result<_>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = Path::new(below).join(entry.file_name()).into_os_string();
            let metadata = entry.metadata()?;
            let kind = metadata.file_type();
            let (kind, data) = if kind.is_dir() {
                ("directory", Vec::new())
            } else if kind.is_symlink() {
                let target = fs::read_link(entry.path())?;
                ("link", target.as_os_str().as_bytes().to_vec())
            } else if kind.is_file() {
                ("file", fs::read(entry.path())?)
            } else if kind.is_fifo() {
                ("fifo", Vec::new())
            } else if kind.is_socket() {
                ("socket", Vec::new())
            } else {
                ("device", Vec::new())
            };
            let attributes = match depth {
                Depth::Data => None,
                Depth::All => {
                    let first = names.entry(metadata.ino()).or_insert_with(|| path.clone());
                    Some(Attributes {
                        mode: metadata.mode(),
                        owner: (metadata.uid(), metadata.gid()),
                        mtime: (metadata.mtime(), metadata.mtime_nsec()),
                        xattrs: xattrs(&entry.path())?,
                        first: first.clone(),
                    })
                }
            };
            let found = Entry {
                kind,
                data,
                rdev: metadata.rdev(),
                attributes,
            };
            self.0.insert(path.clone(), found);
            if metadata.is_dir() {
                self.add(root, &path, depth, names)?;
            }
        }
        Ok(())
    }
}

fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut list = vec![0; 4096];
    let len = llistxattr(path, &mut list[..])?;
    let names = list[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let values = names.map(|name| {
        let mut value = vec![0; 4096];
        let len = lgetxattr(path, name, &mut value[..])?;
        Ok((name.to_vec(), value[..len].to_vec()))
    });
    values.collect()
}
