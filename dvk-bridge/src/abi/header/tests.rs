//! Invalid headers, and headers of another generation.

use proptest::prelude::*;

use super::*;

fn node(raw: i32) -> NodeId {
    NodeId::new(raw).unwrap()
}

/// A request of node 0 to node 1.
fn request() -> Header {
    Header {
        src: Endpoint::from_raw(10),
        dst: Endpoint::from_raw(1),
        dnode: 1,
        ..Header::new(Command::SNDREC_MSG)
    }
}

fn check(change: impl FnOnce(&mut Header)) -> Result<(), HeaderError> {
    let mut header = request();
    change(&mut header);
    header.check(Generation::Current, node(0), node(1))
}

/// The error of a request after `change`.
fn refusal(change: impl FnOnce(&mut Header)) -> String {
    check(change).unwrap_err().to_string()
}

#[test]
fn a_peers_header_passes() {
    assert_eq!(check(|_| ()), Ok(()));
}

#[test]
fn invalid_headers_are_refused_with_the_reason() {
    assert_eq!(
        refusal(|header| header.command = Command::from_raw(0x77)),
        "unknown command 0x77"
    );
    assert_eq!(
        refusal(|header| header.snode = 2),
        "the message is from node 2, but the peer is node 0"
    );
    assert_eq!(
        refusal(|header| header.dnode = 0),
        "the message is for node 0, but this is node 1"
    );
    assert_eq!(refusal(|header| header.dc = 32), "unknown container 32");
}

#[test]
fn lengths_have_a_limit() {
    for len in [i32::MIN, -1, 65_537, i32::MAX] {
        assert_eq!(
            refusal(|header| header.len = len),
            format!("{len} bytes cannot follow a SNDREC_MSG")
        );
    }
    for (batch_nr, len) in [
        (2, 239),
        (-1, -120),
        (1025, 123_000),
        (0x0400_0000, i32::MAX),
    ] {
        let text = refusal(|header| {
            header.flags = HeaderFlags::BATCH;
            (header.batch_nr, header.len) = (batch_nr, len);
        });
        assert_eq!(
            text,
            format!("a batch of {batch_nr} headers cannot be {len} bytes")
        );
    }
}

#[test]
fn a_hello_may_contain_old_data() {
    let stale = check(|header| {
        header.command = Command::NONE;
        header.flags = HeaderFlags::BATCH;
        (header.snode, header.dnode, header.dc, header.batch_nr) = (5, 6, 77, 3);
    });
    assert_eq!(stale, Ok(()));
}

#[test]
fn two_headers_tell_their_generation() {
    for generation in Generation::ALL {
        let mut bytes = Vec::new();
        request().encode(generation, &mut bytes);
        request().encode(generation, &mut bytes);
        let guessed = Generation::guess(&bytes, node(0), node(1));
        assert_eq!(guessed, [generation]);
    }
}

#[test]
fn random_bytes_match_no_generation() {
    assert_eq!(Generation::guess(&[0x55; 300], node(0), node(1)), []);
    assert_eq!(Generation::guess(&[], node(0), node(1)), []);
}

proptest! {
    #[test]
    fn a_decoded_header_encodes_to_the_same_bytes(
        bytes: [[u8; 22]; 6],
        generation in prop::sample::select(Generation::ALL.to_vec()),
    ) {
        let bytes = &bytes.as_flattened()[..generation.header_size()];
        let header = Header::decode(bytes, generation).unwrap();
        let mut back = Vec::new();
        header.encode(generation, &mut back);
        prop_assert_eq!(&back, bytes);
        // Neither depends on the header being valid.
        let _ = header.check(generation, node(0), node(1));
        prop_assert!(header.payload(generation).unwrap_or(0) <= MAX_BATCH * 132);
    }

    #[test]
    fn an_incomplete_header_is_an_error(length in 0..92usize) {
        let error = Header::decode(&vec![0; length], Generation::Early).unwrap_err();
        prop_assert_eq!(error, HeaderError::Short { got: length, wanted: 92 });
    }
}
