//! Workloads on names and small files, as loops in one process: starting processes is slow in some guests.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::place::Place;
use crate::workload::{Measured, timed};

/// Small files of `cat` and the like, and their size in bytes.
const SMALL_FILES: u32 = 2000;
const SMALL_SIZE: usize = 1536;

/// Shape of the tree that is walked.
const TREE_DIRECTORIES: u32 = 40;
const TREE_FILES: u32 = 50;

fn small(place: &Place, number: u32) -> PathBuf {
    place.path(format!("small/{number:05}"))
}

/// Many small files in one directory.
pub(crate) fn make_small(place: &Place) -> Result<()> {
    fs::create_dir(place.path("small"))?;
    for number in 0..place.scaled(SMALL_FILES) {
        fs::write(small(place, number), [b'x'; SMALL_SIZE])?;
    }
    Ok(())
}

/// Directories with files in them, two levels deep.
pub(crate) fn make_tree(place: &Place) -> Result<()> {
    for directory in 0..place.scaled(TREE_DIRECTORIES) {
        let path = place.path(format!("tree/{}/{directory:03}", directory % 5));
        fs::create_dir_all(&path)?;
        for file in 0..TREE_FILES {
            fs::write(path.join(format!("file-{file:03}.txt")), b"some text\n")?;
        }
    }
    Ok(())
}

/// All entries beneath `directory`, each looked at by `look`.
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
pub(crate) fn find(place: &Place) -> Result<Measured> {
    timed(|| walk(&place.path("tree"), &mut |_| Ok(())))
}

/// What `ls -lR` does: the attributes of everything.
pub(crate) fn list_long(place: &Place) -> Result<Measured> {
    timed(|| {
        let mut bytes = 0;
        let entries = walk(&place.path("tree"), &mut |entry| {
            bytes += entry.metadata()?.size();
            Ok(())
        })?;
        ensure!(bytes > 0, "the tree is empty");
        Ok(entries)
    })
}

/// Reads each small file whole.
pub(crate) fn cat(place: &Place) -> Result<Measured> {
    let files = place.scaled(SMALL_FILES);
    let mut content = vec![0; 1 << 17];
    timed(|| {
        for number in 0..files {
            let mut file = File::open(small(place, number))?;
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
pub(crate) fn create(place: &Place) -> Result<Measured> {
    let files = place.scaled(1000);
    let directory = place.path("created");
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

/// Asks for every small file's attributes, over and over.
pub(crate) fn stat(place: &Place) -> Result<Measured> {
    let (files, rounds) = (place.scaled(SMALL_FILES), 3);
    timed(|| {
        for _ in 0..rounds {
            for number in 0..files {
                fs::symlink_metadata(small(place, number))?;
            }
        }
        Ok((files * rounds).into())
    })
}

/// Asks for names that are not there, a few over and over, as compilers and shells do.
pub(crate) fn missing(place: &Place) -> Result<Measured> {
    let calls = place.scaled(6000);
    timed(|| {
        for number in 0..calls {
            let found = fs::symlink_metadata(place.path(format!("missing-{}", number % 100)));
            let error = found.err().context("a name is there that should not be")?;
            ensure!(error.kind() == ErrorKind::NotFound, "{error}");
        }
        Ok(calls.into())
    })
}

/// Renames every small file.
pub(crate) fn rename(place: &Place) -> Result<Measured> {
    let files = place.scaled(SMALL_FILES);
    timed(|| {
        for number in 0..files {
            fs::rename(
                small(place, number),
                place.path(format!("small/new-{number}")),
            )?;
        }
        Ok(files.into())
    })
}

/// Removes every small file.
pub(crate) fn unlink(place: &Place) -> Result<Measured> {
    let files = place.scaled(SMALL_FILES);
    timed(|| {
        for number in 0..files {
            fs::remove_file(small(place, number))?;
        }
        Ok(files.into())
    })
}

/// Makes directories.
pub(crate) fn mkdir(place: &Place) -> Result<Measured> {
    let directories = place.scaled(1000);
    timed(|| {
        for number in 0..directories {
            fs::create_dir(place.path(number.to_string()))?;
        }
        Ok(directories.into())
    })
}

/// Removes the tree.
pub(crate) fn remove_tree(place: &Place) -> Result<Measured> {
    let tree = place.path("tree");
    let entries = walk(&tree, &mut |_| Ok(()))?;
    timed(|| {
        fs::remove_dir_all(&tree)?;
        Ok(entries)
    })
}
