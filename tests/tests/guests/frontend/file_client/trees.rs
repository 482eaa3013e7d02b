//! `cp -r`, `cp -a` and `sync`: trees in both directions, and within the share.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, FileTimes};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Result, ensure};
use gangplank_tests::process::User;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};

use super::client::{done, failed, pattern};
use super::snapshot::{Depth, Snapshot};
use crate::fixture::Fixture;

/// Names that a shell, a terminal or a careless program takes for something else.
const ODD_NAMES: [&[u8]; 14] = [
    b" ",
    b"two words",
    b"-r",
    b"--help",
    b"*",
    b"[ab]?",
    b"{a,b}",
    b"line\nbreak",
    b"tab\tquote'\"",
    b"back\\slash",
    b"latin1-\xe4\xf6\xfc",
    b"\xff\xfe",
    ":colon".as_bytes(),
    b".hidden",
];

/// Bytes of a file with a hole.
const SPARSE: u64 = 64 << 20;

fn path_of(path: &Path) -> OsString {
    path.as_os_str().to_owned()
}

/// Makes a tree of some 2,000 entries of all kinds.
fn make_tree(root: &Path) -> Result<()> {
    fs::create_dir(root)?;
    for number in 0..40 {
        let directory = root.join(format!("directory-{number}"));
        fs::create_dir(&directory)?;
        for file in 0..48 {
            let data = pattern((number * 577 + file * 4093) % 20_000);
            fs::write(directory.join(format!("file-{file}")), data)?;
        }
    }
    let odd = root.join("odd");
    fs::create_dir(&odd)?;
    for name in ODD_NAMES {
        fs::write(odd.join(OsStr::from_bytes(name)), name)?;
        let directory = [name, b".d"].concat();
        fs::create_dir(odd.join(OsStr::from_bytes(&directory)))?;
        let inside = odd
            .join(OsStr::from_bytes(&directory))
            .join(OsStr::from_bytes(name));
        symlink(OsStr::from_bytes(name), inside)?;
    }
    fs::write(odd.join("x".repeat(255)), b"long name")?;

    symlink("nowhere/at/all", root.join("dangling"))?;
    symlink("/etc/passwd", root.join("absolute"))?;
    symlink("loop", root.join("loop"))?;
    symlink("directory-1", root.join("to-directory"))?;
    symlink(OsStr::from_bytes(b"\xe4"), root.join("to-latin1"))?;

    fs::write(root.join("one-name"), pattern(5000))?;
    fs::hard_link(root.join("one-name"), root.join("second-name"))?;
    fs::hard_link(root.join("one-name"), root.join("odd/third-name"))?;

    let sparse = File::create(root.join("sparse"))?;
    sparse.write_all_at(&pattern(10_000), SPARSE / 2)?;
    sparse.set_len(SPARSE)?;
    File::create(root.join("all-hole"))?.set_len(SPARSE)?;

    let mode = Mode::from_raw_mode(0o640);
    mknodat(CWD, root.join("fifo"), FileType::Fifo, mode, 0)?;
    drop(UnixListener::bind(root.join("socket"))?);
    if User::is_root() {
        let device = makedev(1, 3);
        mknodat(
            CWD,
            root.join("null"),
            FileType::CharacterDevice,
            mode,
            device,
        )?;
        let device = makedev(259, 300);
        mknodat(CWD, root.join("disk"), FileType::BlockDevice, mode, device)?;
        chown(root.join("directory-3/file-3"), Some(1000), Some(1001))?;
        std::os::unix::fs::lchown(root.join("dangling"), Some(5), Some(60))?;
    }
    let comment = root.join("directory-4/file-4");
    setxattr(
        &comment,
        "user.comment",
        b"bytes \x00\xff",
        XattrFlags::empty(),
    )?;
    setxattr(
        root.join("directory-4"),
        "user.empty",
        b"",
        XattrFlags::empty(),
    )?;
    for (name, mode) in [
        ("directory-5/file-5", 0o4755),
        ("directory-5/file-6", 0o444),
        ("directory-6", 0o1777),
        ("directory-7", 0o555),
    ] {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode))?;
    }
    let times = FileTimes::new().set_modified(UNIX_EPOCH + Duration::new(951_782_400, 123_456_789));
    File::open(root.join("directory-8/file-8"))?.set_times(times)?;
    File::open(root.join("directory-9"))?.set_times(times)?;
    Ok(())
}

