use std::io::Read;

use clap::Parser;
use gangplank_fuse::{
    CreateIn, Dialect, InHeader, NodeId, Operation, RenameIn, Request, RequestHeader, SetxattrIn,
    Unique, WriteIn,
};
use gangplank_trace::{Kind, section_header, write_record};
use tempfile::NamedTempFile;
use zerocopy::FromBytes;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: TraceArgs,
}

/// 2026-01-31T12:00:00Z.
const NOON: u64 = 1_769_860_800_000_000_000;

fn record(operation: Operation<'_>, node: u64, errno: u32, words: [u64; 2]) -> Record {
    let header = RequestHeader {
        unique: Unique::new(8),
        node: NodeId::new(node),
        ..RequestHeader::default()
    };
    let mut bytes = Vec::new();
    let request = Request::from(operation);
    request
        .encode(&header, Dialect::default(), &mut bytes)
        .unwrap();
    let (header, args) = bytes.split_at(40);
    Record {
        guest: 1,
        ring: 1,
        time: NOON,
        duration: 1_234_567,
        errno,
        reply_len: 16,
        words,
        header: InHeader::read_from_bytes(header).unwrap(),
        args_len: u32::try_from(args.len()).unwrap(),
        args: args.to_vec(),
        ..Record::default()
    }
}

/// A trace with one of each kind of record.
fn sample() -> Vec<Record> {
    let write = WriteIn {
        fh: 3,
        offset: 4096,
        size: 100,
        ..WriteIn::default()
    };
    let create = CreateIn {
        flags: 0o102,
        mode: 0o100_644,
        umask: 0o22,
        open_flags: 0,
    };
    let setxattr = SetxattrIn {
        size: 3,
        ..SetxattrIn::default()
    };
    let lookup = |name| Operation::Lookup { name };
    vec![
        Record {
            kind: Kind::WorkerBegins,
            guest: 1,
            time: NOON - 1_000_000_000,
            ..Record::default()
        },
        record(lookup(c"missing"), 1, 2, [0; 2]),
        record(lookup(c"a\nb"), 1, 0, [5, 0]),
        Record {
            guest: 2,
            duration: 20_000_000,
            ..record(
                Operation::Create {
                    args: create,
                    name: c"new.txt",
                },
                5,
                0,
                [6, 9],
            )
        },
        Record {
            time: NOON + 60_000_000_000,
            ..record(Operation::Write(write), 6, 0, [100, 0])
        },
        record(
            Operation::Rename {
                args: RenameIn { newdir: 5 },
                name: c"one",
                new_name: c"two.txt",
            },
            1,
            18,
            [0; 2],
        ),
        record(
            Operation::Setxattr {
                args: setxattr,
                name: c"user.x",
                value: b"abc",
            },
            6,
            0,
            [0; 2],
        ),
    ]
}

fn write(records: &[Record]) -> Vec<u8> {
    let mut bytes = section_header("test");
    for record in records {
        write_record(&mut bytes, record, &record.args, 0);
    }
    bytes
}

/// What the command prints of `bytes`, and how it ends.
fn shown(bytes: &[u8], options: &str) -> (String, Result<(), Error>) {
    let trace = NamedTempFile::new().unwrap();
    std::fs::write(trace.path(), bytes).unwrap();
    let path = trace.path().to_str().unwrap();
    let words = ["trace", path]
        .into_iter()
        .chain(options.split_whitespace());
    let args = Line::try_parse_from(words).unwrap().args;
    let printed = NamedTempFile::new().unwrap();
    let source = open(&args).unwrap();
    let ended = print(&args, source, Output::new(printed.reopen().unwrap()));
    let mut text = String::new();
    printed.reopen().unwrap().read_to_string(&mut text).unwrap();
    (text, ended)
}

