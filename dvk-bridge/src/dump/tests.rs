//! Captures made of the golden vectors, and other input.

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
    show(&mut &*bytes, generation, &mut to, failed)?;
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
         COPYOUT_DATA 10@0 -> 1@1 result 0 copy 3 bytes from 10:0x47d11000 to 1:0x0 pid 1357 \
         data \"//\\x00\"\n\
         SEND_ACK 10@0 -> 1@1 result 0 pid 1357\n"
    );
}

#[test]
fn failures_show_their_names() {
    let text = dumped(&vector("wire_sndrec_error"), Some(Generation::Current)).unwrap();
    assert_eq!(
        text,
        "SNDREC_ACK 1@1 -> 10@0 result -109: destination has died (EDVSDSTDIED)\n"
    );
}

#[test]
fn the_layout_is_detected() {
    let capture = [vector("legacy132_sndrec"), vector("legacy132_sndrec")].concat();
    assert_eq!(decode::guess(&capture), Some(Generation::Legacy));
    let text = dumped(&capture, None).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[test]
fn a_batch_is_shown_with_its_commands() {
    let request = vector("wire_1_sndrec_request");
    let capture = [vector("wire_batch_header"), request.clone(), request].concat();
    let text = dumped(&capture, Some(Generation::Current)).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].ends_with("batch of 2 more"), "{text}");
    assert!(lines[2].starts_with("  SNDREC_MSG"), "{text}");
    assert_eq!(lines.len(), 3);
}

#[test]
fn an_invalid_command_ends_the_dump_with_its_offset() {
    let mut capture = vector("wire_1_sndrec_request");
    capture.extend([0x55; 120]);
    let error = dumped(&capture, Some(Generation::Current)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "byte 120 does not start a command of the current generation"
    );
    assert!(matches!(dumped(&[0x55; 400], None), Err(DumpError::Layout)));
    let text = dumped(&capture[..119], Some(Generation::Current)).unwrap();
    assert_eq!(text, "119 bytes of an incomplete command\n");
}

#[test]
fn all_bytes_are_forwarded_even_if_they_are_not_commands() {
    let request = vector("wire_1_sndrec_request");
    let nonsense = [request.clone(), vec![0x55; 1000], request].concat();
    let (mut through, mut to) = (Vec::new(), Vec::new());
    let passed = forward(
        &mut &*nonsense,
        &mut through,
        Some(Generation::Current),
        &mut timed(&mut to),
    );
    assert!(passed.is_ok());
    assert_eq!(through, nonsense);
    let text = String::from_utf8(to).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    // As in a capture: seconds and microseconds since the beginning.
    let (time, command) = text.split_once(' ').unwrap();
    let (seconds, micros) = time.split_once('.').unwrap();
    assert!(
        seconds.parse::<u64>().is_ok() && micros.len() == 6,
        "{text}"
    );
    assert!(
        command.starts_with("SNDREC_MSG") || command.contains("->"),
        "{text}"
    );
}

/// An output whose time begins now.
fn timed(to: &mut Vec<u8>) -> Timed<'_, Vec<u8>> {
    Timed {
        to,
        begun: Instant::now(),
    }
}

/// Packets as capture files contain them.
mod packets {
    use etherparse::PacketBuilder;

    use super::*;

    /// A segment from node 0 to node 1 at byte `at` of the stream.
    fn segment(at: u32, syn: bool, data: &[u8]) -> Vec<u8> {
        let ip = PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        // The SYN occupies one sequence number.
        let mut tcp = ip.tcp(40_000, 3000, 1000 + at + u32::from(!syn), 64_240);
        if syn {
            tcp = tcp.syn();
        }
        let mut packet = Vec::new();
        tcp.write(&mut packet, data).unwrap();
        packet
    }

