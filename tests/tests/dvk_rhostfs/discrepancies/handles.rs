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
    ensure!(file == 0, "zero is a handle like any other");
    for foreign in [file, 1, 3, -1, i32::MAX] {
        ensure!(other.close(foreign) == Err(EBADF));
        ensure!(other.pread(foreign, 8, 0) == Err(EBADF));
        ensure!(other.dup2(foreign, 0) == Err(EBADF));
    }
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
    ensure!(client.dup2(narrow, 77) == Err(EBADF) && client.dup2(77, narrow) == Err(EBADF));
    ensure!(client.close(narrow) == Ok(()) && client.close(narrow) == Err(EBADF));
    ensure!(fs::read(scene.path("file"))? == b"CONtents");
    Ok(())
}

#[test]
fn d18_a_client_that_boots_again_has_nothing_open() -> Result<()> {
    let scene = Scene::new()?;
    scene.put("file", b"contents")?;
    let first = scene.client();
    let file = first.open("//file", READ).unwrap();
    let second = scene.client_at(crate::scene::CLIENT, 101);
    ensure!(
        is(&second.pread(file, 8, 0), b"contents"),
        "a process id alone says nothing: it may be another thread's"
    );
    ensure!(second.root_path().as_deref() == Ok("/"));
    ensure!(second.pread(file, 8, 0) == Err(EBADF));
    std::mem::forget(first);
    Ok(())
}
