//! Open files by number.

use std::fs;

use anyhow::{Result, ensure};
use gangplank_dvk::abi::Endpoint;

use super::{BOTH, EBADF, READ, is};
use crate::fixture::Fixture;

#[test]
fn d18_handles_belong_to_one_client_and_go_with_it() -> Result<()> {
    let fixture = Fixture::new()?;
    let (client, other) = (
        fixture.client(),
        fixture.client_at(Endpoint::from_raw(11), 101),
    );
    fixture.put("file", b"contents")?;
    let idle = fixture.daemon.descriptors()?;
    let file = client.open("//file", BOTH).unwrap();
    let theirs = other.open("//file", BOTH).unwrap();
    for foreign in [file, file + 1, theirs + 1, theirs - 1, -1] {
        ensure!(other.close(foreign) == Err(EBADF));
        ensure!(other.pread(foreign, 8, 0) == Err(EBADF));
        ensure!(other.dup2(foreign, theirs) == Err(EBADF));
    }
    ensure!(other.close(theirs) == Ok(()));
    ensure!(is(&client.pread(file, 8, 0), b"contents"));
    for _ in 0..20 {
        client.open("//file", BOTH).unwrap();
    }
    ensure!(fixture.daemon.descriptors()? >= idle + 21);
    client.leave();
    crate::fixture::wait_until("its files are closed", || {
        fixture
            .daemon
            .descriptors()
            .is_ok_and(|now| now <= idle + 1)
    })
}

#[test]
fn d18_dup2_widens_a_handle_as_the_client_does() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    fixture.put("file", b"contents")?;
    let narrow = client.open("//file", READ).unwrap();
    let wide = client.open("//file", BOTH).unwrap();
    ensure!(client.dup2(wide, narrow) == Ok(narrow));
    ensure!(client.close(wide) == Ok(()));
    ensure!(
        client.pwrite(narrow, b"CON", 0) == Ok(3),
        "it means the other file now"
    );
    ensure!(client.dup2(narrow, narrow) == Ok(narrow));
    let unknown = narrow + 77;
    ensure!(client.dup2(narrow, unknown) == Err(EBADF));
    ensure!(client.dup2(unknown, narrow) == Err(EBADF));
    ensure!(client.close(narrow) == Ok(()) && client.close(narrow) == Err(EBADF));
    ensure!(fs::read(fixture.path("file"))? == b"CONtents");
    Ok(())
}

#[test]
fn d18_a_client_that_boots_again_has_nothing_open() -> Result<()> {
    let fixture = Fixture::new()?;
    fixture.put("file", b"contents")?;
    fixture.put("other", b"another")?;
    let first = fixture.client();
    let file = first.open("//file", BOTH).unwrap();
    let listed = first.opendir("//").unwrap();
    let second = fixture.client_at(crate::fixture::CLIENT, 101);
    ensure!(
        is(&second.pread(file, 8, 0), b"contents"),
        "a process id alone says nothing: it may be another thread's"
    );
    ensure!(second.root_path().as_deref() == Ok("/"));
    let (other, listing) = (second.open("//other", BOTH), second.opendir("//"));
    ensure!(other.is_ok() && listing.is_ok());
    // As the first one would, which may not have noticed.
    ensure!(second.pwrite(file, b"for file", 0) == Err(EBADF));
    ensure!(second.readdir(listed) == Err(EBADF));
    ensure!(fs::read(fixture.path("other"))? == b"another");
    std::mem::forget(first);
    Ok(())
}