/// The space of the sparse files.
fn must_be_sparse(root: &Path) -> Result<()> {
    for name in ["sparse", "all-hole"] {
        let metadata = fs::metadata(root.join(name))?;
        ensure!(metadata.len() == SPARSE, "{name}: {} bytes", metadata.len());
        ensure!(metadata.blocks() < 1000, "{name} has no hole");
    }
    Ok(())
}

/// Everything that a tree can have comes back as it was, after three copies.
#[test]
fn a_tree_of_two_thousand_entries_survives_in_within_and_out() -> Result<()> {
    let mut fixture = Fixture::ours(&["--xattr"])?;
    let elsewhere = tempfile::tempdir()?;
    let (tree, back) = (elsewhere.path().join("tree"), elsewhere.path().join("back"));
    make_tree(&tree)?;
    let expected = Snapshot::of(&tree, Depth::All)?;
    ensure!(expected.len() > 2000, "{} entries", expected.len());

    let cp = |from: OsString, to: OsString| ["cp".into(), "-a".into(), from, to];
    done(&mut fixture, &cp(path_of(&tree), ":in".into()))?;
    let share = fixture.share.path().to_owned();
    Snapshot::of(&share.join("in"), Depth::All)?.must_be(&expected)?;
    must_be_sparse(&share.join("in"))?;
    done(&mut fixture, &cp(":in".into(), ":within".into()))?;
    Snapshot::of(&share.join("within"), Depth::All)?.must_be(&expected)?;
    must_be_sparse(&share.join("within"))?;
    done(&mut fixture, &cp(":within".into(), path_of(&back)))?;
    Snapshot::of(&back, Depth::All)?.must_be(&expected)?;
    must_be_sparse(&back)?;

    // Into a directory that exists, a tree goes with its name.
    fs::create_dir(share.join("there"))?;
    done(
        &mut fixture,
        &["cp", "-r", ":in/odd", ":in/directory-7", ":there"],
    )?;
    let odd = Snapshot::of(&tree.join("odd"), Depth::Data)?;
    Snapshot::of(&share.join("there/odd"), Depth::Data)?.must_be(&odd)?;
    let mode = fs::metadata(share.join("there/directory-7"))?.mode() & 0o777;
    ensure!(mode == 0o555, "{mode:o}");
    done(&mut fixture, &["rm", "-r", "in", "within", "there"])?;
    ensure!(fs::read_dir(&share)?.next().is_none(), "everything is gone");
    Ok(())
}

/// Each file is tried, each error told, and the exit status says that there was one.
#[test]
fn a_copy_goes_on_after_an_error() -> Result<()> {
    for mut fixture in Fixture::each(&[])? {
        let elsewhere = tempfile::tempdir()?;
        let share = fixture.share.path().to_owned();
        let tree = elsewhere.path().join("tree");
        fs::create_dir_all(tree.join("a"))?;
        fs::create_dir_all(tree.join("z"))?;
        for name in ["a/file", "m", "z/file"] {
            fs::write(tree.join(name), name)?;
        }
        // A directory is where a file should arrive, and a file where a directory should.
        fs::create_dir_all(share.join("to/tree/m"))?;
        fs::write(share.join("to/tree/a"), b"a file")?;
        let arguments = [
            OsStr::new("cp"),
            OsStr::new("-r"),
            tree.as_os_str(),
            OsStr::new(":to"),
        ];
        let (status, text) = failed(&mut fixture, &arguments)?;
        ensure!(status == 1, "{status}: {text}");
        ensure!(text.contains("not a directory: to/tree/a"), "{text}");
        ensure!(text.contains("is a directory: to/tree/m"), "{text}");
        ensure!(fs::read(share.join("to/tree/z/file"))? == b"z/file");
        ensure!(fs::read(share.join("to/tree/a"))? == b"a file");

        let (status, text) = failed(&mut fixture, &["cp", ":to", ":other"])?;
        ensure!(status == 1 && text.contains("is a directory: to"), "{text}");
        let (status, text) = failed(&mut fixture, &["cp", "-r", ":to", ":to/tree"])?;
        ensure!(status == 1 && text.contains("into itself"), "{text}");
        let (status, text) = failed(
            &mut fixture,
            &["cp", ":to/tree/z/file", ":missing", ":new/"],
        )?;
        ensure!(
            status == 1 && text.contains("new/: there is no such directory"),
            "{text}"
        );
        let (status, text) = failed(&mut fixture, &["cp", ":missing", ":to/tree/z/file", ":"])?;
        ensure!(
            status == 1 && text.contains("no such file: missing"),
            "{text}"
        );
        ensure!(fs::read(share.join("file"))? == b"z/file");
    }
    Ok(())
}

