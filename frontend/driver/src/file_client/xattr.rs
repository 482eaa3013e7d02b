//! `xattr`: extended attributes.

use std::ffi::{CString, OsStr};
use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;

use gangplank_fuse::SetxattrIn;
use gangplank_fuse::reply::decode_xattr_names;
use gangplank_service::output::Output;
use rustix::io::Errno;

use super::actions::XattrAction;
use super::error::{Error, Failures, Result};
use super::open_file::refused;
use super::path::{LastLink, Node, Share, text};
use super::{bytes_of, each};
use crate as driver;

/// Longest value and longest list (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX` of linux/limits.h).
const MAX_LEN: u32 = 65_536;

impl Share {
    /// Carries out an `xattr` command.
    pub(super) fn change_xattrs(&self, action: &XattrAction, out: &mut Output) -> Result<()> {
        match action {
            XattrAction::List { paths } => {
                let paths = self.expand_all(bytes_of(paths))?;
                let mut failures = Failures::default();
                for path in &paths {
                    failures.note(self.list_xattrs(path, paths.len() > 1, out))?;
                }
                failures.into_result()
            }
            XattrAction::Get { name, path } => self.get_xattr(name, path.as_bytes(), out),
            XattrAction::Set { name, value, paths } => {
                let name = attribute(name)?;
                each(&self.expand_all(bytes_of(paths))?, |path| {
                    let node = self.find(path, LastLink::Follow)?;
                    self.set_xattr(&node, &name, value.as_bytes(), &text(path))
                })
            }
            XattrAction::Remove { name, paths } => {
                let name = attribute(name)?;
                each(&self.expand_all(bytes_of(paths))?, |path| {
                    let node = self.find(path, LastLink::Follow)?;
                    let removed = self.session.removexattr(node.id, &name);
                    removed.map_err(|source| refused("remove an attribute of", &text(path), source))
                })
            }
        }
    }

    fn list_xattrs(&self, path: &[u8], is_named: bool, out: &mut impl Write) -> Result<()> {
        let node = self.find(path, LastLink::Follow)?;
        for name in self.xattr_names(&node, &text(path))? {
            match is_named {
                true => writeln!(out, "{}: {}", text(path), text(name.as_bytes()))?,
                false => writeln!(out, "{}", text(name.as_bytes()))?,
            }
        }
        Ok(())
    }

    fn get_xattr(&self, name: &OsStr, path: &[u8], out: &mut Output) -> Result<()> {
        let name = attribute(name)?;
        let node = self.find(path, LastLink::Follow)?;
        let value = self.session.getxattr(node.id, &name, MAX_LEN);
        let value = value.map_err(|source| refused("read an attribute of", &text(path), source))?;
        out.write_all(&value)?;
        if out.file().is_terminal() {
            writeln!(out)?;
        }
        Ok(())
    }

    fn xattr_names(&self, node: &Node, path: &str) -> Result<Vec<CString>> {
        let list = match self.session.listxattr(node.id, MAX_LEN) {
            Ok(list) => list,
            Err(error) if has_none(&error) => return Ok(Vec::new()),
            Err(source) => return Err(refused("list the attributes of", path, source)),
        };
        let names = decode_xattr_names(&list).map(|name| {
            let name = name.ok().and_then(|name| CString::new(name).ok());
            name.ok_or_else(|| Error::Path {
                path: path.to_owned(),
                why: "the daemon's list of attributes ends amid a name",
            })
        });
        names.collect()
    }

    /// All extended attributes of a file; none if the share has no such thing.
    pub(super) fn xattrs(&self, node: &Node, path: &str) -> Result<Vec<(CString, Vec<u8>)>> {
        let mut found = Vec::new();
        for name in self.xattr_names(node, path)? {
            match self.session.getxattr(node.id, &name, MAX_LEN) {
                Ok(value) => found.push((name, value)),
                // Another program has removed it.
                Err(error) if error.errno() == Some(Errno::NODATA) => {}
                Err(source) => return Err(refused("read an attribute of", path, source)),
            }
        }
        Ok(found)
    }

    /// Sets an attribute, whether it exists or not.
    pub(super) fn set_xattr(
        &self,
        node: &Node,
        name: &CString,
        value: &[u8],
        path: &str,
    ) -> Result<()> {
        let args = SetxattrIn {
            size: u32::try_from(value.len()).unwrap_or(u32::MAX),
            ..SetxattrIn::default()
        };
        let set = self.session.setxattr(node.id, name, value, args);
        set.map_err(|source| refused("set an attribute of", path, source))
    }
}

fn has_none(error: &driver::Error) -> bool {
    matches!(error.errno(), Some(Errno::OPNOTSUPP | Errno::NOSYS))
}

fn attribute(name: &OsStr) -> Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| Error::Word {
        word: text(name.as_bytes()),
        why: "a name cannot hold a NUL",
    })
}
