//! Symbolic links, which the original client cannot read.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Result, ensure};
use gangplank_dvk::rhostfs::server::SymlinkPolicy;

use super::{EINVAL, EIO, ELOOP, ENOENT, READ, is};
use crate::fixture::Fixture;

/// A share with links of all kinds.
fn with_links(links: SymlinkPolicy) -> Result<Fixture> {
    let outside = tempfile::tempdir()?;
    fs::write(outside.path().join("secret"), b"secret")?;
    let fixture = Fixture::with(&[], |options| options.symlinks = links)?;
    fixture.put("file", b"contents")?;
    fs::create_dir(fixture.path("sub"))?;
    symlink("file", fixture.path("near"))?;
    symlink("/file", fixture.path("absolute"))?;
    symlink("../../../../sub/../file", fixture.path("high"))?;
    symlink("..", fixture.path("sub/up"))?;
    symlink("nowhere", fixture.path("dangling"))?;
    symlink("circle", fixture.path("circle"))?;
    symlink(outside.path(), fixture.path("out"))?;
    Ok(fixture)
}

const LINK: u32 = 0o120_000;
const TYPE: u32 = 0o170_000;

#[test]
fn d9_readlink_never_writes_where_the_client_has_not_said() -> Result<()> {
    for links in [SymlinkPolicy::Refuse, SymlinkPolicy::Follow] {
        let fixture = with_links(links)?;
        let client = fixture.client();
        // The message is the patched client's, and so the buffer would be there.
        ensure!(client.readlink("//near", 4096) == Err(EIO), "{links:?}");
    }
    Ok(())
}

#[test]
fn d9_links_are_shown_as_links_where_they_are_refused() -> Result<()> {
    let fixture = with_links(SymlinkPolicy::Refuse)?;
    let client = fixture.client();
    ensure!(client.lstat64("//near").unwrap().mode & TYPE == LINK);
    ensure!(client.open("//near", READ) == Err(ELOOP));
    ensure!(
        client.lstat64("//sub/up/file") == Err(ELOOP),
        "nor is one followed on the way"
    );
    ensure!(client.access("//near", 4) == Ok(()));
    ensure!(client.unlink("//near") == Ok(()) && fixture.path("file").exists());
    Ok(())
}

#[test]
fn d9_followed_links_are_what_they_lead_to_beneath_the_root() -> Result<()> {
    let fixture = with_links(SymlinkPolicy::Follow)?;
    let client = fixture.client();
    for name in [
        "//near",
        "//absolute",
        "//high",
        "//sub/up/near",
        "//sub/up/sub/up/file",
    ] {
        // A read changes the time of access.
        let file = client.lstat64("//file");
        ensure!(file.is_ok() && client.lstat64(name) == file, "{name}");
        ensure!(is(&client.contents(name), b"contents"), "{name}");
    }
    for name in ["//dangling", "//circle", "//out"] {
        let stat = client.lstat64(name).unwrap();
        ensure!(
            stat.mode & TYPE == LINK,
            "{name} leads nowhere, and can be removed"
        );
    }
    ensure!(
        client.lstat64("//out/secret") == Err(ENOENT),
        "the way out is closed"
    );
    ensure!(client.open("//circle", READ) == Err(ELOOP));
    let listed = client.getdents("//", 0, 100).unwrap();
    let near = listed.iter().find(|entry| entry.name == "near").unwrap();
    ensure!(near.raw.kind == 0, "of a kind that the client looks up");
    ensure!(client.unlink("//near") == Ok(()) && fixture.path("file").exists());
    ensure!(client.rename("//absolute", "//moved") == Ok(()));
    ensure!(fixture.path("moved").is_symlink());
    ensure!(client.unlink("//dangling") == Ok(()));
    Ok(())
}

#[test]
fn d9_a_patched_client_reads_links() -> Result<()> {
    let fixture = with_links(SymlinkPolicy::Patched)?;
    let client = fixture.client();
    let (length, buffer) = client.readlink("//near", 16).unwrap();
    ensure!(length == 4 && buffer[..5] == *b"file\0" && buffer[5..] == [0xee; 11]);
    let (length, buffer) = client.readlink("//near", 4).unwrap();
    ensure!(
        length == 4 && buffer == b"file",
        "as long as the buffer: it may be longer"
    );
    ensure!(client.readlink("//file", 16) == Err(EINVAL));
    ensure!(client.symlink("../any/where", "//sub/made") == Ok(()));
    ensure!(fs::read_link(fixture.path("sub/made"))?.as_os_str() == "../any/where");
    Ok(())
}
