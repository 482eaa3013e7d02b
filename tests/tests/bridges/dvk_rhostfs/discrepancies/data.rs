//! Data of files: opening, reading, writing, truncating.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use gangplank_dvk::abi::{M1, M2};
use rustix::io::Errno;

use super::{APPEND, BOTH, EBADF, EEXIST, EFAULT, EINVAL, READ, WRITE, is};
use crate::client::{STACK_1, STACK_2, text};
use crate::fixture::Fixture;

#[test]
fn d1_a_file_opened_for_writing_can_be_written() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    fixture.put("file", b"0123456789")?;
    for access in [WRITE, BOTH] {
        let file = client.open("//file", access).unwrap();
        ensure!(
            client.pwrite(file, b"ab", 2) == Ok(2),
            "access mode {access}"
        );
        client.close(file).unwrap();
    }
    let file = client.open("//file", WRITE | APPEND).unwrap();
    ensure!(client.pwrite(file, b"end", 0) == Ok(3));
    ensure!(
        client.pread(file, 1, 0) == Err(EBADF),
        "it is not open for reading"
    );
    ensure!(fs::read(fixture.path("file"))? == b"01ab456789end");
    let file = client.open("//file", READ).unwrap();
    ensure!(client.pwrite(file, b"x", 0) == Err(EBADF));
    Ok(())
}

#[test]
fn d1_a_new_file_has_its_mode_and_an_old_one_keeps_its_contents() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    let file = client.create("//new", 0o644).unwrap();
    ensure!(client.pwrite(file, b"contents", 0) == Ok(8));
    ensure!(fixture.path("new").metadata()?.permissions().mode() & 0o7777 == 0o644);
    let again = client.create("//new", 0o600).unwrap();
    ensure!(is(&client.pread(again, 100, 0), b"contents"));
    let exclusively = M1 {
        i2: 0xc2,
        i3: 0o644,
        ..STACK_1
    };
    ensure!(client.named(5, &text("//new"), exclusively) == Err(EEXIST));
    Ok(())
}

#[test]
fn d1_a_directory_can_be_opened() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    let directory = client.open("//", READ).unwrap();
    ensure!(client.fstat_by(197, directory).unwrap().mode & 0o170_000 == 0o040_000);
    let sync = M1 {
        i1: directory,
        ..STACK_1
    };
    ensure!(client.call(118, &sync) == Ok(0) && client.call(148, &sync) == Ok(0));
    ensure!(client.open("//", BOTH) == Err(Errno::ISDIR.raw_os_error()));
    ensure!(client.pread(directory, 10, 0) == Err(Errno::ISDIR.raw_os_error()));
    ensure!(client.close(directory) == Ok(()));
    Ok(())
}

#[test]
fn d2_data_is_counted_by_what_was_read_and_written() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    fixture.put("file", b"0123456789")?;
    let file = client.open("//file", BOTH).unwrap();
    ensure!(is(&client.pread(file, 4096, 0), b"0123456789"));
    ensure!(is(&client.pread(file, 4096, 7), b"789"));
    ensure!(is(&client.pread(file, 4096, 10), b""), "the end");
    ensure!(is(&client.pread(file, 0, 0), b""));
    ensure!(client.pwrite(file, b"abc", 8) == Ok(3));
    ensure!(client.pwrite(file, b"", 0) == Ok(0));
    ensure!(fs::read(fixture.path("file"))? == b"01234567abc");
    let no_memory = M2 {
        i1: file,
        i2: 4096,
        l1: 0,
        l2: 0,
        p1: 0x10,
        ..STACK_2
    };
    ensure!(client.call(180, &no_memory) == Err(EFAULT));
    ensure!(client.call(181, &no_memory) == Err(EFAULT));
    ensure!(
        fs::read(fixture.path("file"))? == b"01234567abc",
        "nothing was written"
    );
    let negative = M2 {
        i1: file,
        i2: -1,
        ..STACK_2
    };
    ensure!(client.call(180, &negative) == Err(EINVAL));
    Ok(())
}

#[test]
fn d2_long_transfers_arrive_whole() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    let data: Vec<u8> = (0..700_001_u32).flat_map(|n| n.to_le_bytes()).collect();
    let file = client.create("//long", 0o600).unwrap();
    let most = 1 << 20;
    let mut sent = 0;
    while sent < data.len() {
        let written = client.pwrite(file, &data[sent..], sent as u64).unwrap();
        ensure!(
            written == most.min(data.len() - sent),
            "{written} bytes at {sent}"
        );
        sent += written;
    }
    ensure!(fs::read(fixture.path("long"))? == data);
    let mut back = Vec::new();
    while back.len() < data.len() {
        let read = client.pread(file, data.len(), back.len() as u64).unwrap();
        ensure!(read.len() == most.min(data.len() - back.len()));
        back.extend(read);
    }
    ensure!(back == data);
    Ok(())
}

#[test]
fn d3_positions_have_64_bits() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    let file = client.create("//sparse", 0o600).unwrap();
    let position = 0x1_4000_1000;
    ensure!(client.pwrite(file, b"far away", position) == Ok(8));
    ensure!(fixture.path("sparse").metadata()?.len() == position + 8);
    ensure!(is(&client.pread(file, 4096, position + 4), b"away"));
    ensure!(is(&client.pread(file, 4, 0x4000_1000), &[0; 4]));
    ensure!(client.pread(file, 4, u64::MAX) == Err(EINVAL));
    ensure!(client.pwrite(file, b"x", u64::MAX >> 1) == Err(EINVAL));
    Ok(())
}

#[test]
fn d12_lengths_have_32_bits_without_a_sign() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    fixture.put("file", b"contents")?;
    let length = || fixture.path("file").metadata().unwrap().len();
    ensure!(client.truncate("//file", 3_000_000_000) == Ok(()) && length() == 3_000_000_000);
    ensure!(
        client.truncate("//file", 1 << 32) == Ok(()) && length() == 0,
        "cut by the client"
    );
    for access in [READ, BOTH] {
        let file = client.open("//file", access).unwrap();
        let wanted = 3_000_000_000 + u64::try_from(access)?;
        ensure!(
            client.ftruncate(file, wanted) == Ok(()) && length() == wanted,
            "{access}"
        );
    }
    ensure!(client.truncate("//", 0) == Err(Errno::ISDIR.raw_os_error()));
    Ok(())
}
