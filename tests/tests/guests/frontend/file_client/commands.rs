//! `du`, `find`, `xattr`, `touch`, `chmod`, `chown`, patterns, and names that are no UTF-8.

use std::ffi::OsStr;
use std::fs::{self, File, FileTimes};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Result, ensure};
use gangplank_tests::process::User;

use super::client::{done, failed, run};
use crate::fixture::Fixture;

#[test]
fn du_adds_up_what_is_below() -> Result<()> {
    for mut fixture in Fixture::each(&[])? {
        let share = fixture.share.path().to_owned();
        fs::create_dir_all(share.join("a/b"))?;
        fs::write(share.join("a/b/file"), vec![b'x'; 3 << 20])?;
        fs::hard_link(share.join("a/b/file"), share.join("a/again"))?;
        File::create(share.join("a/hole"))?.set_len(64 << 20)?;
        let kib = |told: &str| -> Result<Vec<(u64, String)>> {
            let rows = told.lines().map(|line| {
                let (size, path) = line.split_once('\t').unwrap_or_default();
                Ok((size.parse()?, path.to_owned()))
            });
            rows.collect()
        };
        let told = kib(&done(&mut fixture, &["du", "a"])?)?;
        let paths: Vec<_> = told.iter().map(|(_, path)| path.as_str()).collect();
        ensure!(paths == ["a/b", "a"], "{told:?}");
        // The file counts once, under the first of its names, and the hole takes nothing.
        ensure!((3072..3200).contains(&told[1].0), "{told:?}");
        let told = done(&mut fixture, &["du", "-s", "-h", "a"])?;
        ensure!(
            told.starts_with("3.") && told.ends_with(" MiB\ta\n"),
            "{told}"
        );
        let told = kib(&done(&mut fixture, &["du", "-a", "-b", "a/hole"])?)?;
        ensure!(told == [(64 << 20, "a/hole".to_owned())], "{told:?}");
        let told = done(&mut fixture, &["du", "-s", "a/*"])?;
        ensure!(told.lines().count() == 3, "{told}");
        let (status, text) = failed(&mut fixture, &["du", "missing"])?;
        ensure!(
            status == 1 && text.contains("no such file: missing"),
            "{text}"
        );
    }
    Ok(())
}

#[test]
fn find_takes_the_tests_of_find() -> Result<()> {
    let mut fixture = Fixture::ours(&[])?;
    let share = fixture.share.path().to_owned();
    fs::create_dir_all(share.join("src/deep/er"))?;
    fs::create_dir(share.join("empty"))?;
    for (name, len) in [
        ("src/a.c", 10),
        ("src/B.C", 0),
        ("src/deep/er/c.c", 5000),
        ("src/.d.c", 1),
    ] {
        fs::write(share.join(name), vec![b'x'; len])?;
    }
    symlink("a.c", share.join("src/link.c"))?;
    for (name, seconds) in [
        ("src/a.c", 1000),
        ("src/B.C", 2000),
        ("src/deep/er/c.c", 3000),
    ] {
        let time = UNIX_EPOCH + Duration::from_secs(seconds);
        let file = File::options().write(true).open(share.join(name))?;
        file.set_times(FileTimes::new().set_modified(time))?;
    }
    for (line, expected) in [
        (
            "src -name *.c -type f",
            &["src/.d.c", "src/a.c", "src/deep/er/c.c"][..],
        ),
        ("-iname b.c", &["./src/B.C"]),
        ("/src -type d -mindepth 1", &["/src/deep", "/src/deep/er"]),
        (
            "src -maxdepth 1 -name *.c ! -type l",
            &["src/.d.c", "src/a.c"],
        ),
        ("src -type l", &["src/link.c"]),
        ("src -type f -size +4k", &["src/deep/er/c.c"]),
        ("src -type f -size -2c -name B*", &["src/B.C"]),
        ("src -size 10c", &["src/a.c"]),
        (
            "src -newer src/a.c -name ?.[cC]",
            &["src/B.C", "src/deep/er/c.c"],
        ),
        (". -empty", &["./empty", "./src/B.C"]),
        ("src -path */er/*", &["src/deep/er/c.c"]),
    ] {
        let arguments: Vec<&str> = std::iter::once("find").chain(line.split(' ')).collect();
        let told = done(&mut fixture, &arguments)?;
        let told: Vec<&str> = told.lines().collect();
        ensure!(told == expected, "{line}: {told:?}");
    }
    let told = done(&mut fixture, &["find", "src", "-name", "a.c", "-print0"])?;
    ensure!(told == "src/a.c\0", "{told:?}");
    for (line, expected) in [
        ("-nme x", "-nme: no such test"),
        ("-type q", "q: a type is one of"),
        ("-size big", "big: a size is a number"),
        ("-name", "-name: its value is missing"),
        ("-newer missing", "no such file: missing"),
        ("missing -name x", "no such file: missing"),
        ("-name [a", "[a: "),
    ] {
        let arguments: Vec<&str> = std::iter::once("find").chain(line.split(' ')).collect();
        let (status, text) = failed(&mut fixture, &arguments)?;
        ensure!(status == 1 && text.contains(expected), "{line}: {text}");
    }
    Ok(())
}

