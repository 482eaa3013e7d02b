//! Single files and the tree of names: copies, listings, and what is wrong with a command line.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use gangplank_tests::tools;
use rustix::process::Signal;

use super::client::{done, failed, pattern, run};
use crate::fixture::Fixture;

#[test]
fn sixty_four_mebibytes_are_copied_both_ways_unchanged() -> Result<()> {
    for mut fixture in Fixture::each(&[])? {
        let elsewhere = tempfile::tempdir()?;
        let (there, back) = (
            elsewhere.path().join("there"),
            elsewhere.path().join("back"),
        );
        // Not a whole number of requests.
        let data = pattern((64 << 20) + 12_345);
        fs::write(&there, &data)?;
        fs::set_permissions(&there, fs::Permissions::from_mode(0o640))?;
        let (there, back_path) = (there.display().to_string(), back.display().to_string());
        done(&mut fixture, &["cp", &there, ":big"])?;
        let in_share = fixture.share.path().join("big");
        ensure!(
            fs::read(&in_share)? == data,
            "what arrived is not what was sent"
        );
        ensure!(fs::metadata(&in_share)?.permissions().mode() & 0o777 == 0o640);
        done(&mut fixture, &["cp", ":big", ":again"])?;
        done(&mut fixture, &["cp", ":again", &back_path])?;
        ensure!(
            fs::read(&back)? == data,
            "what came back is not what was sent"
        );
        ensure!(fs::metadata(&back)?.permissions().mode() & 0o777 == 0o640);
        // Overwriting a longer file with a shorter one leaves none of the old data.
        fs::write(&back, b"short")?;
        done(&mut fixture, &["cp", &back_path, ":big"])?;
        ensure!(done(&mut fixture, &["cat", "big"])? == "short");
    }
    Ok(())
}

#[test]
fn a_directory_is_listed_as_ls_does() -> Result<()> {
    let mut fixture = Fixture::ours(&[])?;
    let share = fixture.share.path().to_owned();
    fs::create_dir(share.join("dir"))?;
    fs::write(share.join("file"), b"12345")?;
    fs::set_permissions(share.join("file"), fs::Permissions::from_mode(0o4750))?;
    fs::write(share.join(".hidden"), b"")?;
    symlink("dir/nowhere", share.join("link"))?;
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(951_782_400);
    File::options()
        .write(true)
        .open(share.join("file"))?
        .set_modified(time)?;

    let listing = done(&mut fixture, &["ls"])?;
    let rows: Vec<Vec<&str>> = listing
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    ensure!(rows.len() == 3, "{listing}");
    ensure!(
        rows[0][0] == "drwxr-xr-x" && rows[0][7] == "dir",
        "{listing}"
    );
    ensure!(
        rows[1][0] == "-rwsr-x---" && rows[1][4..] == ["5", "2000-02-29", "00:00", "file"],
        "{listing}"
    );
    ensure!(rows[2][0].starts_with('l'), "{listing}");
    ensure!(rows[2][7..] == ["link", "->", "dir/nowhere"], "{listing}");
    ensure!(done(&mut fixture, &["ls", "--all"])?.contains(".hidden"));
    ensure!(done(&mut fixture, &["ls", "file", "/dir"])?.contains("\n/dir:\n"));

    let stat = done(&mut fixture, &["stat", "file"])?;
    for part in [
        "regular file",
        "Size: 5",
        "4750 -rwsr-x---",
        "00:00:00.000000000",
        "Birth",
    ] {
        ensure!(stat.contains(part), "{part} is missing:\n{stat}");
    }
    let tree = done(&mut fixture, &["tree"])?;
    let expected =
        ".\n├── .hidden\n├── dir\n├── file\n└── link -> dir/nowhere\n\n1 directories, 3 others\n";
    ensure!(tree == expected, "{tree}");
    ensure!(done(&mut fixture, &["df"])?.contains("KiB"));
    Ok(())
}

