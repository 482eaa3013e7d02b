//! Who calls, and what comes with the results of calls that fail.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Result, bail, ensure};
use nfs3_types::nfs3::{
    LINK3args, LINK3res, NFS_PROGRAM as P, Nfs3Result, READ3args, READ3res, READLINK3args,
    READLINK3res, RENAME3args, RENAME3res, nfs_fh3, nfsstat3,
};

use crate::client::{Client, Fixture, entry, some};
use crate::{OPEN, create, unchecked};

/// The 16 groups that AUTH_SYS has room for.
fn groups() -> Vec<u32> {
    (2001..=2016).collect()
}

fn read(client: &mut Client, file: &nfs_fh3) -> Result<Vec<u8>> {
    let args = READ3args {
        file: file.clone(),
        offset: 0,
        count: 100,
    };
    match client.nfs::<READ3res<'static>>(P::NFSPROC3_READ, &args)? {
        Nfs3Result::Ok(done) => Ok(done.data.to_vec()),
        Nfs3Result::Err((status, _)) => bail!("{status}"),
    }
}

#[test]
fn the_sixteenth_group_of_a_caller_counts_as_the_first_one_does() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let fixture = Fixture::new(OPEN)?;
    let path = |name: &str| fixture.share.path().join(name);
    for (name, gid) in [("first", 2001), ("last", 2016), ("none", 2017)] {
        fs::write(path(name), "content")?;
        chown(path(name), Some(0), Some(gid))?;
        fs::set_permissions(path(name), Permissions::from_mode(0o640))?;
    }
    fs::create_dir(path("dir"))?;
    chown(path("dir"), Some(0), Some(2016))?;
    fs::set_permissions(path("dir"), Permissions::from_mode(0o2770))?;

    let mut client = fixture.server.client(1000, 100)?.in_groups(&groups());
    let root = client.mount("/")?;
    for name in ["first", "last"] {
        let file = client.lookup(&root, name)?;
        ensure!(read(&mut client, &file)? == b"content", "{name}");
    }
    let foreign = client.lookup(&root, "none")?;
    let refused = read(&mut client, &foreign).unwrap_err().to_string();
    ensure!(refused == "NFS3ERR_ACCES", "{refused}");
    // The directory passes on its group.
    let dir = client.lookup(&root, "dir")?;
    create(&mut client, &dir, "file", unchecked())?;
    let made = fs::metadata(path("dir/file"))?;
    ensure!((made.uid(), made.gid()) == (1000, 2016), "{}", made.gid());
    let mut without = fixture.server.client(1000, 100)?.in_groups(&groups()[..15]);
    let refused = create(&mut without, &dir, "other", unchecked()).unwrap_err();
    ensure!(refused.to_string() == "NFS3ERR_ACCES", "{refused}");
    Ok(())
}

#[test]
fn a_call_that_fails_brings_the_attributes_of_what_it_names() -> Result<()> {
    let fixture = Fixture::new(OPEN)?;
    for name in ["from", "to"] {
        fs::create_dir(fixture.share.path().join(name))?;
    }
    for name in ["from/file", "to/file", "from/dir"] {
        match name.ends_with("dir") {
            true => fs::create_dir(fixture.share.path().join(name))?,
            false => fs::write(fixture.share.path().join(name), "content")?,
        }
    }
    let mut client = fixture.server.client(0, 0)?;
    let root = client.mount("/")?;
    let (from, to) = (client.lookup(&root, "from")?, client.lookup(&root, "to")?);
    let file = client.lookup(&from, "file")?;

    let args = READLINK3args {
        symlink: file.clone(),
    };
    match client.nfs::<READLINK3res<'static>>(P::NFSPROC3_READLINK, &args)? {
        Nfs3Result::Err((nfsstat3::NFS3ERR_INVAL, failed)) => {
            ensure!(some(failed.symlink_attributes)?.size == 7);
        }
        other => bail!("{other:?}"),
    }
    let args = LINK3args {
        file,
        link: entry(&to, "file"),
    };
    match client.nfs::<LINK3res>(P::NFSPROC3_LINK, &args)? {
        Nfs3Result::Err((nfsstat3::NFS3ERR_EXIST, failed)) => {
            ensure!(some(failed.file_attributes)?.nlink == 1);
            some(failed.linkdir_wcc.before)?;
            some(failed.linkdir_wcc.after)?;
        }
        other => bail!("{other:?}"),
    }
    // Older than one tick of the kernel's clock.
    for name in ["from", "to"] {
        let directory = fs::File::open(fixture.share.path().join(name))?;
        directory.set_modified(UNIX_EPOCH + Duration::from_secs(1))?;
    }
    // First a file in the way of a directory, then a name that does not exist, and then it works.
    for (old, status) in [
        ("dir", Some(nfsstat3::NFS3ERR_NOTDIR)),
        ("missing", Some(nfsstat3::NFS3ERR_NOENT)),
        ("file", None),
    ] {
        let args = RENAME3args {
            from: entry(&from, old),
            to: entry(&to, "file"),
        };
        let done = client.nfs::<RENAME3res>(P::NFSPROC3_RENAME, &args)?;
        let (found, both) = match done {
            Nfs3Result::Ok(done) => (None, [done.fromdir_wcc, done.todir_wcc]),
            Nfs3Result::Err((status, failed)) => {
                (Some(status), [failed.fromdir_wcc, failed.todir_wcc])
            }
        };
        ensure!(found == status, "{old}: {found:?}");
        let [of_from, of_to] = both;
        let (from_before, from_after) = (some(of_from.before)?, some(of_from.after)?);
        let (to_before, to_after) = (some(of_to.before)?, some(of_to.after)?);
        let changed = from_before.mtime != from_after.mtime && to_before.mtime != to_after.mtime;
        ensure!(changed == status.is_none(), "{old}");
        ensure!(from_after.fileid != to_after.fileid);
    }
    Ok(())
}

#[test]
fn a_daemon_with_small_rings_is_served_and_the_log_says_so() -> Result<()> {
    let fixture = Fixture::with_daemon(OPEN, &["--queue-size=64"])?;
    fs::write(fixture.share.path().join("file"), "content")?;
    let mut client = fixture.server.client(0, 0)?;
    let root = client.mount("/")?;
    let file = client.lookup(&root, "file")?;
    ensure!(read(&mut client, &file)? == b"content");
    let log = fixture.server.log()?;
    ensure!(
        log.contains("refuses rings of 512 descriptors; they have 64"),
        "{log}"
    );
    Ok(())
}

#[test]
fn the_log_says_so_if_locks_of_nfs_clients_exclude_no_guest() -> Result<()> {
    let says_so = |locks: &str| -> Result<bool> {
        let fixture = Fixture::with_daemon(OPEN, &[locks])?;
        // The server has reached the daemon then.
        fixture.server.client(0, 0)?.mount("/")?;
        let log = fixture.server.log()?;
        ensure!(log.contains("connected to the daemon"), "{log}");
        Ok(log.contains("exclude other NFS clients alone"))
    };
    ensure!(says_so("--locks=guest")?);
    ensure!(!says_so("--locks=host")?);
    Ok(())
}
