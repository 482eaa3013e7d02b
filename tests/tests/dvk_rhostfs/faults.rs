//! What goes wrong around a server: the daemon goes, clients come by the thousand.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Result, ensure};
use gangplank_dvk::abi::Endpoint;
use rustix::io::Errno;

use crate::scene::Scene;

#[test]
fn a_thousand_clients_are_served() -> Result<()> {
    let scene = Scene::new()?;
    scene.put("file", b"contents")?;
    let served = AtomicUsize::new(0);
    thread::scope(|scope| {
        for group in 0..20 {
            let (scene, served) = (&scene, &served);
            scope.spawn(move || {
                for number in 0..50 {
                    let endpoint = Endpoint::from_raw(100 + group * 50 + number);
                    let client = scene.client_at(endpoint, 1000);
                    let file = client.open("//file", 0).unwrap();
                    let data = client.pread(file, 100, 0).unwrap();
                    served.fetch_add(usize::from(data == b"contents"), Ordering::Relaxed);
                    // None says goodbye.
                    std::mem::forget(client);
                }
            });
        }
    });
    ensure!(served.into_inner() == 1000);
    Ok(())
}

#[test]
fn one_client_too_many_is_told_so() -> Result<()> {
    let scene = Scene::with(&[], |options| options.clients = 2)?;
    scene.put("file", b"")?;
    let clients: Vec<_> = (10..12)
        .map(|raw| scene.client_at(Endpoint::from_raw(raw), raw))
        .collect();
    for client in &clients {
        client.open("//file", 0).unwrap();
    }
    let third = scene.client_at(Endpoint::from_raw(12), 12);
    ensure!(third.lstat64("//file") == Err(Errno::NFILE.raw_os_error()));
    ensure!(clients[0].close(0) == Ok(()));
    ensure!(
        third.lstat64("//file").is_ok(),
        "one that holds nothing makes way"
    );
    ensure!(clients[1].pread(0, 1, 0).is_ok());
    Ok(())
}

#[test]
fn open_files_of_a_client_are_limited() -> Result<()> {
    let scene = Scene::with(&[], |options| options.handles = 3)?;
    scene.put("file", b"")?;
    let client = scene.client();
    for number in 0..3 {
        ensure!(client.open("//file", 0) == Ok(number));
    }
    ensure!(client.open("//file", 0) == Err(Errno::MFILE.raw_os_error()));
    ensure!(client.close(1) == Ok(()) && client.open("//file", 0) == Ok(1));
    Ok(())
}

#[test]
fn clients_work_at_once() -> Result<()> {
    let scene = Scene::new()?;
    fs::create_dir(scene.path("common"))?;
    thread::scope(|scope| {
        for number in 0..8 {
            let scene = &scene;
            scope.spawn(move || {
                let client = scene.client_at(Endpoint::from_raw(50 + number), number);
                for round in 0..30 {
                    let name = format!("//common/{number}-{round}");
                    let file = client.create(&name, 0o600).unwrap();
                    let data = vec![u8::try_from(number).unwrap(); 5000];
                    assert_eq!(client.pwrite(file, &data, 0), Ok(5000));
                    assert_eq!(client.pread(file, 6000, 0), Ok(data));
                    client.close(file).unwrap();
                    client.rename(&name, &format!("{name}-done")).unwrap();
                }
            });
        }
    });
    ensure!(fs::read_dir(scene.path("common"))?.count() == 240);
    Ok(())
}
