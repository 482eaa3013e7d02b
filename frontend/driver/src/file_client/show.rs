//! `ls`, `stat`, `tree`, `df`: output for people.

use std::io::Write;

use gangplank_fuse::{NodeId, StatxIn};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::error::{Error, Failures, Result};
use super::format;
use super::listing::MAX_DEPTH;
use super::path::{LastLink, Node, Share, text};

/// All fields of statx(2) before Linux 5.8 (`STATX_ALL`), birth time included.
const STATX_ALL: u32 = 0xfff;
/// `STATX_BTIME`.
const STATX_BTIME: u32 = 0x800;

impl Share {
    /// Lists directories and files as `ls -l` does.
    pub(super) fn list(
        &self,
        paths: &[Vec<u8>],
        all: bool,
        human: bool,
        out: &mut impl Write,
    ) -> Result<()> {
        let mut failures = Failures::default();
        for (number, path) in paths.iter().enumerate() {
            let heading = (paths.len() > 1).then_some(if number == 0 { "" } else { "\n" });
            failures.note(self.list_one(path, (all, human), heading, out))?;
        }
        failures.into_result()
    }

    /// Lists a directory or a file. A directory has its name above it if there is a `heading`,
    /// which separates it from the list before.
    fn list_one(
        &self,
        path: &[u8],
        (all, human): (bool, bool),
        heading: Option<&str>,
        out: &mut impl Write,
    ) -> Result<()> {
        let node = self.find(path, LastLink::Follow)?;
        if node.kind() != FileType::Directory {
            let line = self.line(path, &node, human)?;
            return table(&[line], out);
        }
        if let Some(gap) = heading {
            writeln!(out, "{gap}{}:", text(path))?;
        }
        let mut lines = Vec::new();
        for (name, node) in self.entries(&node, &text(path))? {
            if all || !name.starts_with(b".") {
                lines.push(self.line(&name, &node, human)?);
            }
        }
        table(&lines, out)
    }

    /// One line of a listing, column by column.
    fn line(&self, name: &[u8], node: &Node, human: bool) -> Result<[String; 7]> {
        let attr = &node.attr;
        let mut shown = text(name);
        if node.kind() == FileType::Symlink {
            let target = self.target(node, &shown)?;
            shown = format!("{shown} -> {}", text(&target));
        }
        let size = match node.kind() {
            FileType::CharacterDevice | FileType::BlockDevice => format::size(attr),
            _ if human => format::bytes(attr.size),
            _ => format::size(attr),
        };
        Ok([
            format::mode(attr.mode),
            attr.nlink.to_string(),
            attr.uid.to_string(),
            attr.gid.to_string(),
            size,
            format::time(attr.mtime),
            shown,
        ])
    }

    /// Shows everything that is known of a file.
    pub(super) fn stat(&self, path: &[u8], out: &mut impl Write) -> Result<()> {
        let node = self.find(path, LastLink::Follow)?;
        let shown = text(path);
        let path = shown.as_str();
        let attr = &node.attr;
        let kind = format::kind(node.kind());
        writeln!(out, "  File: {path}")?;
        if node.kind() == FileType::Symlink {
            writeln!(out, "Target: {}", text(&self.target(&node, path)?))?;
        }
        writeln!(out, "  Type: {kind}")?;
        writeln!(out, "  Size: {}", format::size(attr))?;
        writeln!(
            out,
            "Blocks: {} of 512 bytes, I/O in {}",
            attr.blocks, attr.blksize
        )?;
        let permissions = attr.mode & 0o7777;
        writeln!(out, "  Mode: {permissions:04o} {}", format::mode(attr.mode))?;
        writeln!(out, " Owner: {}:{}", attr.uid, attr.gid)?;
        writeln!(out, " Inode: {}, links: {}", attr.ino, attr.nlink)?;
        let mut time = |what, seconds, nanoseconds: u32| {
            let time = format::time(seconds);
            let second = seconds.cast_signed().rem_euclid(60);
            writeln!(out, "{what}: {time}:{second:02}.{nanoseconds:09} UTC")
        };
        time("Access", attr.atime, attr.atimensec)?;
        time("Modify", attr.mtime, attr.mtimensec)?;
        time("Change", attr.ctime, attr.ctimensec)?;
        let args = StatxIn {
            sx_mask: STATX_ALL,
            ..StatxIn::default()
        };
        let answer = match self.session.statx(node.id, args) {
            Ok(answer) => answer,
            // Not every daemon knows STATX. There is no birth time then.
            Err(error) if error.errno() == Some(Errno::NOSYS) => return Ok(()),
            Err(source) => {
                return Err(Error::Refused {
                    what: "look at",
                    path: path.to_owned(),
                    source,
                });
            }
        };
        if answer.stat.mask & STATX_BTIME != 0 {
            let born = answer.stat.btime;
            time(" Birth", born.tv_sec.cast_unsigned(), born.tv_nsec)?;
        }
        Ok(())
    }

