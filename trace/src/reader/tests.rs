use gangplank_fuse::{Dialect, InHeader, Opcode};
use proptest::prelude::*;

use super::*;
use crate::{Kind, MAX_ARGS, MAX_RECORD, Told, section_header, write_record};

fn lookup(guest: u32, name: &[u8]) -> Record {
    let args = [name, b"\0"].concat();
    Record {
        guest,
        ring: 1,
        time: 1_700_000_000_123_456_789,
        duration: 4321,
        errno: 0,
        reply_len: 144,
        words: [5, 0],
        dialect: Dialect::default(),
        header: InHeader {
            len: u32::try_from(40 + args.len()).unwrap(),
            opcode: Opcode::Lookup as u32,
            unique: 6,
            nodeid: 1,
            uid: 1000,
            ..InHeader::default()
        },
        args_len: u32::try_from(args.len()).unwrap(),
        args,
        kind: Kind::Request,
    }
}

fn trace(records: &[Record]) -> Vec<u8> {
    let mut bytes = section_header("test 1");
    for record in records {
        write_record(&mut bytes, record, &record.args, 0);
    }
    bytes
}

fn read(bytes: &[u8]) -> Vec<Item> {
    let mut reader = Reader::new(bytes);
    std::iter::from_fn(|| reader.next(false).unwrap()).collect()
}

fn item(record: &Record) -> Item {
    Item::Record {
        record: Box::new(record.clone()),
        lost: 0,
    }
}

#[test]
fn records_are_read_as_they_were_written() {
    let records = [lookup(1, b"one"), lookup(2, b"another name")];
    let bytes = trace(&records);
    assert_eq!(read(&bytes), records.each_ref().map(item));
    assert_eq!(records[0].told(), Told::Node(5));
    let request = records[0].request().unwrap();
    assert_eq!(request.operation.opcode(), Opcode::Lookup);
}

#[test]
fn lost_records_are_counted_before_the_next() {
    let record = lookup(1, b"a");
    let mut bytes = section_header("test 1");
    write_record(&mut bytes, &record, &record.args, 17);
    assert!(matches!(read(&bytes)[..], [Item::Record { lost: 17, .. }]));
}

#[test]
fn value_of_an_extended_attribute_is_left_out_and_its_length_kept() {
    for setxattr_ext in [false, true] {
        let mut args = 7u32.to_le_bytes().to_vec();
        args.extend([0; 4]);
        args.extend(vec![0; if setxattr_ext { 8 } else { 0 }]);
        args.extend(b"user.secret\0hunter2");
        let mut record = lookup(1, b"");
        record.dialect.setxattr_ext = setxattr_ext;
        record.header.opcode = Opcode::Setxattr as u32;
        record.header.len = u32::try_from(40 + args.len()).unwrap();
        let mut bytes = section_header("test 1");
        write_record(&mut bytes, &record, &args, 0);
        assert!(!bytes.windows(7).any(|part| part == b"hunter2"));
        let [Item::Record { record, .. }] = &mut read(&bytes)[..] else {
            panic!("no record");
        };
        record.complete();
        let request = record.request().unwrap();
        let gangplank_fuse::Operation::Setxattr { args, name, value } = request.operation else {
            panic!("{request:?}");
        };
        assert_eq!((args.size, name, value), (7, c"user.secret", &[0; 7][..]));
    }
}

#[test]
fn the_longest_record_fits_a_fifo_whole() {
    let record = lookup(1, &vec![b'x'; 9000]);
    let mut bytes = Vec::new();
    write_record(&mut bytes, &record, &record.args, u64::MAX);
    assert!(bytes.len() <= MAX_RECORD);
    let [Item::Record { record, .. }] = &read(&[section_header("t"), bytes].concat())[..] else {
        panic!("no record");
    };
    assert_eq!((record.args_len, record.args.len()), (9001, MAX_ARGS));
    assert!(record.request().is_err());
}

