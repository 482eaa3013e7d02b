//! Workloads on names and small files. They are loops in one process, because processes start
//! slowly in some guests.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::work_dir::WorkDir;
use crate::workload::{Measured, timed};

/// Number of small files, and their size in bytes.
const SMALL_FILES: u32 = 2000;
const SMALL_SIZE: usize = 1536;

/// Number of files that are created in one directory.
const MANY_FILES: u32 = 5000;

/// Number of directories that are made and removed, and of files in each.
const MADE_DIRECTORIES: u32 = 100;
const MADE_FILES: u32 = 30;

/// Number of directories of the tree, and of files in each.
const TREE_DIRECTORIES: u32 = 40;
const TREE_FILES: u32 = 50;

fn small(dir: &WorkDir, number: u32) -> PathBuf {
    dir.path(format!("small/{number:05}"))
}

/// Makes many small files in one directory.
pub(crate) fn make_small(dir: &WorkDir) -> Result<()> {
    fs::create_dir(dir.path("small"))?;
    for number in 0..dir.scaled(SMALL_FILES) {
        fs::write(small(dir, number), [b'x'; SMALL_SIZE])?;
    }
    Ok(())
}

/// Makes directories with files in them, two levels deep.
pub(crate) fn make_tree(dir: &WorkDir) -> Result<()> {
    for directory in 0..dir.scaled(TREE_DIRECTORIES) {
        let path = dir.path(format!("tree/{}/{directory:03}", directory % 5));
        fs::create_dir_all(&path)?;
        for file in 0..TREE_FILES {
            fs::write(path.join(format!("file-{file:03}.txt")), b"some text\n")?;
        }
    }
    Ok(())
}

/// Calls `look` for every entry beneath `directory`.
fn walk(directory: &Path, look: &mut impl FnMut(&fs::DirEntry) -> Result<()>) -> Result<u64> {
    let mut entries = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        look(&entry)?;
        entries += 1;
        if entry.file_type()?.is_dir() {
            entries += walk(&entry.path(), look)?;
        }
    }
    Ok(entries)
}

/// What `find` does: names and types, attributes only of directories.
pub(crate) fn find(dir: &WorkDir) -> Result<Measured> {
    timed(|| walk(&dir.path("tree"), &mut |_| Ok(())))
}

/// What `ls -lR` does: the attributes of everything.
pub(crate) fn list_long(dir: &WorkDir) -> Result<Measured> {
    timed(|| {
        let mut bytes = 0;
        let entries = walk(&dir.path("tree"), &mut |entry| {
            bytes += entry.metadata()?.size();
            Ok(())
        })?;
        ensure!(bytes > 0, "the tree is empty");
        Ok(entries)
    })
}

/// Reads each small file whole.
pub(crate) fn cat(dir: &WorkDir) -> Result<Measured> {
    let files = dir.scaled(SMALL_FILES);
    let mut content = vec![0; 1 << 17];
    timed(|| {
        for number in 0..files {
            let mut file = File::open(small(dir, number))?;
            let mut length = 0;
            loop {
                match file.read(&mut content)? {
                    0 => break,
                    read => length += read,
                }
            }
            ensure!(length == SMALL_SIZE, "file {number} has {length} bytes");
        }
        Ok(files.into())
    })
}

/// Creates small files with content.
pub(crate) fn create(dir: &WorkDir) -> Result<Measured> {
    let files = dir.scaled(1000);
    let directory = dir.path("created");
    timed(|| {
        fs::create_dir(&directory)?;
        for number in 0..files {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(directory.join(number.to_string()))?
                .write_all(&[b'y'; SMALL_SIZE])?;
        }
        Ok(files.into())
    })
}

/// Creates many files in one directory, as unpacking and build systems do.
pub(crate) fn create_many(dir: &WorkDir) -> Result<Measured> {
    let files = dir.scaled(MANY_FILES);
    let directory = dir.path("many");
    timed(|| {
        fs::create_dir(&directory)?;
        for number in 0..files {
            fs::write(directory.join(format!("{number:05}")), b"a line\n")?;
        }
        Ok(files.into())
    })
}

/// Makes directories with files in them and removes them again.
pub(crate) fn tree_made_and_removed(dir: &WorkDir) -> Result<Measured> {
    let directories = dir.scaled(MADE_DIRECTORIES);
    let tree = dir.path("made");
    timed(|| {
        fs::create_dir(&tree)?;
        for directory in 0..directories {
            let path = tree.join(format!("{directory:03}"));
            fs::create_dir(&path)?;
            for file in 0..MADE_FILES {
                fs::write(path.join(format!("{file:02}")), b"a line\n")?;
            }
        }
        fs::remove_dir_all(&tree)?;
        Ok(u64::from(directories * MADE_FILES))
    })
}

/// What `chmod -R` does: looks at every entry of the tree and changes its mode, there and back.
pub(crate) fn chmod_tree(dir: &WorkDir) -> Result<Measured> {
    let mut changed = 0;
    timed(|| {
        for bit in [0, 0o040] {
            changed += walk(&dir.path("tree"), &mut |entry| {
                let mode = entry.metadata()?.mode() & !0o040 | bit;
                Ok(fs::set_permissions(
                    entry.path(),
                    fs::Permissions::from_mode(mode),
                )?)
            })?;
        }
        Ok(changed)
    })
}

/// Asks for every small file's attributes, over and over.
pub(crate) fn stat(dir: &WorkDir) -> Result<Measured> {
    let (files, rounds) = (dir.scaled(SMALL_FILES), 3);
    timed(|| {
        for _ in 0..rounds {
            for number in 0..files {
                fs::symlink_metadata(small(dir, number))?;
            }
        }
        Ok((files * rounds).into())
    })
}

/// Asks for names that are not there, a few over and over, as compilers and shells do.
pub(crate) fn missing(dir: &WorkDir) -> Result<Measured> {
    let calls = dir.scaled(6000);
    timed(|| {
        for number in 0..calls {
            let found = fs::symlink_metadata(dir.path(format!("missing-{}", number % 100)));
            let error = found.err().context("a name exists that should not")?;
            ensure!(error.kind() == ErrorKind::NotFound, "{error}");
        }
        Ok(calls.into())
    })
}

/// Renames every small file.
pub(crate) fn rename(dir: &WorkDir) -> Result<Measured> {
    let files = dir.scaled(SMALL_FILES);
    timed(|| {
        for number in 0..files {
            fs::rename(small(dir, number), dir.path(format!("small/new-{number}")))?;
        }
        Ok(files.into())
    })
}

/// Removes every small file.
pub(crate) fn unlink(dir: &WorkDir) -> Result<Measured> {
    let files = dir.scaled(SMALL_FILES);
    timed(|| {
        for number in 0..files {
            fs::remove_file(small(dir, number))?;
        }
        Ok(files.into())
    })
}

/// Makes directories.
pub(crate) fn mkdir(dir: &WorkDir) -> Result<Measured> {
    let directories = dir.scaled(1000);
    timed(|| {
        for number in 0..directories {
            fs::create_dir(dir.path(number.to_string()))?;
        }
        Ok(directories.into())
    })
}

/// Removes the tree.
pub(crate) fn remove_tree(dir: &WorkDir) -> Result<Measured> {
    let tree = dir.path("tree");
    let entries = walk(&tree, &mut |_| Ok(()))?;
    timed(|| {
        fs::remove_dir_all(&tree)?;
        Ok(entries)
    })
}
