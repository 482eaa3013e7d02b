//! Names are made, moved and removed, and never lead out of the share.

use std::fs;
use std::os::unix::fs::FileTypeExt;

use anyhow::{Result, ensure};
use gangplank_dvk::abi::{M1, Message};
use gangplank_dvk::endpoint::SharedBuffers;
use rustix::io::Errno;

use super::{EEXIST, EFAULT, EINVAL, ENAMETOOLONG, ENOENT, WRITE, is};
use crate::client::STACK_1;
use crate::fixture::Fixture;

#[test]
fn d7_rename_goes_to_the_second_name() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    fixture.put("old", b"contents")?;
    ensure!(client.rename("//old", "//new") == Ok(()));
    ensure!(fs::read(fixture.path("new"))? == b"contents" && !fixture.path("old").exists());
    ensure!(client.lstat64("//old") == Err(ENOENT));
    ensure!(client.rename("//old", "//new") == Err(ENOENT));
    Ok(())
}

#[test]
fn d8_renameat2_takes_either_number_and_no_notice_of_rubbish() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    fixture.put("a", b"a")?;
    fixture.put("b", b"b")?;
    for kind in [353, 371] {
        ensure!(client.renameat2(kind, "//a", "//b", 1) == Err(EEXIST));
        ensure!(client.renameat2(kind, "//a", "//b", 2) == Ok(()), "{kind}");
        for flags in [3, 4, -1] {
            ensure!(
                client.renameat2(kind, "//a", "//c", flags) == Err(EINVAL),
                "{flags}"
            );
        }
    }
    ensure!(fs::read(fixture.path("a"))? == b"a", "exchanged twice");
    ensure!(client.renameat2(371, "//a", "//c", 1) == Ok(()));
    ensure!(client.renameat2(353, "//c", "//b", 0) == Ok(()));
    ensure!(client.names("//").unwrap() == ["b"]);
    Ok(())
}

#[test]
fn d14_the_root_has_a_path_to_print() -> Result<()> {
    let share = tempfile::tempdir()?;
    fs::create_dir_all(share.path().join("some/dir"))?;
    fs::write(share.path().join("some/dir/file"), b"inside")?;
    fs::write(share.path().join("outside"), b"outside")?;
    let fixture = Fixture::on(share, &[], |options| {
        "/some/dir".clone_into(&mut options.root)
    })?;
    let client = fixture.client();
    ensure!(client.root_path().as_deref() == Ok("/some/dir"));
    ensure!(is(&client.contents("//file"), b"inside"));
    for name in [
        "//../outside",
        "//../../outside",
        "//outside",
        "//x/../../outside",
    ] {
        ensure!(client.lstat64(name) == Err(ENOENT), "{name}");
    }
    ensure!(client.lstat64("//..").unwrap().ino == client.lstat64("//").unwrap().ino);
    Ok(())
}

#[test]
fn d17_names_are_checked_and_never_lead_out() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    fixture.put("file", b"")?;
    let stat_of = |bytes: &[u8], claimed: i32| {
        let mut lent = SharedBuffers::new();
        let mut buffer = [0; 68];
        let arm = M1 {
            i1: claimed,
            p1: lent.read_only(bytes),
            p2: lent.writable(&mut buffer),
            ..STACK_1
        };
        client.ask(&Message::new(196, &arm), &mut lent).kind
    };
    ensure!(stat_of(b"//file\0", 7) == 0);
    for (bytes, claimed, errno) in [
        (&b"//file\0"[..], 6, EINVAL),
        (b"//fi\0le\0", 8, EINVAL),
        (b"//file\0", 0, EINVAL),
        (b"//file\0", -7, EINVAL),
        (b"//file\0", 8, EFAULT),
        (b"//file\0", 4096, EFAULT),
        (b"//file\0", 4097, ENAMETOOLONG),
        (b"//file\0", i32::MAX, ENAMETOOLONG),
        (b"\0", 1, ENOENT),
    ] {
        ensure!(
            stat_of(bytes, claimed) == -errno,
            "{claimed} bytes of {bytes:?}"
        );
    }
    let long = format!("//{}", "n".repeat(256));
    ensure!(client.lstat64(&long) == Err(ENAMETOOLONG));
    let etc = [
        "//../etc/passwd",
        "//../../../../etc/passwd",
        "../etc/passwd",
        "//file/../../etc/passwd",
    ];
    for name in etc {
        ensure!(client.lstat64(name) == Err(ENOENT), "{name}");
    }
    ensure!(client.lstat64("//file/") == Err(Errno::NOTDIR.raw_os_error()));
    ensure!(client.create("//../escaped", 0o600).is_ok() && fixture.path("escaped").exists());
    Ok(())
}

#[test]
fn names_are_made_and_removed_as_asked() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    fixture.put("file", b"contents")?;
    ensure!(client.link("//file", "//second") == Ok(()));
    ensure!(client.lstat64("//second").unwrap().nlink == 2);
    ensure!(client.mkdir("//directory", 0o755) == Ok(()));
    ensure!(
        client.mkdir("//directory", 0o755) == Err(EEXIST) && client.mkdir("//", 0) == Err(EEXIST)
    );
    ensure!(client.mknod("//directory/fifo", 0o010_600, 0) == Ok(()));
    ensure!(client.mknod("//directory/plain", 0o640, 0) == Ok(()));
    ensure!(
        fixture
            .path("directory/fifo")
            .metadata()?
            .file_type()
            .is_fifo()
    );
    ensure!(client.rmdir("//directory") == Err(Errno::NOTEMPTY.raw_os_error()));
    ensure!(client.unlink("//directory") == Err(Errno::ISDIR.raw_os_error()));
    ensure!(client.rmdir("//file") == Err(Errno::NOTDIR.raw_os_error()));
    ensure!(client.rename("//directory/plain", "//directory/moved") == Ok(()));
    ensure!(client.rename("//directory", "//elsewhere") == Ok(()));
    ensure!(
        client.lstat64("//directory/moved") == Err(ENOENT),
        "not remembered where it was"
    );
    ensure!(client.names("//elsewhere").unwrap() == ["fifo", "moved"]);
    for name in [
        "//elsewhere/fifo",
        "//elsewhere/moved",
        "//second",
        "//file",
    ] {
        ensure!(client.unlink(name) == Ok(()), "{name}");
    }
    ensure!(client.rmdir("//elsewhere") == Ok(()) && client.names("//").unwrap().is_empty());
    Ok(())
}

#[test]
fn a_read_only_server_changes_nothing() -> Result<()> {
    const EROFS: i32 = Errno::ROFS.raw_os_error();
    let fixture = Fixture::with(&[], |options| options.read_only = true)?;
    let client = fixture.client();
    fixture.put("file", b"contents")?;
    ensure!(is(&client.contents("//file"), b"contents"));
    ensure!(
        client.open("//file", WRITE) == Err(EROFS) && client.create("//new", 0o600) == Err(EROFS)
    );
    ensure!(client.create("//file", 0o600) == Err(EROFS));
    ensure!(client.unlink("//file") == Err(EROFS) && client.mkdir("//d", 0o700) == Err(EROFS));
    ensure!(
        client.rename("//file", "//g") == Err(EROFS) && client.truncate("//file", 0) == Err(EROFS)
    );
    ensure!(client.access("//file", 2) == Err(EROFS) && client.access("//file", 4) == Ok(()));
    Ok(())
}