#[test]
fn the_tree_of_names_is_changed_by_hand() -> Result<()> {
    for mut fixture in Fixture::each(&[])? {
        let share = fixture.share.path().to_owned();
        done(&mut fixture, &["mkdir", "--parents", "a/b/c"])?;
        done(&mut fixture, &["mkdir", "--parents", "a/b/c"])?;
        let output = run(&mut fixture, &["write", "a/b/file"], b"one")?;
        ensure!(output.status.success());
        let output = run(&mut fixture, &["write", "--append", "a/b/file"], b" two")?;
        ensure!(output.status.success());
        ensure!(fs::read(share.join("a/b/file"))? == b"one two");
        ensure!(done(&mut fixture, &["cat", "a/b/file", "/a/./b/../b/file"])? == "one twoone two");
        done(&mut fixture, &["mv", "a/b/file", "a/b/c"])?;
        ensure!(
            share.join("a/b/c/file").exists(),
            "a file is moved into a directory"
        );
        done(&mut fixture, &["mv", "a/b/c/file", "a/renamed"])?;
        done(&mut fixture, &["ln", "a/renamed", "second"])?;
        done(&mut fixture, &["ln", "--symbolic", "a/b", "short-cut"])?;
        ensure!(fs::read_link(share.join("short-cut"))? == std::path::Path::new("a/b"));

        let (status, text) = failed(&mut fixture, &["ls", "short-cut/c"])?;
        ensure!(
            status == 1 && text.contains("symbolic link to a/b"),
            "{text}"
        );
        ensure!(text.contains("--follow"), "{text}");
        done(&mut fixture, &["--follow", "ls", "short-cut/c"])?;

        let (status, text) = failed(&mut fixture, &["rm", "a"])?;
        ensure!(status == 1 && text.contains("is a directory: a"), "{text}");
        done(
            &mut fixture,
            &["rm", "--recursive", "a", "second", "short-cut"],
        )?;
        ensure!(fs::read_dir(&share)?.next().is_none(), "everything is gone");
    }
    Ok(())
}

#[test]
fn mistakes_are_told_by_the_path_that_was_typed() -> Result<()> {
    let mut fixture = Fixture::ours(&[])?;
    fs::write(fixture.share.path().join("file"), b"")?;
    symlink("loop", fixture.share.path().join("loop"))?;
    for (arguments, expected) in [
        (&["cat", "a/b"][..], "no such file: a/b"),
        (&["ls", "file/below"], "not a directory: file/below"),
        (&["cat", "/"], "is a directory: /"),
        (&["mkdir", "file"], "cannot make file: MKDIR: File exists"),
        (
            &["--follow", "cat", "loop"],
            "too many symbolic links: loop",
        ),
        (&["cat", "loop"], "loop is a symbolic link to loop"),
        (&["cp", ":file", ":file"], "it is the same file"),
        (&["cp", "here", "there"], "begins with a colon"),
        (&["rm", "missing"], "no such file: missing"),
        (
            &["--tag=other", "ls"],
            "the share's tag is \"myfs\", not \"other\"",
        ),
    ] {
        let (status, text) = failed(&mut fixture, arguments)?;
        ensure!(
            status == 1 && text.contains(expected),
            "{arguments:?}: {text}"
        );
    }
    let (status, _) = failed(&mut fixture, &["cat"])?;
    ensure!(status == 2);
    Ok(())
}

#[test]
fn a_daemon_that_is_not_there_has_a_status_of_its_own() -> Result<()> {
    let mut fixture = Fixture::ours(&[])?;
    fixture.daemon.signal_all(Signal::KILL)?;
    fs::remove_file(fixture.daemon.socket())?;
    let (status, text) = failed(&mut fixture, &["ls"])?;
    ensure!(status == 3, "{status}: {text}");
    ensure!(text.contains("cannot connect to a daemon at"), "{text}");
    Ok(())
}

/// `cat | head` ends as other programs do, by SIGPIPE and without a message. Success would be
/// wrong, because the reader may have failed.
#[test]
fn a_reader_who_has_gone_ends_the_client_by_sigpipe() -> Result<()> {
    let fixture = Fixture::ours(&[])?;
    fs::write(fixture.share.path().join("big"), vec![b'x'; 4 << 20])?;
    for arguments in [&["cat", "big"][..], &["ls"]] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let ended = Command::new(tools::frontend()?)
            .args(["fs", "--socket"])
            .arg(fixture.daemon.socket())
            .args(arguments)
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()?;
        let signal = ended.status.signal();
        ensure!(
            signal == Some(Signal::PIPE.as_raw()),
            "{arguments:?}: {ended:?}"
        );
        ensure!(ended.stderr.is_empty(), "{arguments:?}: {ended:?}");
    }
    Ok(())
}

/// No silent loss: a failed write to standard output is an error, for listings and for data.
#[test]
fn output_that_cannot_be_written_is_an_error() -> Result<()> {
    let fixture = Fixture::ours(&[])?;
    fs::write(fixture.share.path().join("file"), b"no newline")?;
    let full = || File::options().write(true).open("/dev/full");
    // Open for reading only: the standard library ignores the error of a write to such a
    // descriptor.
    let unwritable = || File::open("/dev/null");
    for arguments in [&["cat", "file"][..], &["ls"], &["df"], &["stat", "file"]] {
        for output in [full()?, unwritable()?] {
            let ended = Command::new(tools::frontend()?)
                .args(["fs", "--socket"])
                .arg(fixture.daemon.socket())
                .args(arguments)
                .stdout(output)
                .output()?;
            let text = String::from_utf8_lossy(&ended.stderr);
            ensure!(ended.status.code() == Some(1), "{arguments:?}: {text}");
            ensure!(
                text.contains("cannot write to standard output"),
                "{arguments:?}: {text}"
            );
        }
    }
    Ok(())
}