    fn ethernet(packet: &[u8]) -> Vec<u8> {
        let addresses = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        // Short frames are padded.
        let padding = vec![0xee; 46usize.saturating_sub(packet.len())];
        [&addresses, [8, 0].as_slice(), packet, &padding].concat()
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn length(bytes: &[u8]) -> u32 {
        u32::try_from(bytes.len()).unwrap()
    }

    /// A pcap file with microseconds and a packet every half second.
    fn pcap(link: u32, packets: &[Vec<u8>]) -> Vec<u8> {
        let mut file = words(&[0xa1b2_c3d4, 0x0004_0002, 0, 0, 262_144, link]);
        for (index, packet) in (0u32..).zip(packets) {
            let (seconds, micros) = (1_600_000_000 + index / 2, index % 2 * 500_000);
            file.extend(words(&[seconds, micros, length(packet), length(packet)]));
            file.extend_from_slice(packet);
        }
        file
    }

    /// The same as pcapng, with nanoseconds.
    fn pcapng(packets: &[Vec<u8>]) -> Vec<u8> {
        let mut file = words(&[0x0a0d_0d0a, 28, 0x1a2b_3c4d, 1, u32::MAX, u32::MAX, 28]);
        // if_tsresol 9, end of options.
        let interface = [1, 32, 1, 262_144, 1 << 16 | 9, 9, 0, 32];
        file.extend(words(&interface));
        for (index, packet) in (0u64..).zip(packets) {
            let time = index * 500_000_000;
            let padded = packet.len().next_multiple_of(4);
            let whole = u32::try_from(32 + padded).unwrap();
            let [low, high] = [time, time >> 32].map(|it| (it & 0xffff_ffff) as u32);
            let sizes = [length(packet), length(packet)];
            file.extend(words(&[6, whole, 0, high, low, sizes[0], sizes[1]]));
            file.extend_from_slice(packet);
            file.resize(file.len() + padded - packet.len(), 0);
            file.extend(words(&[whole]));
        }
        file
    }

    fn shown(file: &[u8]) -> Result<String, DumpError> {
        assert!(capture::is_capture(file));
        let mut to = Vec::new();
        let mut conversations = Conversations::new(None, 3000..=3031, &mut to);
        capture::read_within(4096, file, "it", |segment| conversations.take(segment))?;
        conversations.end()?;
        Ok(String::from_utf8(to).unwrap())
    }

    /// A request, the data of its copy, and the acknowledgement.
    fn stream() -> Vec<u8> {
        [
            vector("wire_1_sndrec_request"),
            vector("wire_3_copyout_data"),
            b"//\0".to_vec(),
            vector("wire_5_send_ack"),
        ]
        .concat()
    }

    const LINES: [&str; 3] = [
        "10.0.0.1:40000 > 10.0.0.2:3000: SNDREC_MSG 10@0 -> 1@1",
        "10.0.0.1:40000 > 10.0.0.2:3000: COPYOUT_DATA 10@0 -> 1@1",
        "10.0.0.1:40000 > 10.0.0.2:3000: SEND_ACK 10@0 -> 1@1",
    ];

    /// Asserts that `text` has these lines at these times.
    fn assert_lines(text: &str, expected: &[(&str, &str)]) {
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), expected.len(), "{text}");
        for (line, (time, rest)) in lines.iter().zip(expected) {
            assert!(line.starts_with(&format!("{time} {rest}")), "{text}");
        }
    }

    #[test]
    fn commands_of_every_link_type_and_capture_format_are_shown() {
        let stream = stream();
        let (first, second) = stream.split_at(250);
        let plain = [
            segment(0, true, &[]),
            segment(0, false, first),
            segment(250, false, second),
        ];
        let framed = plain.clone().map(|packet| ethernet(&packet));
        // The link header of the interface `any` (LINUX_SLL2): protocol, reserved, index, kind,
        // direction, address.
        let any = plain.clone().map(|packet| {
            let link = [8, 0, 0, 0, 0, 0, 0, 1, 3, 4, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0];
            [&link, packet.as_slice()].concat()
        });
        for file in [
            pcap(101, &plain),
            pcap(1, &framed),
            pcap(276, &any),
            pcapng(&framed),
        ] {
            let text = shown(&file).unwrap();
            let times = ["1.000000"; 3];
            let expected: Vec<_> = times.into_iter().zip(LINES).collect();
            assert_lines(&text, &expected);
        }
    }

    #[test]
    fn a_capture_that_begins_in_the_middle_is_shown_from_the_next_command_on() {
        let stream = stream();
        let packets = [
            segment(50, false, &stream[50..120]),
            segment(120, false, &stream[120..243]),
            segment(243, false, &stream[243..]),
        ];
        let text = shown(&pcap(101, &packets)).unwrap();
        assert_lines(&text, &[("1.000000", LINES[1]), ("1.000000", LINES[2])]);
    }

    #[test]
    fn missing_bytes_are_reported_and_later_commands_are_shown() {
        let request = vector("wire_1_sndrec_request");
        let packets = [
            segment(0, true, &[]),
            segment(
                0,
                false,
                &[request.clone(), request.clone(), request.clone()].concat(),
            ),
            segment(480, false, &request),
        ];
        let text = shown(&pcap(101, &packets)).unwrap();
        let missing = "10.0.0.1:40000 > 10.0.0.2:3000: 120 bytes were not captured";
        assert_lines(
            &text,
            &[
                ("0.500000", LINES[0]),
                ("0.500000", LINES[0]),
                ("0.500000", LINES[0]),
                ("1.000000", missing),
                ("1.000000", LINES[0]),
            ],
        );
    }

    #[test]
    fn other_packets_are_skipped_and_invalid_data_is_reported_once() {
        let mut other = Vec::new();
        let udp = PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(3000, 3000);
        udp.write(&mut other, &[1, 2, 3]).unwrap();
        let packets = [
            other,
            vec![0x45],
            segment(0, true, &[]),
            segment(0, false, &[0x55; 400]),
            segment(400, false, &[0x55; 400]),
        ];
        let text = shown(&pcap(101, &packets)).unwrap();
        let line = "10.0.0.1:40000 > 10.0.0.2:3000: cannot detect the layout";
        assert_lines(&text, &[("0.500000", line)]);
    }

    #[test]
    fn a_truncated_or_broken_file_is_read_up_to_the_fault() {
        let stream = stream();
        let packets = [segment(0, true, &[]), segment(0, false, &stream)];
        for file in [pcap(101, &packets), pcapng(&packets)] {
            for end in 24..file.len() {
                // It must end, with any result.
                let _ = shown(&file[..end]);
            }
            for at in 4..file.len() {
                let mut broken = file.clone();
                broken[at] ^= 0xff;
                let _ = shown(&broken);
            }
        }
        let mut file = pcap(101, &packets);
        file.pop();
        let text = shown(&file).unwrap();
        assert_eq!(text, "", "the only packet with data is not whole");
    }
}

/// A reader that a signal interrupts once.
struct Interrupted<'a>(bool, &'a [u8]);

impl Read for Interrupted<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if std::mem::replace(&mut self.0, false) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.1.read(room)
    }
}

/// Keeps the promise that a relayed connection ends with its peers, and not with a signal.
#[test]
fn a_signal_does_not_end_the_relay() {
    let sent = vector("wire_1_sndrec_request");
    let (mut through, mut shown) = (Vec::new(), Vec::new());
    let passed = forward(
        &mut Interrupted(true, &sent),
        &mut through,
        Some(Generation::Current),
        &mut timed(&mut shown),
    );
    assert!(passed.is_ok());
    assert_eq!((through, shown.is_empty()), (sent.clone(), false));
    let failed = |source| DumpError::Read {
        what: "it".to_owned(),
        source,
    };
    let mut shown = Vec::new();
    let generation = Some(Generation::Current);
    show(
        &mut Interrupted(true, &sent),
        generation,
        &mut shown,
        failed,
    )
    .unwrap();
    assert!(!shown.is_empty());
}