/// A link of the share leads no copy out of the directory that it goes to.
#[test]
fn a_copy_replaces_links_and_does_not_write_through_them() -> Result<()> {
    let mut fixture = Fixture::ours(&[])?;
    let elsewhere = tempfile::tempdir()?;
    let share = fixture.share.path().to_owned();
    fs::create_dir_all(share.join("tree/directory"))?;
    fs::write(share.join("tree/file"), b"new")?;
    fs::write(share.join("tree/directory/file"), b"new")?;
    let outside = elsewhere.path().join("outside");
    fs::create_dir(&outside)?;
    fs::write(outside.join("file"), b"old")?;
    let to = elsewhere.path().join("tree");
    fs::create_dir(&to)?;
    symlink(outside.join("file"), to.join("file"))?;
    symlink(&outside, to.join("directory"))?;
    let arguments = [
        OsStr::new("cp"),
        OsStr::new("-r"),
        OsStr::new(":tree"),
        elsewhere.path().as_os_str(),
    ];
    let (status, text) = failed(&mut fixture, &arguments)?;
    ensure!(status == 1 && text.contains("not a directory"), "{text}");
    ensure!(fs::read(outside.join("file"))? == b"old");
    ensure!(fs::symlink_metadata(to.join("file"))?.is_file());
    ensure!(fs::read(to.join("file"))? == b"new");
    // Nor is a device replaced by a file.
    let fifo = elsewhere.path().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
    for command in [&["cp", "-p"][..], &["sync"]] {
        let mut arguments: Vec<OsString> = command.iter().map(OsString::from).collect();
        arguments.extend([":tree/file".into(), path_of(&fifo)]);
        let (status, text) = failed(&mut fixture, &arguments)?;
        ensure!(
            status == 1 && text.contains("it is no regular file"),
            "{text}"
        );
    }
    ensure!(!fs::symlink_metadata(&fifo)?.is_file());
    let arguments = ["cp".into(), "-p".into(), path_of(&fifo), ":fifo".into()];
    let (status, text) = failed(&mut fixture, &arguments)?;
    ensure!(status == 1 && text.contains("with --recursive"), "{text}");
    Ok(())
}

