//! Faults around a server: a lost daemon, and thousands of clients.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use gangplank_dvk::abi::{Endpoint, M7, Message};
use gangplank_dvk::endpoint::SharedBuffers;
use gangplank_dvk::rhostfs::server::SymlinkPolicy;
use gangplank_tests::{daemon, tools};
use rustix::io::Errno;

use crate::fixture::Fixture;

#[test]
fn a_thousand_clients_are_served() -> Result<()> {
    let fixture = Fixture::new()?;
    fixture.put("file", b"contents")?;
    let served = AtomicUsize::new(0);
    thread::scope(|scope| {
        for group in 0..20 {
            let (fixture, served) = (&fixture, &served);
            scope.spawn(move || {
                for number in 0..50 {
                    let endpoint = Endpoint::from_raw(100 + group * 50 + number);
                    let client = fixture.client_at(endpoint, 1000);
                    let file = client.open("//file", 0).unwrap();
                    let data = client.pread(file, 100, 0).unwrap();
                    served.fetch_add(usize::from(data == b"contents"), Ordering::Relaxed);
                    // None of them unbinds.
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
    let fixture = Fixture::with(&[], |options| options.clients = 2)?;
    fixture.put("file", b"")?;
    let clients: Vec<_> = (10..12)
        .map(|raw| fixture.client_at(Endpoint::from_raw(raw), raw))
        .collect();
    let opened = clients.iter().map(|client| client.open("//file", 0));
    let files: Vec<_> = opened.map(|file| file.unwrap()).collect();
    let third = fixture.client_at(Endpoint::from_raw(12), 12);
    ensure!(third.lstat64("//file") == Err(Errno::NFILE.raw_os_error()));
    ensure!(clients[0].close(files[0]) == Ok(()));
    ensure!(
        third.lstat64("//file").is_ok(),
        "one that holds nothing makes way"
    );
    ensure!(clients[1].pread(files[1], 1, 0).is_ok());
    Ok(())
}

#[test]
fn open_files_of_a_client_are_limited() -> Result<()> {
    let fixture = Fixture::with(&[], |options| options.handles = 3)?;
    fixture.put("file", b"")?;
    let client = fixture.client();
    let files = [(); 3].map(|()| client.open("//file", 0).unwrap());
    ensure!(client.open("//file", 0) == Err(Errno::MFILE.raw_os_error()));
    ensure!(client.close(files[1]) == Ok(()) && client.open("//file", 0) == Ok(files[1]));
    Ok(())
}

/// A client's memory in this program is limited, however deep its files are.
#[test]
fn paths_of_open_files_are_limited() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    let mut deep = String::from("/");
    for _ in 0..1000 {
        deep.push_str("/d");
        ensure!(client.mkdir(&deep, 0o700) == Ok(()));
    }
    deep.push_str("/file");
    let file = client.create(&deep, 0o600).unwrap();
    let mut files = 0;
    let refused = loop {
        match client.open(&deep, 0) {
            Ok(_) => files += 1,
            Err(errno) => break errno,
        }
        ensure!(files < 4 << 20, "there is no limit");
    };
    ensure!(refused == Errno::MFILE.raw_os_error() && files > 1000);
    ensure!(client.close(file) == Ok(()) && client.open(&deep, 0).is_ok());
    Ok(())
}

#[test]
fn clients_work_at_once() -> Result<()> {
    let fixture = Fixture::new()?;
    fs::create_dir(fixture.path("common"))?;
    thread::scope(|scope| {
        for number in 0..8 {
            let fixture = &fixture;
            scope.spawn(move || {
                let client = fixture.client_at(Endpoint::from_raw(50 + number), number);
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
    ensure!(fs::read_dir(fixture.path("common"))?.count() == 240);
    Ok(())
}

/// Pseudo-random numbers that are the same each time (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn pick(&mut self, from: &[i32]) -> i32 {
        from[usize::try_from(self.next() % from.len() as u64).unwrap()]
    }
}

#[test]
fn rubbish_in_every_field_is_answered_and_does_no_harm() -> Result<()> {
    const CALLS: [i32; 37] = [
        5, 6, 9, 10, 14, 15, 33, 38, 39, 40, 63, 83, 85, 92, 93, 94, 95, 107, 108, 118, 148, 180,
        181, 182, 196, 197, 268, 271, 299, 353, 371, 0x1000, 0x1001, 0x1002, 0x1003, 0x1004, 0,
    ];
    let outside = tempfile::tempdir()?;
    fs::write(outside.path().join("victim"), b"unharmed")?;
    let fixture = Fixture::with(&[], |options| options.symlinks = SymlinkPolicy::Patched)?;
    std::os::unix::fs::symlink(outside.path(), fixture.path("out"))?;
    let client = fixture.client();
    let mut numbers = Numbers(1);
    let name = b"//../out/victim\0";
    for _ in 0..4000 {
        let mut memory = vec![0xee; 5000];
        memory[..name.len()].copy_from_slice(name);
        let mut lent = SharedBuffers::new();
        let address = i32::from_ne_bytes(lent.writable(&mut memory).to_ne_bytes());
        let length = i32::try_from(name.len())?;
        let odd = [
            address,
            address + 5,
            address + 4999,
            0,
            1,
            2,
            3,
            -1,
            16,
            length,
            4096,
            4097,
            0x42,
            0x0010_0000,
            i32::MAX,
            i32::MIN,
        ];
        let arm = M7 {
            i1: numbers.pick(&odd),
            i2: numbers.pick(&odd),
            i3: numbers.pick(&odd),
            i4: numbers.pick(&odd),
            p1: numbers.pick(&odd).cast_unsigned(),
            p2: numbers.pick(&odd).cast_unsigned(),
        };
        let kind = numbers.pick(&CALLS);
        let answer = client.ask(&Message::new(kind, &arm), &mut lent).kind;
        ensure!(answer >= -133, "{kind} {arm:?} is answered with {answer}");
    }
    ensure!(fs::read(outside.path().join("victim"))? == b"unharmed");
    ensure!(fs::read_dir(outside.path())?.count() == 1);
    ensure!(client.root_path().as_deref() == Ok("/"));
    Ok(())
}

#[test]
fn what_others_change_is_seen_in_a_moment() -> Result<()> {
    for (arguments, patience) in [(&["--cache=never"][..], 0), (&["--cache=auto"], 1500)] {
        let fixture = Fixture::with(arguments, |_| ())?;
        let client = fixture.client();
        fs::create_dir_all(fixture.path("a/b"))?;
        fixture.put("a/b/file", b"old")?;
        ensure!(client.contents("//a/b/file").as_deref() == Ok(b"old".as_slice()));
        fs::rename(fixture.path("a"), fixture.path("c"))?;
        fs::create_dir_all(fixture.path("a/b"))?;
        fixture.put("a/b/file", b"new")?;
        thread::sleep(Duration::from_millis(patience));
        ensure!(
            client.contents("//a/b/file").as_deref() == Ok(b"new".as_slice()),
            "{arguments:?}"
        );
    }
    Ok(())
}

#[test]
fn a_daemon_that_others_wrote_is_served_from_as_well() -> Result<()> {
    let program = match tools::virtiofsd() {
        Ok(program) => program,
        Err(error) => {
            eprintln!("SKIPPED: virtiofsd does not build: {error:#}");
            return Ok(());
        }
    };
    let share = tempfile::tempdir()?;
    let options = daemon::Options::new(share.path())
        .program(&program)
        .arguments(&["--sandbox=none"]);
    let fixture = Fixture::behind(share, &options, |options| {
        options.symlinks = SymlinkPolicy::Follow
    })?;
    crate::carriers::work(&fixture.client(), "//work");
    std::os::unix::fs::symlink("/file", fixture.path("link"))?;
    fixture.put("file", b"contents")?;
    ensure!(fixture.client().contents("//link").as_deref() == Ok(b"contents".as_slice()));
    Ok(())
}

#[test]
fn files_that_are_not_used_cost_the_daemon_nothing() -> Result<()> {
    let fixture = Fixture::with(&["--inode-file-handles=prefer"], |options| options.open = 8)?;
    let client = fixture.client();
    let idle = fixture.daemon.descriptors()?;
    let files: Vec<i32> = (0..100)
        .map(|number| client.create(&format!("//file-{number}"), 0o600).unwrap())
        .collect();
    // Each inode has a descriptor, each file that is open another.
    let open = fixture.daemon.descriptors()?.saturating_sub(idle + 100);
    ensure!(open <= 9, "{open} files are open");

    client.unlink("//file-0").unwrap();
    client.rename("//file-2", "//file-1").unwrap();
    fs::remove_file(fixture.path("file-3"))?;
    for (number, file) in files.iter().enumerate() {
        let data = format!("of {number}");
        ensure!(
            client.pwrite(*file, data.as_bytes(), 0) == Ok(data.len()),
            "{number}"
        );
    }
    for (number, file) in files.iter().enumerate().rev() {
        let data = format!("of {number}").into_bytes();
        ensure!(client.pread(*file, 100, 0) == Ok(data), "{number}");
    }
    ensure!(
        fs::read(fixture.path("file-1"))? == b"of 2"
            && fs::read(fixture.path("file-99"))? == b"of 99"
    );
    for file in files {
        ensure!(client.close(file) == Ok(()));
    }
    Ok(())
}
