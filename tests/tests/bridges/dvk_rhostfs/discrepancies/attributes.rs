//! Attributes of files: times, owners, file system figures.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use anyhow::{Result, ensure};
use gangplank_dvk::abi::M1;
use gangplank_dvk::abi::rhostfs::UsrStat;
use gangplank_dvk::rhostfs::server::Credentials;
use gangplank_tests::process::User;
use rustix::io::Errno;

use super::{BOTH, EACCES, EBADF, EINVAL, EOVERFLOW, READ};
use crate::client::STACK_1;
use crate::fixture::Fixture;

#[test]
fn d4_attributes_can_be_asked_by_handle() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    fixture.put("file", b"12345")?;
    let file = client.open("//file", READ).unwrap();
    let by_name = client.lstat64("//file").unwrap();
    for kind in [108, 197] {
        let by_handle = client.fstat_by(kind, file).unwrap();
        // Where the original has the device is what tells a file from a later one of its number;
        // its client looks at neither.
        let (dev, known) = (
            by_name.dev,
            fixture.path("file").metadata()?.created().is_ok(),
        );
        ensure!(UsrStat { dev, ..by_handle } == by_name);
        ensure!((by_handle.dev != 0) == known);
    }
    ensure!(client.stat_by(107, "//file").as_ref() == Ok(&by_name));
    ensure!(client.fstat_by(197, file + 1) == Err(EBADF));
    Ok(())
}

#[test]
fn d5_what_does_not_fit_is_refused_or_cut_as_told() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    File::create(fixture.path("large"))?.set_len(u64::from(u32::MAX))?;
    ensure!(client.lstat64("//large").unwrap().size == u32::MAX);
    File::create(fixture.path("larger"))?.set_len(1 << 32)?;
    ensure!(client.lstat64("//larger") == Err(EOVERFLOW));
    fixture.put("file", b"12345")?;
    let (stat, real) = (
        client.lstat64("//file").unwrap(),
        fixture.path("file").metadata()?,
    );
    ensure!(stat.ino != 0 && stat.size == 5 && stat.mode == real.mode());
    ensure!((stat.nlink, stat.uid, stat.gid) == (1, real.uid(), real.gid()));
    ensure!(stat.mtime.get() == real.mtime() && stat.pad0 == 0);
    let listed = client.getdents("//", 0, 100).unwrap();
    let entry = listed.iter().find(|entry| entry.name == "file").unwrap();
    ensure!(entry.raw.ino == stat.ino, "a file has one number");
    Ok(())
}

#[test]
fn d5_device_numbers_are_encoded_as_glibc_does() -> Result<()> {
    if !User::is_root() {
        eprintln!("SKIPPED: only root makes devices");
        return Ok(());
    }
    let fixture = Fixture::new()?;
    let client = fixture.client();
    ensure!(client.mknod("//device", 0o020_660, 0x0011_032c) == Ok(()));
    let real = fixture.path("device").metadata()?;
    ensure!(real.file_type().is_char_device());
    ensure!(rustix::fs::major(real.rdev()) == 259 && rustix::fs::minor(real.rdev()) == 300);
    ensure!(client.lstat64("//device").unwrap().rdev == 0x0011_032c);
    Ok(())
}

#[test]
fn d10_a_file_systems_figures_come_whole() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    let real = rustix::fs::statvfs(fixture.share.path())?;
    for name in ["/", "//"] {
        let figures = client.statfs64(name).unwrap();
        ensure!(u64::from(figures.bsize) == real.f_bsize && figures.blocks.get() == real.f_blocks);
        ensure!(
            figures.files.get() == real.f_files && u64::from(figures.namelen) == real.f_namemax
        );
        ensure!(figures.flags == 0 && figures.spare == [0; 4]);
    }
    Ok(())
}

