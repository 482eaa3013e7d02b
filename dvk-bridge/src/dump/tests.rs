//! Captures made of the golden vectors, and what is none.

use super::*;

/// The bytes of the golden vector `name`.
fn vector(name: &str) -> Vec<u8> {
    let document: serde_json::Value =
        serde_json::from_str(include_str!("../../tests/vectors.json")).unwrap();
    let vectors = document["vectors"].as_array().unwrap();
    let vector = vectors.iter().find(|it| it["name"] == name).unwrap();
    let hex = vector["hex"].as_str().unwrap().as_bytes();
    let digits = hex.chunks(2).map(|pair| str::from_utf8(pair).unwrap());
    digits
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

fn dumped(bytes: &[u8], generation: Option<Generation>) -> Result<String, DumpError> {
    let mut to = Vec::new();
    let failed = |source| DumpError::Read {
        what: "it".to_owned(),
        source,
    };
    let mut through = Vec::new();
    show(&mut &*bytes, &mut through, generation, &mut to, failed)?;
    assert_eq!(through, bytes);
    Ok(String::from_utf8(to).unwrap())
}

#[test]
fn a_call_is_shown_line_by_line() {
    let capture = [
        vector("wire_1_sndrec_request"),
        vector("wire_3_copyout_data"),
        b"//\0".to_vec(),
        vector("wire_5_send_ack"),
    ];
    assert_eq!(
        dumped(&capture.concat(), None).unwrap(),
        "SNDREC_MSG 10@0 -> 1@1 type 33 (0x21) [0x3 0x1 0x0 0x47d11000 0x0 0x0] pid 1357\n\
         COPYOUT_DATA 10@0 -> 1@1 result 0 copy 3 bytes from 10:0x47d11000 to 1:0x0 pid 1357 data \"//\\x00\"\n\
         SEND_ACK 10@0 -> 1@1 result 0 pid 1357\n"
    );
}

#[test]
fn failures_are_named() {
    let text = dumped(&vector("wire_sndrec_error"), Some(Generation::Current)).unwrap();
    assert_eq!(
        text,
        "SNDREC_ACK 1@1 -> 10@0 result -109: destination has died (EDVSDSTDIED)\n"
    );
}

#[test]
fn the_layout_is_found_out() {
    let capture = [vector("legacy132_sndrec"), vector("legacy132_sndrec")].concat();
    assert_eq!(guess(&capture), Some(Generation::Legacy));
    let text = dumped(&capture, None).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[test]
fn a_batch_is_shown_with_what_is_in_it() {
    let request = vector("wire_1_sndrec_request");
    let capture = [vector("wire_batch_header"), request.clone(), request].concat();
    let text = dumped(&capture, Some(Generation::Current)).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].ends_with("batch of 2 more"), "{text}");
    assert!(lines[2].starts_with("  SNDREC_MSG"), "{text}");
    assert_eq!(lines.len(), 3);
}

#[test]
fn what_is_no_command_ends_it_with_its_place() {
    let mut capture = vector("wire_1_sndrec_request");
    capture.extend([0x55; 120]);
    let error = dumped(&capture, Some(Generation::Current)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "byte 120: no command of the current generation"
    );
    assert!(matches!(dumped(&[0x55; 400], None), Err(DumpError::Layout)));
    let text = dumped(&capture[..119], Some(Generation::Current)).unwrap();
    assert_eq!(text, "119 bytes of a command that does not end\n");
}