#[test]
fn extended_attributes_are_listed_read_set_and_removed() -> Result<()> {
    let mut fixture = Fixture::ours(&["--xattr"])?;
    let share = fixture.share.path().to_owned();
    fs::write(share.join("file"), b"")?;
    fs::write(share.join("file2"), b"")?;
    done(
        &mut fixture,
        &["xattr", "set", "user.one", "value", "file", "file2"],
    )?;
    let value = OsStr::from_bytes(b"-\xff\n");
    let arguments = ["xattr", "set", "user.two"].map(OsStr::new);
    done(
        &mut fixture,
        &[&arguments[..], &[value, OsStr::new("file")]].concat(),
    )?;
    let mut buffer = [0; 16];
    let len = rustix::fs::getxattr(share.join("file"), "user.two", &mut buffer[..])?;
    ensure!(&buffer[..len] == value.as_bytes());
    ensure!(done(&mut fixture, &["xattr", "list", "file"])? == "user.one\nuser.two\n");
    let told = done(&mut fixture, &["xattr", "list", "file*"])?;
    ensure!(
        told == "file: user.one\nfile: user.two\nfile2: user.one\n",
        "{told}"
    );
    let output = run(&mut fixture, &["xattr", "get", "user.two", "file"], b"")?;
    ensure!(output.stdout == value.as_bytes(), "{output:?}");
    done(&mut fixture, &["xattr", "remove", "user.two", "file"])?;
    let (status, text) = failed(&mut fixture, &["xattr", "get", "user.two", "file"])?;
    ensure!(
        status == 1 && text.contains("cannot read an attribute of file"),
        "{text}"
    );
    Ok(())
}

#[test]
fn permissions_times_and_owners_are_set() -> Result<()> {
    for mut fixture in Fixture::each(&[])? {
        let share = fixture.share.path().to_owned();
        fs::create_dir_all(share.join("dir/below"))?;
        fs::write(share.join("dir/below/file"), b"")?;
        symlink("/etc/passwd", share.join("dir/link"))?;
        let mode =
            |name: &str| -> Result<u32> { Ok(fs::metadata(share.join(name))?.mode() & 0o7777) };
        done(&mut fixture, &["chmod", "640", "dir/below/file"])?;
        ensure!(mode("dir/below/file")? == 0o640);
        done(&mut fixture, &["chmod", "-R", "go=u,o-w,a+X", "dir"])?;
        ensure!(
            mode("dir/below/file")? == 0o664,
            "{:o}",
            mode("dir/below/file")?
        );
        ensure!(mode("dir/below")? == 0o775, "{:o}", mode("dir/below")?);
        done(&mut fixture, &["chmod", "-w", "dir/below/file"])?;
        ensure!(
            mode("dir/below/file")? & 0o222 == 0o020,
            "{:o}",
            mode("dir/below/file")?
        );
        done(&mut fixture, &["chmod", "u+s,+t", "dir"])?;
        ensure!(mode("dir")? == 0o5775, "{:o}", mode("dir")?);
        // Everything is changed, also if the change takes the right to list it.
        done(&mut fixture, &["chmod", "-R", "0", "dir"])?;
        ensure!(mode("dir/below/file")? == 0);
        done(&mut fixture, &["chmod", "-R", "755", "dir"])?;
        ensure!(mode("dir/below/file")? == 0o755);

        done(&mut fixture, &["touch", "new", "dir/below/file"])?;
        ensure!(fs::metadata(share.join("new"))?.len() == 0);
        done(&mut fixture, &["touch", "-c", "absent"])?;
        ensure!(!share.join("absent").exists());
        done(
            &mut fixture,
            &["touch", "-d", "2000-02-29 12:30:15.25", "new"],
        )?;
        let metadata = fs::metadata(share.join("new"))?;
        ensure!((metadata.mtime(), metadata.mtime_nsec()) == (951_827_415, 250_000_000));
        ensure!(metadata.atime() == 951_827_415);
        done(&mut fixture, &["touch", "-m", "-d", "@-5", "new"])?;
        let metadata = fs::metadata(share.join("new"))?;
        ensure!((metadata.mtime(), metadata.atime()) == (-5, 951_827_415));
        done(&mut fixture, &["touch", "-r", "new", "dir/below/file"])?;
        ensure!(fs::metadata(share.join("dir/below/file"))?.mtime() == -5);
        done(&mut fixture, &["touch", "new"])?;
        ensure!(fs::metadata(share.join("new"))?.mtime() > 1_000_000_000);

        if User::is_root() {
            done(&mut fixture, &["chown", "-R", "5:60", "dir"])?;
            done(&mut fixture, &["chown", ":7", "dir/below"])?;
            let owner = |name: &str| -> Result<(u32, u32)> {
                let metadata = fs::symlink_metadata(share.join(name))?;
                Ok((metadata.uid(), metadata.gid()))
            };
            ensure!(owner("dir/link")? == (5, 60) && owner("dir/below/file")? == (5, 60));
            ensure!(owner("dir/below")? == (5, 7));
            ensure!(fs::metadata("/etc/passwd")?.uid() == 0);
        }
        for arguments in [
            &["chmod", "u+q", "new"][..],
            &["chown", "root", "new"],
            &["touch", "-d", "tomorrow", "new"],
        ] {
            ensure!(failed(&mut fixture, arguments)?.0 == 2, "{arguments:?}");
        }
    }
    Ok(())
}