/// A copy takes no more space than the file. A copy that fails changes nothing, and leaves nothing.
#[test]
fn copies_keep_holes_and_replace_a_file_in_one_step() -> Result<()> {
    for mut fixture in Fixture::each(&[])? {
        let elsewhere = tempfile::tempdir()?;
        let there = elsewhere.path().join("there");
        let file = File::create(&there)?;
        file.write_all_at(&pattern(10_000), 64 << 20)?;
        file.set_len(256 << 20)?;
        drop(file);
        let in_share = |name: &str| fixture.share.path().join(name);
        let (first, second) = (in_share("first"), in_share("second"));
        let back = elsewhere.path().join("back");
        let there_text = there.display().to_string();
        done(&mut fixture, &["cp", &there_text, ":first"])?;
        done(&mut fixture, &["cp", ":first", ":second"])?;
        done(
            &mut fixture,
            &["cp", ":second", &back.display().to_string()],
        )?;
        for copy in [&first, &second, &back] {
            let metadata = fs::metadata(copy)?;
            ensure!(metadata.len() == 256 << 20, "{copy:?}");
            ensure!(metadata.blocks() * 512 < 16 << 20, "{copy:?} has no holes");
            let mut data = vec![0; 10_000];
            File::open(copy)?.read_exact_at(&mut data, 64 << 20)?;
            ensure!(data == pattern(10_000), "{copy:?} has other data");
        }
        // What is opened before the copy shows the old contents: the new file is another one.
        let before = fs::metadata(&second)?.ino();
        done(&mut fixture, &["cp", ":first", ":second"])?;
        ensure!(fs::metadata(&second)?.ino() != before);

        let (status, text) = failed(&mut fixture, &["cp", &there_text, ":new/"])?;
        ensure!(
            status == 1 && text.contains("new/: there is no such directory"),
            "{text}"
        );
        fs::create_dir(fixture.share.path().join("full"))?;
        let (status, text) = failed(&mut fixture, &["cp", ":first", "/dev/full"])?;
        ensure!(
            status == 1 && text.contains("cannot write /dev/full"),
            "{text}"
        );
        let mut names: Vec<_> = fs::read_dir(fixture.share.path())?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<Result<_>>()?;
        names.sort();
        ensure!(names == ["first", "full", "second"], "{names:?}");
    }
    Ok(())
}

/// Each file is tried, and each error told. The daemon has nothing to complain of in its log.
#[test]
fn commands_go_on_after_an_error_and_leave_no_complaint_of_the_daemon() -> Result<()> {
    for mut fixture in Fixture::each(&[])? {
        let share = fixture.share.path().to_owned();
        for number in 0..200 {
            fs::write(share.join(format!("file{number}")), b"x")?;
        }
        for _ in 0..20 {
            done(&mut fixture, &["tree"])?;
            ensure!(!fixture.daemon.log().contains("does not hold"));
        }
        let (status, text) = failed(&mut fixture, &["rm", "missing", "file1", "gone", "file2"])?;
        ensure!(status == 1, "{status}");
        ensure!(text.contains("no such file: missing"), "{text}");
        ensure!(text.contains("no such file: gone"), "{text}");
        ensure!(!share.join("file1").exists() && !share.join("file2").exists());
    }
    Ok(())
}

/// `write --append` writes to the current end of the file, so it overwrites nothing that others
/// append.
#[test]
fn appending_finds_the_end_that_others_have_made() -> Result<()> {
    for mut fixture in Fixture::each(&[])? {
        let file = fixture.share.path().join("log");
        fs::write(&file, b"first ")?;
        let mut child = Command::new(tools::frontend()?)
            .args(["fs", "--socket"])
            .arg(fixture.daemon.socket())
            .args(["write", "--append", "log"])
            .stdin(Stdio::piped())
            .spawn()?;
        let mut input = child.stdin.take().context("no standard input")?;
        // More than a pipe holds: the file is open once this returns.
        input.write_all(&[b'a'; 1 << 20])?;
        File::options()
            .append(true)
            .open(&file)?
            .write_all(b"others")?;
        input.write_all(&[b'b'; 1 << 20])?;
        drop(input);
        ensure!(child.wait()?.success());
        let length = fs::metadata(&file)?.len();
        ensure!(length == (2 << 20) + 12, "{length}");
        fixture.serve_again()?;
    }
    Ok(())
}
