//! A guest with a directory of its own.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use gangplank_fuse::{Handle, NodeId};
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::{Driver, NodeAndFile, Setup};
use rustix::fs::{OFlags, XattrFlags};
use tempfile::TempDir;

/// The extended attribute that a file has.
pub(super) const XATTR: &CStr = c"user.there";

/// The user and group of a caller who is not root.
const USER: u32 = 1000;

/// An access control list as the kernel keeps it (`linux/posix_acl_xattr.h`): the version, and
/// entries of tag, permissions and id.
const ACL_VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;
const ACL: [(u16, u16, u32); 5] = [
    (0x01, 7, NO_ID),
    (0x02, 6, USER + 1),
    (0x04, 5, NO_ID),
    (0x10, 7, NO_ID),
    (0x20, 1, NO_ID),
];

/// What is in a directory: each path below it, and what is there.
pub(super) type Tree = BTreeMap<PathBuf, Found>;

/// What a path leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Type and permissions.
    mode: u32,
    links: u64,
    owner: (u32, u32),
    /// Of a symbolic link, its target.
    content: Vec<u8>,
    /// The extended attributes, access control lists among them.
    xattrs: BTreeMap<String, Vec<u8>>,
    /// The flags of a file or directory (`FS_IOC_GETFLAGS`).
    flags: Option<u32>,
}

/// A guest, and a directory in which it works.
pub(super) struct World {
    /// The guest.
    pub(super) guest: Driver,
    /// The directory on the host.
    pub(super) directory: TempDir,
    /// The directory's node.
    pub(super) root: NodeId,
    /// Look-ups that the guest has not forgotten, by node.
    pub(super) known: BTreeMap<u64, u64>,
    /// What the guest has open: files, and directories.
    pub(super) files: Vec<NodeAndFile>,
    pub(super) directories: Vec<NodeAndFile>,
}

impl World {
    /// A guest that has mounted, and a directory of some files.
    pub(super) fn new(fixture: &Fixture) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("world-")
            .tempdir_in(fixture.share())?;
        let path = directory.path();
        for (name, mode) in [("", 0o755), ("empty", 0o755), ("full", 0o755)] {
            let path = path.join(name);
            if !name.is_empty() {
                fs::create_dir(&path)?;
            }
            fs::set_permissions(&path, Permissions::from_mode(mode))?;
        }
        for name in ["old", "other", "gone", "full/one", "full/two", "full/three"] {
            let path = path.join(name);
            fs::write(&path, name)?;
            fs::set_permissions(&path, Permissions::from_mode(0o644))?;
        }
        symlink("target", path.join("link"))?;
        rustix::fs::setxattr(path.join("old"), XATTR, b"value", XattrFlags::empty())?;
        let guest = fixture.guest(&Setup::default())?;
        let mut world = Self {
            guest,
            root: NodeId::ROOT,
            known: BTreeMap::new(),
            files: Vec::new(),
            directories: Vec::new(),
            directory,
        };
        let name = CString::new(world.name()?)?;
        world.root = world.find(&name)?;
        Ok(world)
    }

    /// From now on, the requests are those of a user who is not root, and what is made gets an
    /// access control list.
    ///
    /// # Errors
    /// The file system has no such lists.
    pub(super) fn add_acl_and_user(&mut self) -> Result<()> {
        let entries = ACL.iter().flat_map(|(tag, permissions, id)| {
            let head = [*tag, *permissions].map(u16::to_le_bytes);
            head.into_iter().flatten().chain(id.to_le_bytes())
        });
        let list: Vec<u8> = ACL_VERSION
            .to_le_bytes()
            .into_iter()
            .chain(entries)
            .collect();
        let (path, name) = (self.directory.path(), "system.posix_acl_default");
        rustix::fs::setxattr(path, name, &list, XattrFlags::empty())
            .context("giving the directory an access control list")?;
        (self.guest.header.uid, self.guest.header.gid) = (USER, USER);
        Ok(())
    }

    /// The directory's name.
    pub(super) fn name(&self) -> Result<String> {
        let name = self.directory.path().file_name().context("a name")?;
        Ok(name.to_string_lossy().into_owned())
    }

    /// The path of a name on the host.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Looks a name up in the directory.
    pub(super) fn find(&mut self, name: &CStr) -> Result<NodeId> {
        let entry = self.guest.lookup(self.root, name)?;
        Ok(self.learn(entry.nodeid))
    }

    /// A reply has given the guest one look-up of a node.
    pub(super) fn learn(&mut self, node: u64) -> NodeId {
        if node != 0 {
            *self.known.entry(node).or_default() += 1;
        }
        NodeId::new(node)
    }

    /// Opens a file.
    pub(super) fn open(&mut self, name: &CStr, flags: OFlags) -> Result<NodeAndFile> {
        let node = self.find(name)?;
        let file = self.guest.open(node, flags)?;
        let opened = NodeAndFile { node, file };
        self.files.push(opened);
        Ok(opened)
    }

    /// Opens a directory.
    pub(super) fn opendir(&mut self, name: &CStr) -> Result<NodeAndFile> {
        let node = self.find(name)?;
        let file = self.guest.opendir(node)?;
        let opened = NodeAndFile { node, file };
        self.directories.push(opened);
        Ok(opened)
    }

    /// The request closes this handle.
    pub(super) fn closes(&mut self, closed: Handle) {
        self.files.retain(|opened| opened.file != closed);
        self.directories.retain(|opened| opened.file != closed);
    }

    /// What is in the directory.
    pub(super) fn tree(&self) -> Result<Tree> {
        let mut tree = Tree::new();
        describe(self.directory.path(), Path::new(""), &mut tree)?;
        Ok(tree)
    }

    /// Closes all that the guest has open and forgets all that it knows, then returns the
    /// descriptors that the worker still has in the directory: open files, and inodes.
    pub(super) fn leave(mut self, fixture: &Fixture) -> Result<(usize, usize)> {
        for opened in std::mem::take(&mut self.files) {
            self.guest.release(opened)?;
        }
        for opened in std::mem::take(&mut self.directories) {
            self.guest.releasedir(opened.node, opened.file)?;
        }
        for (node, count) in std::mem::take(&mut self.known) {
            self.guest.forget(NodeId::new(node), count)?;
        }
        // Behind the FORGETs, which may be batched and carried out later.
        self.guest.getattr(NodeId::ROOT, None)?;
        let name = self.name()?;
        let worker = fixture.last_worker()?;
        descriptors(worker, &name)
    }
}

