//! Failed reads and writes are reported: no acknowledged data is missing, and no error or short
//! count passes for an end.

use anyhow::{Result, ensure};
use gangplank_dvk::abi::M1;
use gangplank_fuse::Opcode;
use rustix::io::Errno;

use crate::client::{Answer, Client, STACK_1, text};
use crate::faulty::Faulty;

const EIO: i32 = Errno::IO.raw_os_error();
const ENOSPC: i32 = Errno::NOSPC.raw_os_error();
const EMFILE: i32 = Errno::MFILE.raw_os_error();
const EFAULT: i32 = Errno::FAULT.raw_os_error();
const ESTALE: i32 = Errno::STALE.raw_os_error();

/// Access mode of a file that is read and written.
const BOTH: i32 = 2;

fn fsync(client: &Client, handle: i32) -> Answer<i32> {
    let arm = M1 {
        i1: handle,
        ..STACK_1
    };
    client.call(118, &arm)
}

/// The client takes a short count for the end of the file, and fills its page with zeros.
#[test]
fn a_read_is_whole_up_to_the_end_of_the_file() -> Result<()> {
    let contents: Vec<u8> = (0..200_000_u32).map(|at| at.to_le_bytes()[1]).collect();
    let faulty = Faulty::new(&contents, |_| ())?;
    let client = faulty.client();
    let file = client.open("//file", BOTH).unwrap();
    for most in [None, Some(30_000), Some(70_000)] {
        faulty.state().most = most;
        ensure!(client.pread(file, 150_000, 7).as_deref() == Ok(&contents[7..150_007]));
        ensure!(client.pread(file, 300_000, 7).as_deref() == Ok(&contents[7..]));
    }
    Ok(())
}

/// An error after a readable part is not the end of the file.
#[test]
fn a_read_that_meets_an_error_is_the_error() -> Result<()> {
    let faulty = Faulty::new(&[1; 200_000], |_| ())?;
    let client = faulty.client();
    let file = client.open("//file", BOTH).unwrap();
    faulty.state().bad = Some((70_000, Errno::IO));
    for (count, position) in [(150_000, 0), (4096, 69_632), (4096, 70_000)] {
        ensure!(
            client.pread(file, count, position) == Err(EIO),
            "{position}"
        );
    }
    ensure!(client.pread(file, 70_000, 0) == Ok(vec![1; 70_000]));
    Ok(())
}

/// The server writes the rest of a short write, and reports what fails.
#[test]
fn a_write_is_whole_or_says_how_much_and_then_why() -> Result<()> {
    let faulty = Faulty::new(b"", |_| ())?;
    let client = faulty.client();
    let file = client.open("//file", BOTH).unwrap();
    let data: Vec<u8> = (0..200_000_u32).map(|at| at.to_le_bytes()[1]).collect();
    for most in [30_000, 70_000] {
        faulty.state().files[0].1.clear();
        faulty.state().most = Some(most);
        ensure!(client.pwrite(file, &data, 0) == Ok(data.len()));
        ensure!(faulty.state().files[0].1 == data);
    }
    faulty.state().bad = Some((100_000, Errno::NOSPC));
    ensure!(client.pwrite(file, &data, 0) == Ok(100_000));
    ensure!(client.pwrite(file, &data[100_000..], 100_000) == Err(ENOSPC));
    faulty.state().bad = None;
    faulty.state().most = Some(0);
    ensure!(
        client.pwrite(file, &data, 0) == Err(EIO),
        "or it is tried for ever"
    );
    ensure!(client.pwrite(file, b"", 0) == Ok(0));
    Ok(())
}

/// Each close returns the daemon's result, as on Linux, even if another handle keeps the file open.
#[test]
fn closing_a_handle_says_what_could_not_be_written() -> Result<()> {
    let faulty = Faulty::new(b"", |_| ())?;
    let client = faulty.client();
    let first = client.open("//file", BOTH).unwrap();
    let second = client.open("//file", BOTH).unwrap();
    ensure!(client.dup2(first, second) == Ok(second));
    ensure!(client.pwrite(first, b"x", 0) == Ok(1));
    faulty.state().failing = vec![(Opcode::Flush, Errno::NOSPC)];
    ensure!(client.close(first) == Err(ENOSPC));
    ensure!(client.close(second) == Ok(()), "it is said once");
    Ok(())
}

/// The previous file of a handle has no other way to report failed writes.
#[test]
fn what_a_widened_handle_could_not_write_is_said_later() -> Result<()> {
    for closes in [false, true] {
        let faulty = Faulty::new(b"", |_| ())?;
        let client = faulty.client();
        let narrow = client.open("//file", 1).unwrap();
        ensure!(client.pwrite(narrow, b"x", 0) == Ok(1));
        let wide = client.open("//file", BOTH).unwrap();
        faulty.state().failing = vec![(Opcode::Flush, Errno::NOSPC)];
        ensure!(
            client.dup2(wide, narrow) == Ok(narrow),
            "it is the wide one"
        );
        if closes {
            ensure!(client.close(narrow) == Err(ENOSPC));
            ensure!(client.close(wide) == Ok(()));
        } else {
            ensure!(fsync(&client, narrow) == Err(ENOSPC));
            ensure!(fsync(&client, narrow) == Ok(0));
        }
    }
    Ok(())
}

