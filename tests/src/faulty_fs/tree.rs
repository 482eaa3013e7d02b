//! The files and directories, in memory.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, INodeNo};
use rustix::io::Errno;

/// The root directory's number.
pub(super) const ROOT: u64 = 1;

/// Limit of a file's size in bytes, so that a mistaken offset does not exhaust memory.
const MAX_BYTES: u64 = 256 << 20;

/// The content of a node.
#[derive(Debug)]
enum Body {
    File(Vec<u8>),
    /// Names with their node numbers.
    Directory(BTreeMap<OsString, u64>),
}

/// A file or directory.
#[derive(Debug)]
pub(super) struct Node {
    /// Its last name, for rules.
    pub(super) name: String,
    parent: u64,
    body: Body,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) atime: SystemTime,
    pub(super) mtime: SystemTime,
    pub(super) ctime: SystemTime,
    pub(super) xattrs: BTreeMap<OsString, Vec<u8>>,
    opens: u64,
    is_linked: bool,
}

/// One entry of a listing.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) number: u64,
    pub(super) kind: FileType,
    pub(super) name: OsString,
}

/// All nodes by number. Numbers are never reused.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: HashMap<u64, Node>,
    next: u64,
}

impl Node {
    fn new(name: &OsStr, parent: u64, body: Body, mode: u32) -> Self {
        let now = SystemTime::now();
        Self {
            name: name.to_string_lossy().into_owned(),
            parent,
            body,
            mode: u16::try_from(mode & 0o7777).unwrap_or(0),
            uid: 0,
            gid: 0,
            atime: now,
            mtime: now,
            ctime: now,
            xattrs: BTreeMap::new(),
            opens: 0,
            is_linked: true,
        }
    }

    fn kind(&self) -> FileType {
        match self.body {
            Body::File(_) => FileType::RegularFile,
            Body::Directory(_) => FileType::Directory,
        }
    }

    /// A file's bytes.
    pub(super) fn content(&self) -> Result<&[u8], Errno> {
        match &self.body {
            Body::File(bytes) => Ok(bytes),
            Body::Directory(_) => Err(Errno::ISDIR),
        }
    }

    /// A file's bytes, to be changed.
    fn content_mut(&mut self) -> Result<&mut Vec<u8>, Errno> {
        match &mut self.body {
            Body::File(bytes) => Ok(bytes),
            Body::Directory(_) => Err(Errno::ISDIR),
        }
    }

    /// Cuts the file or fills it up with zeros.
    pub(super) fn resize(&mut self, size: u64) -> Result<(), Errno> {
        let size = bounded(size)?;
        self.content_mut()?.resize(size, 0);
        self.changed();
        Ok(())
    }

    /// Writes `data` at `offset`.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let start = bounded(offset)?;
        let end = bounded(offset + data.len() as u64)?;
        let content = self.content_mut()?;
        if content.len() < end {
            content.resize(end, 0);
        }
        content[start..end].copy_from_slice(data);
        self.changed();
        Ok(())
    }

    fn changed(&mut self) {
        self.mtime = SystemTime::now();
        self.ctime = self.mtime;
    }
}

/// An offset as an index, or EFBIG.
fn bounded(offset: u64) -> Result<usize, Errno> {
    let index = usize::try_from(offset).ok();
    index.filter(|_| offset <= MAX_BYTES).ok_or(Errno::FBIG)
}

impl Tree {
    pub(super) fn new() -> Self {
        let root = Node::new("/".as_ref(), ROOT, Body::Directory(BTreeMap::new()), 0o755);
        Self {
            nodes: HashMap::from([(ROOT, root)]),
            next: ROOT + 1,
        }
    }

    pub(super) fn node(&self, number: u64) -> Result<&Node, Errno> {
        self.nodes.get(&number).ok_or(Errno::STALE)
    }

