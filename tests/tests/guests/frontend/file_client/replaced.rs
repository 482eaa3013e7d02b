//! Copies that fail: what they would replace, and what they copy, stays.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use anyhow::{Result, ensure};
use gangplank_tests::process::User;
use rustix::process::{getgid, getuid};

use super::client::{done, failed, pattern};
use crate::fixture::Fixture;

/// A regular file that can be opened, and whose first byte cannot be read.
const UNREADABLE: &str = "/proc/self/mem";

/// The names in a directory.
fn names(directory: &Path) -> Result<Vec<String>> {
    let names =
        fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// It would remove the source before it is copied.
#[test]
fn sync_into_a_directory_above_the_source_removes_nothing() -> Result<()> {
    for mut fixture in Fixture::each(&[])? {
        let share = fixture.share.path().to_owned();
        fs::create_dir_all(share.join("a/x/b/x"))?;
        fs::write(share.join("a/x/b/file"), b"data")?;
        fs::create_dir_all(share.join("a/same"))?;
        fs::write(share.join("a/same/same"), b"data")?;
        symlink("a/x", share.join("link"))?;
        for (from, to) in [
            (":a/x", ":a"),
            (":a/x/b", ":a"),
            (":/a/x/../x/b", ":a/../a"),
            (":link/b", ":a"),
            (":a/x/b", ":/"),
            (":a/x/b/x", ":link"),
            (":a/same/same", ":a"),
        ] {
            for options in [&["--delete", "--dry-run"][..], &["--delete"]] {
                let arguments = [&["--follow", "sync"], options, &[from, to]].concat();
                let (status, text) = failed(&mut fixture, &arguments)?;
                ensure!(
                    status == 1 && text.contains("in the directory that it would replace"),
                    "{arguments:?}: {text}"
                );
                ensure!(fs::read(share.join("a/x/b/file"))? == b"data");
                ensure!(fs::read(share.join("a/same/same"))? == b"data");
            }
        }
        // Nothing is removed here.
        done(&mut fixture, &["sync", ":a/x/b", ":a"])?;
        ensure!(names(&share.join("a"))? == ["file", "same", "x"]);
        done(&mut fixture, &["sync", "--delete", ":a/x/b/file", ":a/x"])?;
        ensure!(names(&share.join("a/x"))? == ["b", "file"]);
    }
    Ok(())
}

/// In both directions. What is in the way goes when what replaces it is complete.
#[test]
fn a_copy_that_fails_leaves_links_and_directories_where_they_were() -> Result<()> {
    let mut fixture = Fixture::ours(&[])?;
    let share = fixture.share.path().to_owned();
    symlink("target", share.join("link"))?;
    fs::create_dir(share.join("mem"))?;
    fs::write(share.join("mem/file"), b"old")?;
    let before = names(&share)?;
    failed(&mut fixture, &["cp", "-r", UNREADABLE, ":link"])?;
    ensure!(fs::read_link(share.join("link"))? == Path::new("target"));
    failed(&mut fixture, &["sync", "--delete", UNREADABLE, ":"])?;
    ensure!(fs::read(share.join("mem/file"))? == b"old");
    ensure!(names(&share)? == before, "something else is left");

    // Something else replaces them all the same.
    let elsewhere = tempfile::tempdir()?;
    let tree = elsewhere.path().join("tree");
    fs::create_dir_all(tree.join("link"))?;
    fs::write(tree.join("link/file"), b"new")?;
    symlink("nowhere", tree.join("mem"))?;
    fs::write(tree.join("one"), b"one")?;
    fs::hard_link(tree.join("one"), tree.join("two"))?;
    fs::create_dir(share.join("one"))?;
    fs::create_dir(share.join("two"))?;
    fs::write(share.join("two/file"), b"old")?;
    let tree_name = tree.display().to_string();
    let back = elsewhere.path().join("back");
    fs::create_dir_all(back.join("mem"))?;
    fs::create_dir_all(back.join("two"))?;
    fs::write(back.join("link"), b"old")?;
    let back_name = back.display().to_string();
    for (from, to, there) in [
        (tree_name.as_str(), ":", share.as_path()),
        (":", back_name.as_str(), back.as_path()),
    ] {
        done(&mut fixture, &["sync", "--delete", from, to])?;
        ensure!(names(there)? == ["link", "mem", "one", "two"]);
        ensure!(fs::read(there.join("link/file"))? == b"new");
        ensure!(fs::read_link(there.join("mem"))? == Path::new("nowhere"));
        let [one, two] = ["one", "two"].map(|name| fs::metadata(there.join(name)));
        ensure!(one?.ino() == two?.ino(), "they are two files");
    }
    Ok(())
}

/// As what is in the way: a regular file.
#[test]
fn a_device_that_cannot_be_made_replaces_no_file() -> Result<()> {
    if !User::is_root() {
        eprintln!("SKIPPED: needs root");
        return Ok(());
    }
    let user = User::NOBODY;
    let mut fixture = Fixture::of_nobody()?;
    let file = fixture.share.path().join("null");
    fs::write(&file, b"old")?;
    chown(&file, Some(user.uid), Some(user.gid))?;
    failed(&mut fixture, &["cp", "-r", "/dev/null", ":null"])?;
    ensure!(fs::read(&file)? == b"old");
    ensure!(names(fixture.share.path())? == ["null"]);
    Ok(())
}

/// As every copy that replaces a file: its owner and its permissions stay.
#[test]
fn a_resumed_copy_keeps_who_may_read_the_file_that_it_replaces() -> Result<()> {
    let mut fixture = Fixture::ours(&[])?;
    let share = fixture.share.path().to_owned();
    let elsewhere = tempfile::tempdir()?;
    let source = elsewhere.path().join("file");
    fs::write(&source, pattern(10_000))?;
    fs::set_permissions(&source, fs::Permissions::from_mode(0o644))?;
    let back = elsewhere.path().join("back");
    let [source_name, back_name] = [&source, &back].map(|path| path.display().to_string());
    for (from, to, there) in [
        (source_name.as_str(), ":file", share.join("file")),
        (":file", back_name.as_str(), back.clone()),
    ] {
        let owner = match User::is_root() {
            true => (1000, 1001),
            false => (getuid().as_raw(), getgid().as_raw()),
        };
        fs::write(&there, b"private")?;
        chown(&there, Some(owner.0), Some(owner.1))?;
        fs::set_permissions(&there, fs::Permissions::from_mode(0o600))?;
        done(&mut fixture, &["cp", "--resume", from, to])?;
        ensure!(fs::read(&there)? == fs::read(&source)?);
        let metadata = fs::metadata(&there)?;
        ensure!((metadata.uid(), metadata.gid()) == owner, "{metadata:?}");
        ensure!(metadata.mode() & 0o7777 == 0o600, "{:o}", metadata.mode());

        // With the attributes of the source, it is readable as that is.
        fs::write(&there, b"private")?;
        done(&mut fixture, &["cp", "--resume", "-p", from, to])?;
        let mode = fs::metadata(match from.strip_prefix(':') {
            Some(name) => share.join(name),
            None => source.clone(),
        })?;
        let metadata = fs::metadata(&there)?;
        ensure!(metadata.mode() == mode.mode(), "{:o}", metadata.mode());

        // Begun with -p, continued without, when the file is new.
        let name = there.file_name().unwrap_or_default().to_string_lossy();
        let partial = there.with_file_name(format!(".{name}.gangplank-partial"));
        fs::remove_file(&there)?;
        fs::write(&partial, &pattern(10_000)[..5000])?;
        fs::set_permissions(&partial, fs::Permissions::from_mode(0o600))?;
        done(&mut fixture, &["cp", "--resume", from, to])?;
        let metadata = fs::metadata(&there)?;
        ensure!(metadata.mode() & 0o7777 == 0o644, "{:o}", metadata.mode());
    }
    Ok(())
}