#[test]
fn other_files_are_no_traces() {
    for bytes in [&b""[..], b"hello", &[0; 4096], &[b'x'; 3 << 20]] {
        let error = Reader::new(bytes).next(false).unwrap_err();
        assert!(matches!(error, ReadError::NotATrace), "{error}");
    }
    let mut ethernet = section_header("test 1");
    let at = ethernet.windows(2).position(|two| two == [147, 0]).unwrap();
    ethernet[at] = 1;
    let error = Reader::new(&ethernet[..]).next(false).unwrap_err();
    assert!(matches!(error, ReadError::LinkType(1)), "{error}");
    let mut later = trace(&[lookup(1, b"a")]);
    let at = section_header("test 1").len() + 8 + PACKET_HEAD;
    assert_eq!(later[at], VERSION);
    later[at] = 9;
    let error = Reader::new(&later[..]).next(false).unwrap_err();
    assert!(matches!(error, ReadError::Version(9)), "{error}");
}

#[test]
fn growing_file_is_read_on_from_where_its_last_block_is_not_whole() {
    let record = lookup(1, b"growing");
    let bytes = trace(std::slice::from_ref(&record));
    let mut reader = Reader::new(std::io::Cursor::new(Vec::new()));
    for byte in &bytes[..bytes.len() - 1] {
        reader.input.get_mut().push(*byte);
        assert_eq!(reader.next(true).unwrap(), None);
    }
    reader.input.get_mut().push(bytes[bytes.len() - 1]);
    assert_eq!(reader.next(true).unwrap(), Some(item(&record)));
}

proptest! {
    #[test]
    fn damaged_traces_lose_what_is_damaged_and_no_more(
        cut in 1usize..200,
        hole in 0usize..3,
    ) {
        let records: Vec<_> = (1..=4)
            .map(|guest| lookup(guest, b"a name of some length"))
            .collect();
        let mut bytes = section_header("test 1");
        let mut ends = Vec::new();
        for record in &records {
            write_record(&mut bytes, record, &record.args, 0);
            ends.push(bytes.len());
        }
        // A process that was killed has written a part of its block; others go on behind it.
        let (begin, end) = (ends[hole], ends[hole + 1]);
        let kept = begin + (cut.min(end - begin - 1) & !3);
        bytes.drain(kept..end);
        let found = read(&bytes);
        let whole: Vec<u32> = found
            .iter()
            .filter_map(|item| match item {
                Item::Record { record, .. } => Some(record.guest),
                _ => None,
            })
            .collect();
        let missing = u32::try_from(hole + 2).unwrap();
        let expected: Vec<u32> = (1..=4).filter(|guest| *guest != missing).collect();
        prop_assert_eq!(whole, expected);
        let is_told = found.iter().any(|item| !matches!(item, Item::Record { .. }));
        prop_assert_eq!(is_told, kept > begin);
    }

    #[test]
    fn truncated_traces_give_all_whole_records(len in 0usize..2000) {
        let records: Vec<_> = (1..=4)
            .map(|guest| lookup(guest, b"a name of some length"))
            .collect();
        let bytes = trace(&records);
        let header = section_header("test 1").len();
        let block = (bytes.len() - header) / 4;
        let len = header + len % (bytes.len() - header);
        let found = read(&bytes[..len]);
        let whole = (len - header) / block;
        let expected: Vec<_> = records[..whole].iter().map(item).collect();
        prop_assert_eq!(&found[..whole], &expected[..]);
        let rest = (len - header) % block;
        match found.get(whole) {
            None => prop_assert_eq!(rest, 0),
            Some(last) => {
                let is_right = matches!(last, Item::Truncated { offset, len: told }
                    if *offset == (len - rest) as u64 && *told == rest as u64);
                prop_assert!(is_right, "{:?}", last);
            }
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(noise in prop::collection::vec(any::<u8>(), 0..3000)) {
        let mut bytes = trace(&[lookup(1, b"a")]);
        bytes.extend(noise);
        let mut reader = Reader::new(&bytes[..]);
        while let Ok(Some(_)) = reader.next(false) {}
    }
}