/// Descriptors of a process whose path has `name` in it: open files, and those with `O_PATH`.
fn descriptors(process: u32, name: &str) -> Result<(usize, usize)> {
    let (mut open, mut paths) = (0, 0);
    for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
        let entry = entry?;
        let target = fs::read_link(entry.path()).unwrap_or_default();
        if !target.to_string_lossy().contains(name) {
            continue;
        }
        let number = entry.file_name();
        let info = format!("/proc/{process}/fdinfo/{}", number.to_string_lossy());
        let info = fs::read_to_string(info).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = u32::from_str_radix(flags.unwrap_or_default().trim(), 8)?;
        match flags & OFlags::PATH.bits() {
            0 => open += 1,
            _ => paths += 1,
        }
    }
    Ok((open, paths))
}

fn describe(directory: &Path, below: &Path, tree: &mut Tree) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let (path, name) = (entry.path(), below.join(entry.file_name()));
        let stat = path.symlink_metadata()?;
        let mut content = Vec::new();
        let mut flags = None;
        if stat.is_file() {
            content = fs::read(&path)?;
        } else if stat.is_symlink() {
            content = fs::read_link(&path)?.into_os_string().into_encoded_bytes();
        } else if stat.is_dir() {
            describe(&path, &name, tree)?;
        }
        if stat.is_file() || stat.is_dir() {
            let found = rustix::fs::ioctl_getflags(fs::File::open(&path)?);
            flags = found.ok().map(|flags| flags.bits());
        }
        let found = Found {
            mode: stat.mode(),
            links: stat.nlink(),
            owner: (stat.uid(), stat.gid()),
            content,
            xattrs: xattrs(&path)?,
            flags,
        };
        tree.insert(name, found);
    }
    Ok(())
}

/// The extended attributes of what a path leads to.
fn xattrs(path: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names)?;
    let names = names[..len].split(|byte| *byte == 0);
    let mut found = BTreeMap::new();
    for name in names.filter(|name| !name.is_empty()) {
        let name = String::from_utf8(name.to_vec())?;
        let mut value = vec![0; 4096];
        let len = rustix::fs::lgetxattr(path, name.as_str(), &mut value)?;
        value.truncate(len);
        found.insert(name, value);
    }
    Ok(found)
}