#[test]
fn d11_times_are_the_clients_and_links_keep_theirs() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    fixture.put("file", b"")?;
    symlink("file", fixture.path("link"))?;
    ensure!(client.utimes("//file", [(1_000_000_000, 5), (-7, 999_999)]) == Ok(()));
    let real = fixture.path("file").metadata()?;
    ensure!((real.atime(), real.atime_nsec()) == (1_000_000_000, 5000));
    ensure!((real.mtime(), real.mtime_nsec()) == (-7, 999_999_000));
    ensure!(client.lstat64("//file").unwrap().mtime.get() == -7);

    let file = client.open("//file", READ).unwrap();
    ensure!(client.futimes(file, [(1, 0), (2, 0)]) == Ok(()));
    ensure!(fixture.path("file").metadata()?.mtime() == 2);

    ensure!(client.utimes("//link", [(3, 0), (4, 0)]) == Ok(()));
    ensure!(fixture.path("link").symlink_metadata()?.mtime() == 4);
    ensure!(fixture.path("file").metadata()?.mtime() == 2);
    for bad in [-1, 1_000_000] {
        ensure!(client.utimes("//file", [(1, bad), (1, 0)]) == Err(EINVAL));
    }
    ensure!(fixture.path("file").metadata()?.mtime() == 2);
    Ok(())
}

#[test]
fn d21_all_is_done_by_one_user() -> Result<()> {
    if !User::is_root() {
        eprintln!("SKIPPED: only root can serve for another user");
        return Ok(());
    }
    let fixture = Fixture::with(&[], |options| {
        options.credentials = Credentials {
            uid: 1234,
            gid: 5678,
        }
    })?;
    let client = fixture.client();
    fs::set_permissions(fixture.share.path(), fs::Permissions::from_mode(0o755))?;
    ensure!(
        client.create("//new", 0o644) == Err(EACCES),
        "root's directory"
    );
    std::os::unix::fs::chown(fixture.share.path(), Some(1234), Some(5678))?;
    let file = client.create("//new", 0o644).unwrap();
    ensure!(client.mkdir("//directory", 0o700) == Ok(()));
    for name in ["new", "directory"] {
        let made = fixture.path(name).metadata()?;
        ensure!((made.uid(), made.gid()) == (1234, 5678), "{name}");
    }
    fixture.put("roots", b"secret")?;
    fs::set_permissions(fixture.path("roots"), fs::Permissions::from_mode(0o600))?;
    ensure!(client.open("//roots", READ) == Err(EACCES));
    ensure!(client.chmod("//roots", 0o666) == Err(Errno::PERM.raw_os_error()));
    ensure!(client.access("//roots", 4) == Err(EACCES) && client.access("//roots", 0) == Ok(()));
    fs::set_permissions(fixture.path("roots"), fs::Permissions::from_mode(0o644))?;
    let roots = client.open("//roots", READ).unwrap();
    ensure!(client.open("//roots", BOTH) == Err(EACCES));
    ensure!(
        client.ftruncate(roots, 1) == Err(EACCES) && client.truncate("//roots", 1) == Err(EACCES)
    );
    ensure!(fs::read(fixture.path("roots"))? == b"secret");
    fs::set_permissions(fixture.path("roots"), fs::Permissions::from_mode(0o666))?;
    ensure!(
        client.ftruncate(roots, 1) == Ok(()),
        "who may write may do it so, too"
    );
    fs::set_permissions(fixture.path("new"), fs::Permissions::from_mode(0o400))?;
    ensure!(
        client.ftruncate(file, 1) == Ok(()),
        "it was opened for writing"
    );
    ensure!(client.chown("//new", -1, -1) == Ok(()));
    ensure!(client.chown("//new", 70_000, -1) == Err(Errno::PERM.raw_os_error()));
    client.close(file).unwrap();
    Ok(())
}

#[test]
fn d21_ids_have_32_bits() -> Result<()> {
    if !User::is_root() {
        eprintln!("SKIPPED: only root gives files away");
        return Ok(());
    }
    let fixture = Fixture::new()?;
    let client = fixture.client();
    fixture.put("file", b"")?;
    let (uid, gid) = (3_000_000_000_u32, 70_000_u32);
    ensure!(client.chown("//file", uid.cast_signed(), -1) == Ok(()));
    let file = client.open("//file", READ).unwrap();
    let arm = M1 {
        i1: file,
        i2: -1,
        i3: gid.cast_signed(),
        ..STACK_1
    };
    ensure!(client.call(95, &arm) == Ok(0));
    let made = fixture.path("file").metadata()?;
    ensure!((made.uid(), made.gid()) == (uid, gid));
    let mode = M1 {
        i1: file,
        i2: 0o4711,
        ..STACK_1
    };
    ensure!(client.call(94, &mode) == Ok(0));
    ensure!(client.lstat64("//file").unwrap().mode == 0o104_711);
    Ok(())
}