/// A second run has nothing to do. What differs is copied, and nothing else.
#[test]
fn sync_copies_what_differs_and_nothing_else() -> Result<()> {
    let mut fixture = Fixture::ours(&["--xattr"])?;
    let elsewhere = tempfile::tempdir()?;
    let tree = elsewhere.path().join("tree");
    make_tree(&tree)?;
    let share = fixture.share.path().join("copy");
    let sync = |options: &[&str]| {
        let mut arguments = vec![OsString::from("sync")];
        arguments.extend(options.iter().map(OsString::from));
        arguments.extend([path_of(&tree), ":copy".into()]);
        arguments
    };
    let told = done(&mut fixture, &sync(&["--dry-run"]))?;
    ensure!(told.contains("would be copied"), "{told}");
    ensure!(!share.exists(), "a dry run has made something");
    done(&mut fixture, &sync(&[]))?;
    Snapshot::of(&share, Depth::All)?.must_be(&Snapshot::of(&tree, Depth::All)?)?;
    for options in [&["--verbose"][..], &["-v", "--checksum", "--delete"]] {
        let told = done(&mut fixture, &sync(options))?;
        ensure!(told.lines().count() == 1, "{options:?}: {told}");
        ensure!(
            told.starts_with("copied 0 (0 B), attributes 0, removed 0, "),
            "{told}"
        );
    }

    // Another size; the same size and another time; only other permissions; another link.
    fs::write(
        tree.join("directory-1/file-1"),
        b"longer than before or not",
    )?;
    let times = FileTimes::new().set_modified(UNIX_EPOCH + Duration::from_secs(5));
    let other = pattern(
        fs::metadata(tree.join("directory-1/file-2"))?
            .len()
            .try_into()?,
    );
    let other: Vec<u8> = other.iter().map(|byte| !byte).collect();
    fs::write(tree.join("directory-1/file-2"), other)?;
    File::open(tree.join("directory-1/file-2"))?.set_times(times)?;
    fs::set_permissions(
        tree.join("directory-2/file-1"),
        fs::Permissions::from_mode(0o600),
    )?;
    fs::remove_file(tree.join("dangling"))?;
    symlink("elsewhere", tree.join("dangling"))?;
    fs::remove_file(tree.join("directory-1/file-3"))?;
    fs::remove_dir_all(tree.join("directory-30"))?;
    fs::write(tree.join("directory-1/new"), b"new")?;
    let before = fs::metadata(share.join("directory-2/file-1"))?.ino();

    let told = done(&mut fixture, &sync(&["--delete", "--dry-run"]))?;
    for line in [
        "copy ".to_owned() + &tree.join("directory-1/new").display().to_string(),
        "copy ".to_owned() + &tree.join("directory-1/file-1").display().to_string(),
        "copy ".to_owned() + &tree.join("directory-1/file-2").display().to_string(),
        "attributes ".to_owned() + &tree.join("directory-2/file-1").display().to_string(),
        "copy ".to_owned() + &tree.join("dangling").display().to_string(),
        "remove copy/directory-1/file-3".to_owned(),
        "remove copy/directory-30".to_owned(),
    ] {
        ensure!(
            told.lines().any(|told| told == line),
            "no {line:?} in:\n{told}"
        );
    }
    ensure!(
        share.join("directory-30").exists(),
        "a dry run has removed something"
    );
    done(&mut fixture, &sync(&[]))?;
    ensure!(
        share.join("directory-30").exists(),
        "nothing is removed without --delete"
    );
    ensure!(fs::metadata(share.join("directory-2/file-1"))?.ino() == before);
    done(&mut fixture, &sync(&["--delete"]))?;
    Snapshot::of(&share, Depth::All)?.must_be(&Snapshot::of(&tree, Depth::All)?)?;

    // The same size and time, and other data: only a checksum tells.
    let file = share.join("directory-8/file-8");
    let modified = fs::metadata(&file)?.modified()?;
    let mut data = fs::read(&file)?;
    data[100] ^= 1;
    fs::write(&file, data)?;
    File::open(&file)?.set_times(FileTimes::new().set_modified(modified))?;
    let told = done(&mut fixture, &sync(&[]))?;
    ensure!(told.starts_with("copied 0 "), "{told}");
    let told = done(&mut fixture, &sync(&["--checksum"]))?;
    ensure!(told.starts_with("copied 1 "), "{told}");

    // And back, into a directory that has something else.
    let back = elsewhere.path().join("back");
    fs::create_dir_all(back.join("directory-1/file-1"))?;
    fs::write(back.join("directory-2"), b"a file")?;
    let out = [
        "sync".into(),
        "--delete".into(),
        ":copy".into(),
        path_of(&back),
    ];
    done(&mut fixture, &out)?;
    Snapshot::of(&back, Depth::All)?.must_be(&Snapshot::of(&tree, Depth::All)?)
}

/// A daemon that is not root keeps the data and what it may set; set-id bits go with the owner.
#[test]
fn owners_that_cannot_be_kept_are_no_error() -> Result<()> {
    if !User::is_root() {
        eprintln!("SKIPPED: needs root");
        return Ok(());
    }
    let mut fixture = Fixture::of_nobody()?;
    let elsewhere = tempfile::tempdir()?;
    let file = elsewhere.path().join("file");
    fs::write(&file, b"data")?;
    chown(&file, Some(7), Some(8))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4754))?;
    let arguments = ["cp".into(), "-a".into(), path_of(&file), ":copy".into()];
    done(&mut fixture, &arguments)?;
    let metadata = fs::metadata(fixture.share.path().join("copy"))?;
    let owner = (metadata.uid(), metadata.gid());
    ensure!(owner == (User::NOBODY.uid, User::NOBODY.gid), "{owner:?}");
    ensure!(metadata.mode() & 0o7777 == 0o754, "{:o}", metadata.mode());
    Ok(())
}
