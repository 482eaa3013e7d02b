//! Writing an initramfs archive: the "newc" cpio format of the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive under construction; everything in it belongs to root.
pub struct Archive<W: Write> {
    out: W,
    written: usize,
    entries: u32,
}

impl<W: Write> Archive<W> {
    /// An empty archive written to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            written: 0,
            entries: 0,
        }
    }

    /// Adds the directory `path` (no leading slash; parents come first).
    ///
    /// # Errors
    /// When writing fails.
    pub fn directory(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.entry(path, DIRECTORY | mode, (0, 0), &[])
    }

    /// Adds the regular file `path`.
    ///
    /// # Errors
    /// When writing fails, or the content is 4 GiB or more.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(path, REGULAR | mode, (0, 0), content)
    }

    /// Adds the symbolic link `path` to `target`.
    ///
    /// # Errors
    /// When writing fails.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds the character device `path` with its major and minor number.
    ///
    /// # Errors
    /// When writing fails.
    pub fn character(&mut self, path: &str, mode: u32, device: (u32, u32)) -> io::Result<()> {
        self.entry(path, CHARACTER | mode, device, &[])
    }

    /// Ends the archive and returns what it was written to.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        let size = u32::try_from(data.len())
            .map_err(|_| io::Error::other(format!("{path} is too large for a cpio archive")))?;
        let name_size = u32::try_from(path.len() + 1).map_err(io::Error::other)?;
        self.entries += 1;
        let (inode, owner, links, time) = (self.entries, 0_u32, 1_u32, 0_u32);
        // Header fields in order: ino, mode, uid, gid, nlink, mtime, filesize, device major and
        // minor of the file, of the node, namesize, check (unused by "070701").
        let fields = [
            inode, mode, owner, owner, links, time, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        self.put(b"070701")?;
        for field in fields {
            self.put(format!("{field:08x}").as_bytes())?;
        }
        self.put(path.as_bytes())?;
        self.put(&[0])?;
        self.pad()?;
        self.put(data)?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.out.write_all(bytes)
    }

    /// Names and contents both end on a multiple of four bytes.
    fn pad(&mut self) -> io::Result<()> {
        let missing = self.written.next_multiple_of(4) - self.written;
        self.put(&[0; 3][..missing])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_entries_start_on_multiples_of_four() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("d", 0o755).unwrap();
        archive.file("d/one", 0o644, b"x").unwrap();
        archive.symlink("d/link", "one").unwrap();
        let bytes = archive.finish().unwrap();
        let starts: Vec<usize> = bytes
            .windows(6)
            .enumerate()
            .filter(|(_, window)| window == b"070701")
            .map(|(at, _)| at)
            .collect();
        assert_eq!(starts.len(), 4, "three entries and the trailer");
        assert!(starts.iter().all(|at| at % 4 == 0), "{starts:?}");
    }

    #[test]
    fn archive_header_spells_sizes_in_eight_hexadecimal_digits() {
        let mut archive = Archive::new(Vec::new());
        archive.file("name", 0o640, b"0123456789abcdef!").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(&bytes[14..22], b"000081a0", "mode");
        assert_eq!(&bytes[54..62], b"00000011", "file size");
        assert_eq!(&bytes[94..102], b"00000005", "name size with its NUL");
    }
}