/// A pattern means the names that it matches, unless a file has the very name.
#[test]
fn patterns_match_names_of_the_share() -> Result<()> {
    for mut fixture in Fixture::each(&[])? {
        let share = fixture.share.path().to_owned();
        let elsewhere = tempfile::tempdir()?;
        for name in ["one", "two"] {
            fs::create_dir(share.join(name))?;
            for file in ["a.c", "b.c", "a.h", ".c"] {
                fs::write(share.join(name).join(file), file)?;
            }
        }
        let to = elsewhere.path().display().to_string();
        done(&mut fixture, &["cp", ":one/*.c", ":two/[a-b].h", &to])?;
        let mut names: Vec<_> = fs::read_dir(elsewhere.path())?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<Result<_>>()?;
        names.sort();
        ensure!(names == ["a.c", "a.h", "b.c"], "{names:?}");
        ensure!(done(&mut fixture, &["cat", "*/{a,b}.c"])? == "a.cb.ca.cb.c");
        fs::write(share.join("one/*.c"), b"itself")?;
        ensure!(done(&mut fixture, &["cat", "one/*.c"])? == "itself");
        done(&mut fixture, &["rm", "one/*.c"])?;
        ensure!(share.join("one/a.c").exists() && !share.join("one/*.c").exists());
        let (status, text) = failed(&mut fixture, &["--no-glob", "rm", "one/*.c"])?;
        ensure!(
            status == 1 && text.contains("no such file: one/*.c"),
            "{text}"
        );
        let (status, text) = failed(&mut fixture, &["rm", "one/*.x"])?;
        ensure!(
            status == 1 && text.contains("no such file: one/*.x"),
            "{text}"
        );
        done(&mut fixture, &["rm", "-f", "one/*.x", "one/*.h"])?;
        ensure!(!share.join("one/a.h").exists());
        done(&mut fixture, &["mv", "one/?.c", "two/a.h", "/"])?;
        ensure!(share.join("a.c").exists() && share.join("b.c").exists());
    }
    Ok(())
}

#[test]
fn names_that_are_no_utf_8_pass_unharmed() -> Result<()> {
    let mut fixture = Fixture::ours(&[])?;
    let share = fixture.share.path().to_owned();
    let elsewhere = tempfile::tempdir()?;
    let name = OsStr::from_bytes(b"\xe4\xff");
    let with_colon = OsStr::from_bytes(b":dir-\xe4/\xe4\xff");
    fs::write(elsewhere.path().join(name), b"data")?;
    let word = OsStr::new;
    done(
        &mut fixture,
        &[word("mkdir"), OsStr::from_bytes(b"dir-\xe4")],
    )?;
    done(
        &mut fixture,
        &[
            word("cp"),
            elsewhere.path().join(name).as_os_str(),
            with_colon,
        ],
    )?;
    let path = OsStr::from_bytes(b"dir-\xe4/\xe4\xff");
    ensure!(fs::read(share.join(path))? == b"data");
    ensure!(done(&mut fixture, &[word("cat"), path])? == "data");
    let output = run(&mut fixture, &["find", "-type", "f"], b"")?;
    ensure!(output.stdout == b"./dir-\xe4/\xe4\xff\n", "{output:?}");
    let listing = done(&mut fixture, &[word("ls"), OsStr::from_bytes(b"dir-\xe4")])?;
    ensure!(listing.ends_with(" \\xe4\\xff\n"), "{listing}");
    let to = OsStr::from_bytes(b"dir-\xe4/\xfe");
    done(&mut fixture, &[word("ln"), word("-s"), path, to])?;
    ensure!(fs::read_link(share.join(to))?.as_os_str() == path);
    done(
        &mut fixture,
        &[word("mv"), path, OsStr::from_bytes(b"\xfd")],
    )?;
    done(&mut fixture, &["chmod", "600", "[!a-z]"])?;
    let mode = fs::metadata(share.join(OsStr::from_bytes(b"\xfd")))?
        .permissions()
        .mode();
    ensure!(mode & 0o777 == 0o600, "{mode:o}");
    let script = b"rm \xfd\nrm -r dir-\xe4\n";
    let output = run(&mut fixture, &["shell"], script)?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(fs::read_dir(&share)?.next().is_none(), "everything is gone");
    Ok(())
}