    /// Shows a directory and everything below it.
    pub(super) fn tree(&self, path: &[u8], out: &mut impl Write) -> Result<()> {
        let node = self.find(path, LastLink::Follow)?;
        let shown = text(path);
        let path = shown.as_str();
        writeln!(out, "{path}")?;
        let mut counts = (0, 0);
        if node.kind() == FileType::Directory {
            self.branches(&node, path, &mut Vec::new(), &mut counts, out)?;
        }
        let (directories, others) = counts;
        writeln!(out, "\n{directories} directories, {others} others")?;
        Ok(())
    }

    /// Shows the entries of a directory. `last` says for each level above whether its directory was
    /// the last of its own.
    fn branches(
        &self,
        directory: &Node,
        path: &str,
        last: &mut Vec<bool>,
        counts: &mut (u64, u64),
        out: &mut impl Write,
    ) -> Result<()> {
        if last.len() >= MAX_DEPTH {
            let why = "directories are too deep within one another";
            let path = path.to_owned();
            return Err(Error::Path { path, why });
        }
        let mut entries = self.entries(directory, path)?.into_iter().peekable();
        while let Some((name, node)) = entries.next() {
            let is_last = entries.peek().is_none();
            for above in &*last {
                write!(out, "{}", if *above { "    " } else { "│   " })?;
            }
            let corner = if is_last { "└── " } else { "├── " };
            write!(out, "{corner}{}", text(&name))?;
            if node.kind() == FileType::Symlink {
                write!(out, " -> {}", text(&self.target(&node, path)?))?;
            }
            writeln!(out)?;
            if node.kind() == FileType::Directory {
                counts.0 += 1;
                let below = format!("{path}/{}", text(&name));
                last.push(is_last);
                self.branches(&node, &below, last, counts, out)?;
                last.pop();
            } else {
                counts.1 += 1;
            }
        }
        Ok(())
    }

    /// Shows the free space.
    pub(super) fn space(&self, human: bool, out: &mut impl Write) -> Result<()> {
        let figures = self.session.statfs(NodeId::ROOT);
        let figures = figures.map_err(|source| Error::Refused {
            what: "look at",
            path: "/".to_owned(),
            source,
        })?;
        let unit = u64::from(figures.frsize.max(1));
        let space = |blocks: u64| match human {
            true => format::bytes(blocks.saturating_mul(unit)),
            false => (blocks.saturating_mul(unit) / 1024).to_string(),
        };
        let used = figures.blocks.saturating_sub(figures.bfree);
        let files_used = figures.files.saturating_sub(figures.ffree);
        table(
            &[
                ["", "total", "used", "available"].map(str::to_owned),
                [
                    if human { "space" } else { "KiB" }.to_owned(),
                    space(figures.blocks),
                    space(used),
                    space(figures.bavail),
                ],
                [
                    "files".to_owned(),
                    figures.files.to_string(),
                    files_used.to_string(),
                    figures.ffree.to_string(),
                ],
            ],
            out,
        )
    }
}

/// Writes rows with aligned columns: numbers to the right, the first and the last column to the
/// left.
fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]], out: &mut impl Write) -> Result<()> {
    let mut widths = [0; COLUMNS];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            match column {
                0 => write!(out, "{cell:<width$}")?,
                _ if column + 1 == COLUMNS && COLUMNS > 4 => write!(out, " {cell}")?,
                _ => write!(out, " {cell:>width$}")?,
            }
        }
        writeln!(out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_one_another() {
        let row = |cells: [&str; 5]| cells.map(str::to_owned);
        let mut out = Vec::new();
        let rows = [
            row(["-rw", "1", "1000", "5", "a name"]),
            row(["d", "12", "0", "4096", "b"]),
        ];
        table(&rows, &mut out).unwrap();
        let expected = "-rw  1 1000    5 a name\nd   12    0 4096 b\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