    pub(super) fn node_mut(&mut self, number: u64) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&number).ok_or(Errno::STALE)
    }

    /// The name of a node for rules.
    pub(super) fn name(&self, number: u64) -> String {
        let node = self.nodes.get(&number);
        node.map(|node| node.name.clone()).unwrap_or_default()
    }

    fn entries(&self, number: u64) -> Result<&BTreeMap<OsString, u64>, Errno> {
        match &self.node(number)?.body {
            Body::Directory(entries) => Ok(entries),
            Body::File(_) => Err(Errno::NOTDIR),
        }
    }

    fn entries_mut(&mut self, number: u64) -> Result<&mut BTreeMap<OsString, u64>, Errno> {
        match &mut self.node_mut(number)?.body {
            Body::Directory(entries) => Ok(entries),
            Body::File(_) => Err(Errno::NOTDIR),
        }
    }

    pub(super) fn lookup(&self, parent: u64, name: &OsStr) -> Result<u64, Errno> {
        self.entries(parent)?.get(name).copied().ok_or(Errno::NOENT)
    }

    /// Makes a file or an empty directory.
    pub(super) fn make(
        &mut self,
        parent: u64,
        name: &OsStr,
        kind: FileType,
        mode: u32,
    ) -> Result<u64, Errno> {
        let body = match kind {
            FileType::Directory => Body::Directory(BTreeMap::new()),
            _ => Body::File(Vec::new()),
        };
        let number = self.next;
        let entries = self.entries_mut(parent)?;
        if entries.contains_key(name) {
            return Err(Errno::EXIST);
        }
        entries.insert(name.to_owned(), number);
        let node = Node::new(name, parent, body, mode);
        self.nodes.insert(number, node);
        self.next += 1;
        self.node_mut(parent)?.changed();
        Ok(number)
    }

    pub(super) fn put(&mut self, parent: u64, name: &str, content: &[u8]) -> Result<(), Errno> {
        let number = match self.lookup(parent, name.as_ref()) {
            Ok(number) => number,
            Err(_) => self.make(parent, name.as_ref(), FileType::RegularFile, 0o644)?,
        };
        let node = self.node_mut(number)?;
        *node.content_mut()? = content.to_vec();
        node.changed();
        Ok(())
    }

    pub(super) fn put_directory(&mut self, name: &str, entries: usize) -> Result<(), Errno> {
        let number = self.make(ROOT, name.as_ref(), FileType::Directory, 0o755)?;
        for entry in 0..entries {
            self.put(number, &format!("entry-{entry:04}"), &[])?;
        }
        Ok(())
    }

    pub(super) fn put_xattr(
        &mut self,
        name: &str,
        attribute: &str,
        value: &[u8],
    ) -> Result<(), Errno> {
        let number = self.lookup(ROOT, name.as_ref())?;
        let xattrs = &mut self.node_mut(number)?.xattrs;
        xattrs.insert(attribute.into(), value.to_vec());
        Ok(())
    }

    pub(super) fn content_of(&self, name: &str) -> Result<&[u8], Errno> {
        self.node(self.lookup(ROOT, name.as_ref())?)?.content()
    }

    pub(super) fn unlink(&mut self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        let number = self.lookup(parent, name)?;
        if self.node(number)?.kind() == FileType::Directory {
            return Err(Errno::ISDIR);
        }
        self.detach(parent, name, number)
    }

    pub(super) fn rmdir(&mut self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        let number = self.lookup(parent, name)?;
        if !self.entries(number)?.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        self.detach(parent, name, number)
    }

    fn detach(&mut self, parent: u64, name: &OsStr, number: u64) -> Result<(), Errno> {
        self.entries_mut(parent)?.remove(name);
        self.node_mut(parent)?.changed();
        self.node_mut(number)?.is_linked = false;
        self.drop_unused(number);
        Ok(())
    }

    /// Renames, replacing an existing target.
    pub(super) fn rename(
        &mut self,
        (parent, name): (u64, &OsStr),
        (new_parent, new_name): (u64, &OsStr),
    ) -> Result<(), Errno> {
        let number = self.lookup(parent, name)?;
        match self.lookup(new_parent, new_name) {
            Ok(same) if same == number => return Ok(()),
            Ok(_) if self.node(number)?.kind() == FileType::Directory => {
                self.rmdir(new_parent, new_name)?;
            }
            Ok(_) => self.unlink(new_parent, new_name)?,
            Err(_) => {}
        }
        self.entries_mut(parent)?.remove(name);
        self.entries_mut(new_parent)?
            .insert(new_name.to_owned(), number);
        let node = self.node_mut(number)?;
        node.name = new_name.to_string_lossy().into_owned();
        node.parent = new_parent;
        Ok(())
    }

    /// All entries of a directory, `.` and `..` first.
    pub(super) fn list(&self, number: u64) -> Result<Vec<Entry>, Errno> {
        let own = |number, name: &str| Entry {
            number,
            kind: FileType::Directory,
            name: name.into(),
        };
        let mut list = vec![own(number, "."), own(self.node(number)?.parent, "..")];
        for (name, number) in self.entries(number)? {
            list.push(Entry {
                number: *number,
                kind: self.node(*number)?.kind(),
                name: name.clone(),
            });
        }
        Ok(list)
    }

    pub(super) fn opened(&mut self, number: u64) -> Result<(), Errno> {
        self.node_mut(number)?.opens += 1;
        Ok(())
    }

    pub(super) fn released(&mut self, number: u64) {
        if let Ok(node) = self.node_mut(number) {
            node.opens = node.opens.saturating_sub(1);
            self.drop_unused(number);
        }
    }

    fn drop_unused(&mut self, number: u64) {
        if self
            .nodes
            .get(&number)
            .is_some_and(|node| !node.is_linked && node.opens == 0)
        {
            self.nodes.remove(&number);
        }
    }

    pub(super) fn attributes(&self, number: u64) -> Result<FileAttr, Errno> {
        let node = self.node(number)?;
        let size = node.content().map_or(4096, <[u8]>::len) as u64;
        Ok(FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: node.atime,
            mtime: node.mtime,
            ctime: node.ctime,
            crtime: SystemTime::UNIX_EPOCH + Duration::from_secs(1),
            kind: node.kind(),
            perm: node.mode,
            nlink: match node.kind() {
                FileType::Directory => 2,
                _ => u32::from(node.is_linked),
            },
            uid: node.uid,
            gid: node.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}
