//! Requests whose bytes break the protocol: unknown opcodes, wrong lengths, cut arguments.

use anyhow::{Context, Result, ensure};
use gangplank_fuse::Opcode;
use gangplank_tests::driver::Setup;
use gangplank_tests::driver::fixture::Fixture;
use rustix::io::Errno;

use super::{LIMIT, request, send, unique_in, with_guest};

#[test]
fn unknown_opcodes_are_not_implemented() -> Result<()> {
    with_guest(&["unknown request"], |guest, _| {
        for opcode in [0, 7, 19, 54, 55, 100, 4095, 4097, 0x1a00_0000, u32::MAX] {
            let answer = send(guest, &request(opcode, 1, &[0; 64]))?;
            ensure!(answer == Some(Errno::NOSYS), "opcode {opcode}: {answer:?}");
        }
        let cuse_init = send(guest, &request(4096, 1, &[0; 16]))?;
        ensure!(cuse_init == Some(Errno::NOSYS), "CUSE_INIT: {cuse_init:?}");
        Ok(())
    })
}

#[test]
fn a_length_that_is_not_the_request_s_is_invalid() -> Result<()> {
    with_guest(&["whose header claims"], |guest, _| {
        let good = request(Opcode::Getattr as u32, 1, &[0; 16]);
        ensure!(
            send(guest, &good)?.is_none(),
            "the request is good as it is"
        );
        for len in [0, 1, 39, 40, 55, 57, 4096, u32::MAX] {
            let mut bad = good.clone();
            bad[..4].copy_from_slice(&len.to_le_bytes());
            let answer = send(guest, &bad)?;
            ensure!(answer == Some(Errno::INVAL), "len {len}: {answer:?}");
        }
        Ok(())
    })
}

#[test]
fn arguments_cut_anywhere_are_invalid() -> Result<()> {
    with_guest(&["malformed request"], |guest, _| {
        for opcode in Opcode::ALL.iter().filter(|opcode| opcode.expects_reply()) {
            // These have no argument or an optional one.
            if matches!(opcode, Opcode::Readlink | Opcode::Statfs | Opcode::Destroy) {
                continue;
            }
            let answer = send(guest, &request(*opcode as u32, 1, &[]))?;
            ensure!(answer == Some(Errno::INVAL), "{opcode:?}: {answer:?}");
        }
        Ok(())
    })
}

#[test]
fn random_requests_hurt_nobody() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let mut guest = fixture.guest(&Setup::default())?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..20_000 {
        let len = usize::try_from(random.next() % 200)?;
        let arguments: Vec<u8> = (0..len).map(|_| random.byte()).collect();
        let opcode = u32::try_from(random.next() % 55)?;
        // Node numbers from a small range, which hit the root and new nodes.
        let bytes = request(opcode, random.next() % 6, &arguments);
        let room = usize::try_from(random.next() % 600)?;
        let ticket = guest.submit_bytes(1, unique_in(&bytes), &bytes, room)?;
        // Any reply will do, but there must be one.
        let answered = guest.finish_within(ticket, LIMIT);
        if let Err(gangplank_tests::driver::Error::Late { .. }) = answered {
            answered.with_context(|| format!("{bytes:?}\n{}", fixture.log()))?;
        }
    }
    drop(guest);
    fixture.survive(&[])
}

/// xorshift64, with a fixed seed: the same requests each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }
}

#[test]
fn a_request_longer_than_any_is_refused_before_it_is_copied() -> Result<()> {
    with_guest(&["bytes of arguments"], |guest, _| {
        let answer = send(
            guest,
            &request(Opcode::Lookup as u32, 1, &vec![b'x'; 4 << 20]),
        )?;
        ensure!(answer == Some(Errno::TOOBIG), "{answer:?}");
        Ok(())
    })
}
