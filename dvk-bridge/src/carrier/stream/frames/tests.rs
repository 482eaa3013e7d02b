//! Valid commands, in pieces and batches, and invalid bytes.

use proptest::prelude::*;

use super::*;
use crate::abi::Endpoint;

fn node(raw: i32) -> NodeId {
    NodeId::new(raw).unwrap()
}

fn frames(generation: Generation) -> Frames {
    Frames::new(node(1), node(0), generation)
}

fn header(command: Command, len: i32) -> Header {
    Header {
        src: Endpoint::from_raw(10),
        dst: Endpoint::from_raw(1),
        dnode: 1,
        len,
        ..Header::new(command)
    }
}

fn bytes(generation: Generation, header: &Header, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    header.encode(generation, &mut bytes);
    bytes.extend_from_slice(payload);
    bytes
}

/// Feeds `bytes` in portions of the room that there is.
fn feed(frames: &mut Frames, mut bytes: &[u8]) -> Result<Vec<(Header, Vec<u8>)>, FrameError> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let taken = frames.fill(|room| {
            let taken = room.len().min(bytes.len());
            room[..taken].copy_from_slice(&bytes[..taken]);
            Ok::<_, ()>(taken)
        });
        bytes = &bytes[taken.unwrap()..];
        while frames.next(|header, payload| found.send_now((*header, payload.to_vec())))? {}
    }
    Ok(found)
}

#[test]
fn a_batch_is_split_in_order() {
    let generation = Generation::Legacy;
    let notify = header(Command::NTFY_MSG, 0);
    let send = header(Command::SEND_MSG, 0);
    let inner = [bytes(generation, &notify, &[]), bytes(generation, &send, &[])].concat();
    let outer = Header {
        flags: HeaderFlags::BATCH,
        batch_nr: 2,
        ..header(Command::SNDREC_MSG, 264)
    };
    let found = feed(&mut frames(generation), &bytes(generation, &outer, &inner)).unwrap();
    let commands: Vec<_> = found.iter().map(|(header, _)| header.command).collect();
    assert_eq!(commands, [Command::SNDREC_MSG, Command::NTFY_MSG, Command::SEND_MSG]);
    assert!(found.iter().all(|(header, payload)| header.len == 0 && payload.is_empty()));
}

#[test]
fn a_command_with_data_cannot_be_batched() {
    let generation = Generation::Current;
    let inner = bytes(generation, &header(Command::COPYIN_DATA, 5), &[]);
    let outer = Header {
        flags: HeaderFlags::BATCH,
        batch_nr: 1,
        ..header(Command::SNDREC_MSG, 120)
    };
    let error = feed(&mut frames(generation), &bytes(generation, &outer, &inner)).unwrap_err();
    assert_eq!(error, FrameError::Batched(Command::COPYIN_DATA));
}

#[test]
fn another_generation_is_named() {
    let two = bytes(Generation::Legacy, &header(Command::SNDREC_MSG, 0), &[]).repeat(2);
    let error = feed(&mut frames(Generation::Current), &two).unwrap_err().to_string();
    assert!(error.contains("as a header of 120 bytes (current) has it"), "{error}");
    assert!(error.ends_with("it would fit 132 bytes (legacy)"), "{error}");
}

#[test]
fn a_length_of_two_gigabytes_is_refused_before_allocation() {
    let huge = bytes(Generation::Current, &header(Command::COPYIN_DATA, i32::MAX), &[]);
    let error = feed(&mut frames(Generation::Current), &huge).unwrap_err().to_string();
    assert!(error.starts_with("2147483647 bytes cannot follow a COPYIN_DATA"), "{error}");
}

#[test]
fn half_a_header_is_described() {
    let mut frames = frames(Generation::Legacy);
    let whole = bytes(Generation::Early, &header(Command::SNDREC_MSG, 0), &[]);
    assert!(feed(&mut frames, &whole).unwrap().is_empty());
    assert!(frames.is_inside());
    let text = frames.describe_rest();
    let start = "only 92 bytes of a command, but a header has 132 bytes (legacy)";
    assert!(text.starts_with(start), "{text}");
    assert!(text.contains("92 bytes (early)"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn commands_are_decoded_from_any_pieces(
        payloads in prop::collection::vec(0..70_000usize, 1..12),
        cut in 1..80_000usize,
        generation in prop::sample::select(Generation::ALL.to_vec()),
    ) {
        let payloads: Vec<usize> = payloads.into_iter().map(|length| length.min(65_536)).collect();
        let mut stream = Vec::new();
        for &length in &payloads {
            let header = header(Command::COPYIN_DATA, i32::try_from(length).unwrap());
            stream.extend(bytes(generation, &header, &vec![length as u8; length]));
        }
        let mut frames = frames(generation);
        let mut found = Vec::new();
        for piece in stream.chunks(cut) {
            found.extend(feed(&mut frames, piece).unwrap());
        }
        let lengths: Vec<usize> = found.iter().map(|(_, payload)| payload.len()).collect();
        prop_assert_eq!(lengths, payloads);
        for (_, payload) in &found {
            prop_assert!(payload.iter().all(|&byte| byte == payload.len() as u8));
        }
        prop_assert!(!frames.is_inside());
    }

    #[test]
    fn random_bytes_end_in_an_error_or_no_command(bytes: Vec<u8>) {
        let _ = feed(&mut frames(Generation::Current), &bytes);
    }
}