/// A mount sends this when a program closes a file, which may be open elsewhere.
#[test]
fn a_handle_put_in_its_own_place_says_what_could_not_be_written() -> Result<()> {
    let faulty = Faulty::new(b"", |_| ())?;
    let client = faulty.client();
    let file = client.open("//file", BOTH).unwrap();
    ensure!(client.pwrite(file, b"x", 0) == Ok(1));
    faulty.state().failing = vec![(Opcode::Flush, Errno::NOSPC)];
    ensure!(client.dup2(file, file) == Err(ENOSPC));
    ensure!(client.dup2(file, file) == Ok(file));
    ensure!(
        client.pwrite(file, b"x", 0) == Ok(1),
        "it is open all the same"
    );
    Ok(())
}

/// The server flushes a file before it closes it to save descriptors, because a later open does not
/// see the earlier failure. It keeps the error for the writer.
#[test]
fn what_a_parked_file_could_not_write_is_said_later() -> Result<()> {
    for failing in [Opcode::Fsync, Opcode::Flush] {
        let faulty = Faulty::new(b"", |options| options.open = 4)?;
        let client = faulty.client();
        let written = client.open("//file", BOTH).unwrap();
        ensure!(client.pwrite(written, b"x", 0) == Ok(1));
        faulty.state().failing = vec![(failing, Errno::IO)];
        let others = (0..8).map(|number| {
            let file = client.create(&format!("//file-{number}"), 0o600).unwrap();
            client.pwrite(file, b"x", 0).map(|_| file)
        });
        let others: Vec<i32> = others.collect::<std::result::Result<_, _>>().unwrap();
        ensure!(faulty.state().failing.is_empty(), "files were parked");
        let failed: Vec<_> = [written]
            .iter()
            .chain(&others)
            .map(|file| fsync(&client, *file))
            .collect();
        ensure!(
            failed.iter().filter(|it| **it == Err(EIO)).count() == 1,
            "{failed:?}"
        );
        ensure!(fsync(&client, written) == Ok(0), "it is said once");
        ensure!(faulty.count(Opcode::Release) > 0);
    }
    Ok(())
}

/// A file's length is flushed like its data.
#[test]
fn a_file_that_was_cut_is_written_out_before_it_is_parked() -> Result<()> {
    let faulty = Faulty::new(b"contents", |options| options.open = 4)?;
    let client = faulty.client();
    let file = client.open("//file", BOTH).unwrap();
    ensure!(client.ftruncate(file, 3) == Ok(()));
    faulty.state().failing = vec![(Opcode::Fsync, Errno::IO)];
    for _ in 0..8 {
        let other = client.open("//file", BOTH).unwrap();
        ensure!(client.pwrite(other, b"x", 0) == Ok(1));
    }
    ensure!(fsync(&client, file) == Err(EIO));
    Ok(())
}

/// A file that was only read needs no flush when the server closes it to save descriptors.
#[test]
fn a_file_that_was_not_written_is_parked_without_more() -> Result<()> {
    let faulty = Faulty::new(b"x", |options| options.open = 4)?;
    let client = faulty.client();
    for _ in 0..8 {
        let file = client.open("//file", BOTH).unwrap();
        ensure!(client.pread(file, 1, 0) == Ok(b"x".to_vec()));
    }
    ensure!(faulty.count(Opcode::Release) > 0 && faulty.count(Opcode::Fsync) == 0);
    Ok(())
}

/// One file too many is refused before the file is made or emptied.
#[test]
fn a_refused_open_changes_nothing() -> Result<()> {
    let faulty = Faulty::new(b"contents", |options| options.handles = 1)?;
    let client = faulty.client();
    client.open("//file", BOTH).unwrap();
    ensure!(client.create("//new", 0o600) == Err(EMFILE));
    ensure!(client.lstat64("//new") == Err(Errno::NOENT.raw_os_error()));
    let emptied = M1 {
        i2: 0x242,
        i3: 0o600,
        ..STACK_1
    };
    let opens = faulty.count(Opcode::Open);
    ensure!(client.named(5, &text("//file"), emptied) == Err(EMFILE));
    ensure!(
        faulty.count(Opcode::Open) == opens,
        "the daemon was asked to empty it"
    );
    Ok(())
}

/// An entry that did not reach the client's memory comes again.
#[test]
fn an_entry_that_could_not_be_copied_is_not_lost() -> Result<()> {
    let faulty = Faulty::new(b"", |_| ())?;
    let client = faulty.client();
    client.create("//second", 0o600).unwrap();
    let directory = client.opendir("//").unwrap();
    let nowhere = M1 {
        p1: directory,
        p2: 0x10,
        ..STACK_1
    };
    ensure!(client.call(0x1002, &nowhere) == Err(EFAULT));
    let mut names = Vec::new();
    while let Some(entry) = client.readdir(directory).unwrap() {
        names.push(entry.name);
    }
    ensure!(names == ["file", "second"], "{names:?}");
    Ok(())
}

/// An error of the daemon, or an unknown position, is not the end of a directory.
#[test]
fn a_listing_that_cannot_go_on_is_an_error() -> Result<()> {
    let faulty = Faulty::new(b"", |_| ())?;
    let client = faulty.client();
    let directory = client.opendir("//").unwrap();
    faulty.state().failing = vec![(Opcode::Readdir, Errno::IO)];
    ensure!(client.readdir(directory) == Err(EIO));
    ensure!(client.readdir(directory).unwrap().is_some(), "it goes on");
    ensure!(client.seekdir(directory, (1 << 30) + 5) == Ok(()));
    ensure!(client.readdir(directory) == Err(ESTALE));
    ensure!(client.seekdir(directory, 0) == Ok(()));
    ensure!(client.readdir(directory).unwrap().is_some());
    Ok(())
}
