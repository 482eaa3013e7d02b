//! Every request has a reply.

use std::ffi::CString;

use anyhow::{Result, ensure};
use gangplank_dvk::abi::{Endpoint, M1, M2, Message};
use gangplank_dvk::endpoint::SharedBuffers;
use zerocopy::IntoBytes;

use super::{EEXIST, EINVAL, ENOSYS, is};
use crate::client::{STACK_1, STACK_2, text};
use crate::fixture::Fixture;

#[test]
fn d6_seeking_a_file_is_not_implemented() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    let file = client.create("//file", 0o600).unwrap();
    let arm = M2 {
        i1: file,
        i2: 0,
        ..STACK_2
    };
    ensure!(client.call(19, &arm) == Err(ENOSYS) && client.call(140, &arm) == Err(ENOSYS));
    Ok(())
}

#[test]
fn d15_and_d16_whatever_is_asked_is_answered() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    for kind in (1..420).chain([0x7ff, 0xfff, 0x1005, 0x2001, 99_999, i32::MAX]) {
        let answer = client.call(kind, &STACK_1);
        let served = [
            5, 6, 9, 10, 14, 15, 33, 38, 39, 40, 63, 83, 85, 92, 93, 94, 95, 107, 108, 118, 148,
            180, 181, 182, 196, 197, 268, 271, 299, 353, 371,
        ];
        match answer {
            Err(errno) if served.contains(&kind) => ensure!(errno != ENOSYS, "{kind}"),
            other => ensure!(other == Err(ENOSYS), "{kind}: {other:?}"),
        }
    }
    for kind in [-1, -107, i32::MIN] {
        ensure!(client.call(kind, &STACK_2) == Err(EINVAL), "{kind}");
    }
    // The invalid requests have opened, made and removed nothing.
    ensure!(client.names("//").unwrap().is_empty());
    Ok(())
}

#[test]
fn d16_an_answer_sent_back_as_a_request_comes_again() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    ensure!(
        client.call(0, &STACK_1) == Err(ENOSYS),
        "there was none before"
    );
    let name = text("//made");
    let ask = |kind, mode| {
        let mut lent = SharedBuffers::new();
        let arm = M1 {
            i1: i32::try_from(name.len()).unwrap(),
            i2: mode,
            p1: lent.read_only(&name),
            ..STACK_1
        };
        client.ask(&Message::new(kind, &arm), &mut lent)
    };
    let made = ask(39, 0o700);
    ensure!(made.kind == 0);
    let again = client.ask(&made, &mut SharedBuffers::new());
    ensure!(again == made, "and the directory is not made again");
    let exists = ask(39, 0o700);
    ensure!(exists.kind == -EEXIST);
    ensure!(client.ask(&exists, &mut SharedBuffers::new()) == exists);
    let other = fixture.client_at(Endpoint::from_raw(11), 101);
    ensure!(
        other.call(0, &STACK_1) == Err(ENOSYS),
        "another client's is not told"
    );
    Ok(())
}

#[test]
fn d19_any_endpoint_serves_any_other() -> Result<()> {
    let fixture = Fixture::new()?;
    fixture.put("file", b"contents")?;
    for raw in [-2, 0, 10, 30, 220] {
        let client = fixture.client_at(Endpoint::from_raw(raw), 500);
        ensure!(is(&client.contents("//file"), b"contents"), "{raw}");
    }
    Ok(())
}

#[test]
fn d20_a_client_that_has_gone_holds_nobody_up() -> Result<()> {
    let fixture = Fixture::new()?;
    fixture.put("file", b"contents")?;
    let gone = fixture
        .carrier
        .bind_as(crate::fixture::dc(), Endpoint::from_raw(12), 7);
    let name = text("//file");
    for _ in 0..200 {
        let mut lent = SharedBuffers::new();
        let arm = M1 {
            i1: i32::try_from(name.len()).unwrap(),
            i2: 4,
            p1: lent.read_only(&name),
            ..STACK_1
        };
        // It sends a request and does not wait for the reply.
        let asked = Message::new(33, &arm);
        let _ = gone.sendrec(
            crate::fixture::SERVER,
            &asked,
            &mut lent,
            std::time::Duration::ZERO,
        );
    }
    let started = std::time::Instant::now();
    ensure!(is(&fixture.client().contents("//file"), b"contents"));
    ensure!(started.elapsed() < std::time::Duration::from_secs(20));
    Ok(())
}

#[test]
fn an_answer_leaves_the_other_fields_as_they_came() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    let name = CString::new("//")?;
    let mut buffer = [0_u8; 68];
    let mut lent = SharedBuffers::new();
    let arm = M1 {
        i1: 3,
        p1: lent.read_only(name.as_bytes_with_nul()),
        p2: lent.writable(buffer.as_mut_bytes()),
        ..STACK_1
    };
    let answer = client.ask(&Message::new(196, &arm), &mut lent);
    ensure!(
        answer.kind == 0 && answer.arm::<M1>() == arm && answer.source == crate::fixture::SERVER
    );
    Ok(())
}
