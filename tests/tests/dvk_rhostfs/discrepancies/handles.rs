//! Open files by number.

use std::fs;

use anyhow::{Result, ensure};
use gangplank_dvk::abi::Endpoint;

use super::{BOTH, EBADF, READ, is};
use crate::scene::Scene;

#[test]
fn d18_handles_belong_to_one_client_and_go_with_it() -> Result<()> {
    let scene = Scene::new()?;
    let (client, other) = (scene.client(), scene.client_at(Endpoint::from_raw(11), 101));
    scene.put("file", b"contents")?;
    let idle = scene.daemon.descriptors()?;
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
    ensure!(scene.daemon.descriptors()? >= idle + 21);
    client.leave();
    crate::scene::wait_until("its files are closed", || {
        scene.daemon.descriptors().is_ok_and(|now| now <= idle + 1)
    })
}

#[test]
fn d18_dup2_widens_a_handle_as_the_client_does() -> Result<()> {
    let scene = Scene::new()?;
    let client = scene.client();
    scene.put("file", b"contents")?;
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
    ensure!(fs::read(scene.path("file"))? == b"CONtents");
    Ok(())
}

#[test]
fn d18_a_client_that_boots_again_has_nothing_open() -> Result<()> {
    let scene = Scene::new()?;
    scene.put("file", b"contents")?;
    scene.put("other", b"another")?;
    let first = scene.client();
    let file = first.open("//file", BOTH).unwrap();
    let listed = first.opendir("//").unwrap();
    let second = scene.client_at(crate::scene::CLIENT, 101);
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
    ensure!(fs::read(scene.path("other"))? == b"another");
    std::mem::forget(first);
    Ok(())
}