fn lines(options: &str) -> Vec<String> {
    let (text, ended) = shown(&write(&sample()), options);
    ended.unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn requests_are_printed_as_calls_with_their_results() {
    let expected = "\
2026-01-31T11:59:59.000000Z guest 1 --- a worker begins ---
2026-01-31T12:00:00.000000Z guest 1.1 #8 LOOKUP(node=1, name=\"missing\") = -ENOENT (No such file or directory) <0.001234>
2026-01-31T12:00:00.000000Z guest 1.1 #8 LOOKUP(node=1, name=\"a\\nb\") = node 5 <0.001234>
2026-01-31T12:00:00.000000Z guest 2.1 #8 CREATE(node=5, name=\"new.txt\", flags=O_RDWR|O_CREAT, mode=0100644, umask=022) = node 6, fh 9 <0.020000>
2026-01-31T12:01:00.000000Z guest 1.1 #8 WRITE(node=6, fh=3, offset=4096, size=100) = 100 <0.001234>
2026-01-31T12:00:00.000000Z guest 1.1 #8 RENAME(node=1, name=\"one\", newdir=5, new_name=\"two.txt\") = -EXDEV (Cross-device link) <0.001234>
2026-01-31T12:00:00.000000Z guest 1.1 #8 SETXATTR(node=6, name=\"user.x\", size=3, flags=0) = 0 <0.001234>";
    assert_eq!(lines("").join("\n"), expected);
}

#[test]
fn filters_show_what_they_name_and_all_must_hold() {
    for (options, expected) in [
        ("--guest 2", &["CREATE"][..]),
        (
            "--guest 1 --guest 2 --op CREATE,write",
            &["CREATE", "WRITE"],
        ),
        ("--node 6", &["CREATE", "WRITE", "SETXATTR"]),
        ("--node 5 --errors", &["RENAME"]),
        ("--name *.txt", &["CREATE", "RENAME"]),
        ("--name missing --errors", &["LOOKUP"]),
        ("--name [!x]ne", &["RENAME"]),
        ("--errors", &["LOOKUP", "RENAME"]),
        ("--slower-than 5ms", &["CREATE"]),
        ("--slower-than 20ms", &[]),
        ("--since 2026-01-31T12:01:00Z", &["WRITE"]),
        ("--since 2026-01-31T12:00:30 --errors", &[]),
    ] {
        let lines = lines(options);
        let operations: Vec<&str> = lines
            .iter()
            .map(|line| line.split([' ', '(']).nth(4).unwrap())
            .collect();
        assert_eq!(operations, expected, "{options}");
    }
}

#[test]
fn wrong_filters_say_what_would_be_right() {
    for (options, right) in [
        ("--op LOOK", "such as LOOKUP"),
        ("--slower-than 5", "such as 500us"),
        ("--since yesterday", "or how long ago"),
        ("--name [", "error"),
        ("--guest x", "--guest"),
    ] {
        let words = ["trace", "file"].into_iter();
        let Err(error) = Line::try_parse_from(words.chain(options.split_whitespace())) else {
            panic!("{options}");
        };
        assert!(error.to_string().contains(right), "{options}: {error}");
    }
}

#[test]
fn json_has_an_object_on_each_line() {
    let lines = lines("--json");
    let objects: Vec<serde_json::Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(objects[0]["kind"], "worker_begins");
    let create = serde_json::json!({
        "kind": "request", "time": "2026-01-31T12:00:00.000000Z", "guest": 2, "ring": 1,
        "unique": 8, "op": "CREATE", "node": 5, "uid": 0, "gid": 0, "pid": 0,
        "args": {"name": "new.txt", "flags": "O_RDWR|O_CREAT", "mode": 0o100_644, "umask": 0o22},
        "error": null, "errno": 0, "reply_len": 16, "result_node": 6, "result_fh": 9,
        "duration_ns": 20_000_000,
    });
    assert_eq!(objects[3], create);
    assert_eq!(objects[5]["error"], "EXDEV");
    assert_eq!(objects[4]["result_bytes"], 100);
}

#[test]
fn summary_counts_and_times_each_operation() {
    let lines = lines("--summary");
    let words =
        |line: &str| -> Vec<String> { line.split_whitespace().map(str::to_owned).collect() };
    assert!(lines[0].contains("operation"));
    assert_eq!(
        words(&lines[1]),
        [
            "76.4", "20000.0", "20000.0", "20000.0", "20000.0", "20000.0", "1", "0", "CREATE"
        ]
    );
    assert_eq!(
        words(&lines[2]),
        [
            "9.4", "2469.1", "1234.5", "1234.5", "1234.5", "1234.5", "2", "1", "LOOKUP"
        ]
    );
    assert_eq!(
        lines.last().unwrap(),
        "6 requests, 2 errors, 0 records lost"
    );
    let (json, ended) = shown(&write(&sample()), "--summary --json --errors");
    ended.unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["operations"][0]["errors"], 1);
    assert_eq!(json["operations"].as_array().unwrap().len(), 2);
}

#[test]
fn lost_and_damaged_records_are_told_and_all_others_shown() {
    let records = sample();
    let mut bytes = section_header("test");
    write_record(&mut bytes, &records[1], &records[1].args, 0);
    write_record(&mut bytes, &records[2], &records[2].args, 17);
    let begin = bytes.len();
    write_record(&mut bytes, &records[3], &records[3].args, 0);
    bytes.truncate(begin + 64);
    let hole = bytes.len() - begin;
    write_record(&mut bytes, &records[4], &records[4].args, 0);
    bytes.extend([6, 0, 0]);
    let (text, ended) = shown(&bytes, "");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[1], "--- 17 records of guest 1 were lost here ---");
    assert_eq!(
        lines[3],
        format!("--- {hole} bytes from {begin} on are damaged ---")
    );
    assert!(lines[4].contains("WRITE"), "{text}");
    assert!(
        lines[5].starts_with("--- the file ends within a record: its 3 bytes"),
        "{text}"
    );
    assert_eq!(lines.len(), 6);
    assert!(
        matches!(ended, Err(Error::Damaged { count: 2, .. })),
        "{ended:?}"
    );
    let (text, ended) = shown(b"a text", "");
    assert_eq!(text, "");
    assert!(matches!(ended, Err(Error::Read { .. })), "{ended:?}");
}
