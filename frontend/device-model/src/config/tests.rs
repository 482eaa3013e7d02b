//! Which files are accepted, what they mean, and how others are refused.

use std::path::Path;

use log::LevelFilter;
use proptest::prelude::*;

use super::*;

const SEED: &str = include_str!("../../../../configs/bao/config-fs.yaml");
const DM: &str = include_str!("../../../../configs/bao/config-fs-dm.yaml");
const FULL: &str = include_str!("../../../../configs/bao/config-fs-full.yaml");

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("fs.yaml"), text)
}

/// The faults of `text`.
fn refused(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

/// One device, which begins in line 2. `changes` replace or add keys of a valid one; an empty value
/// removes the key.
fn device(changes: &[(&str, &str)]) -> String {
    let mut keys = vec![
        ("id", "0"),
        ("type", "fs"),
        ("data_plane", "vhost_user"),
        ("mmio_addr", "0xa003e00"),
        ("socket", "/run/fs.sock"),
    ];
    for (key, value) in changes {
        match keys.iter_mut().find(|(known, _)| known == key) {
            Some(known) => known.1 = value,
            None => keys.push((key, value)),
        }
    }
    let lines: Vec<String> = keys
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{key}: {value}"))
        .collect();
    format!("  - {}\n", lines.join("\n    "))
}

fn devices(all: &[&str]) -> String {
    format!("devices:\n{}", all.concat())
}

fn one(changes: &[(&str, &str)]) -> String {
    devices(&[&device(changes)])
}

const MEMORY: [(&str, &str); 3] = [
    ("shmem_addr", "0x10000000"),
    ("shmem_size", "0x1000000"),
    ("shmem_path", "/dev/baoipc0"),
];

#[test]
fn bao_virtios_file_is_accepted_as_it_is() {
    let config = parse(SEED).unwrap();
    let expected = DeviceConfig {
        id: 0,
        window: GuestRange::new(0xa00_3e00, 0x200).unwrap(),
        memory: Some((
            GuestRange::new(0x1000_0000, 0x100_0000).unwrap(),
            "/dev/baoipc0".into(),
        )),
        socket: "/root/Fs.sock".into(),
        tag: None,
        num_request_queues: 1,
        queue_size: 1024,
    };
    assert_eq!(config.devices, [expected]);
    assert_eq!(config.log_level, None);
    let nodes = ["/dev/bao-io-dispatcher", "/dev/bao"].map(PathBuf::from);
    assert_eq!(config.nodes, nodes);
}

#[test]
fn bao_virtio_dms_file_is_accepted_as_it_is() {
    let config = parse(DM).unwrap();
    assert_eq!(config.devices[0].memory, None);
    assert_eq!(config.devices[0].socket, Path::new("/root/Fs0.sock"));
}

#[test]
fn file_with_every_key_means_what_it_says() {
    let config = parse(FULL).unwrap();
    assert_eq!(config.log_level, Some(LevelFilter::Info));
    let [home, data] = &config.devices[..] else {
        panic!("not two devices");
    };
    assert_eq!(home.tag.as_deref(), Some("home"));
    assert_eq!((home.num_request_queues, data.num_request_queues), (2, 1));
    assert_eq!(data.socket, Path::new("/run/gangplank/data.sock"));
}

#[test]
fn plan_tells_every_device() {
    let plan = parse(SEED).unwrap().to_string();
    for part in [
        "Bao, by /dev/bao-io-dispatcher, else /dev/bao",
        "device 0: file system",
        "0xa003e00..=0xa003fff",
        "0x10000000..=0x10ffffff, from /dev/baoipc0",
        "/root/Fs.sock",
        "1 of high priority, 1 for requests, of up to 1024 entries",
    ] {
        assert!(plan.contains(part), "{part:?} is not in {plan}");
    }
    assert_eq!(
        parse(FULL).unwrap().to_string().matches("device ").count(),
        2
    );
}

/// For each single change: the line and key of the fault, and a part of what would be right.
#[test]
fn every_wrong_value_is_refused_by_line_key_and_what_would_be_right() {
    type Changes = &'static [(&'static str, &'static str)];
    let cases: &[(Changes, &str, &str)] = &[
        (&[("id", "-1")], "2: id: ", "whole number below 2^32"),
        (
            &[("id", "4294967296")],
            "2: id: ",
            "whole number below 2^32",
        ),
        (&[("id", "zero")], "2: id: ", "whole number below 2^32"),
        (&[("id", "")], "5: id: ", "missing"),
        (&[("type", "")], "5: type: ", "missing"),
        (&[("type", "block")], "3: type: ", "fs is"),
        (
            &[("data_plane", "virtio")],
            "4: data_plane: ",
            "vhost_user is",
        ),
        (
            &[("mmio_addr", "0xa003e02")],
            "5: mmio_addr: ",
            "0xa003e00 and 0xa003e04 are next",
        ),
        (
            &[("mmio_addr", "0xfffffffffffffffc")],
            "5: mmio_addr: ",
            "0xfffffffffffffe00",
        ),
        (
            &[("mmio_addr", "0x1ffffffffffffffff")],
            "5: mmio_addr: ",
            "below 2^64",
        ),
        (&[("socket", "")], "2: socket: ", "so is socket_path"),
        (&[("socket", "\"\"")], "6: socket: ", "this is no path"),
        (
            &[("socket_path", "/root/")],
            "6: socket: ",
            "either of them",
        ),
        (
            &[("window_size", "0x100")],
            "7: window_size: ",
            "from 0x200 to 0x10000",
        ),
        (
            &[("window_size", "0x202")],
            "7: window_size: ",
            "multiple of 4",
        ),
        (
            &[("window_size", "0x10004")],
            "7: window_size: ",
            "from 0x200 to 0x10000",
        ),
        (&[("tag", "\"\"")], "7: tag: ", "1 to 36"),
        (
            &[("tag", "abcdefghijabcdefghijabcdefghijabcdefg")],
            "7: tag: ",
            "1 to 36",
        ),
        (&[("tag", "\"a\\nb\"")], "7: tag: ", "line break"),
        (
            &[("num_request_queues", "0")],
            "7: num_request_queues: ",
            "1 to 255",
        ),
        (
            &[("num_request_queues", "256")],
            "7: num_request_queues: ",
            "1 to 255",
        ),
        (&[("queue_size", "1000")], "7: queue_size: ", "power of two"),
        (&[("queue_size", "4")], "7: queue_size: ", "from 8 to 32768"),
        (
            &[("queue_size", "65536")],
            "7: queue_size: ",
            "from 8 to 32768",
        ),
        (&[("irq", "988")], "7: irq: ", "0 to 987"),
        (
            &[("shmem_addr", "0x10000000")],
            "2: shmem_size: ",
            "go together",
        ),
        (
            &[("shmem_path", "/dev/baoipc0")],
            "2: shmem_addr: ",
            "go together",
        ),
        (&[("file_path", "/disk")], "7: file_path: ", "block device"),
        (&[("guest_cid", "3")], "7: guest_cid: ", "vsock device"),
        (
            &[("sockett", "/a")],
            "7: sockett: ",
            "socket, tag, num_request_queues",
        ),
        (
            &[("read_only", "perhaps")],
            "7: read_only: ",
            "true or false",
        ),
    ];
    for (changes, blamed, right) in cases {
        let said = refused(&one(changes));
        let blamed = format!("fs.yaml:{blamed}");
        assert!(said.starts_with(&blamed), "{changes:?}: {said}");
        assert!(said.contains(right), "{changes:?}: {said}");
    }
}

#[test]
fn wrong_memory_is_refused() {
    let cases = [
        (
            ("shmem_addr", "0x10000800"),
            "7: shmem_addr: ",
            "0x10000000 and 0x10001000 are next",
        ),
        (
            ("shmem_size", "0x1000800"),
            "8: shmem_size: ",
            "0x1000000 and 0x1001000 are next",
        ),
        (("shmem_size", "0"), "8: shmem_size: ", "no memory"),
        (
            ("shmem_size", "0xd000"),
            "8: shmem_size: ",
            "the rings alone take 0xd018",
        ),
        (
            ("shmem_addr", "0xfffffffffffff000"),
            "8: shmem_size: ",
            "past the last address",
        ),
        (("shmem_path", "\"\""), "9: shmem_path: ", "no path"),
        (
            ("mmio_addr", "0x10000000"),
            "5: mmio_addr: ",
            "lie in the shared memory",
        ),
    ];
    for (change, blamed, right) in cases {
        let mut keys = MEMORY.to_vec();
        keys.push(change);
        let said = refused(&one(&keys));
        assert!(
            said.starts_with(&format!("fs.yaml:{blamed}")),
            "{change:?}: {said}"
        );
        assert!(said.contains(right), "{change:?}: {said}");
    }
}

#[test]
fn devices_that_do_not_go_together_are_refused() {
    let memory = |change: &[(&'static str, &'static str)]| {
        let mut keys = vec![("id", "1"), ("mmio_addr", "0xa003c00")];
        keys.extend(MEMORY);
        keys.extend(change);
        device(&keys)
    };
    let first = memory(&[("id", "0"), ("mmio_addr", "0xa003e00"), ("tag", "a")]);
    let cases = [
        (memory(&[("id", "0")]), "id: 0 is the device's in line 2"),
        (memory(&[("mmio_addr", "0xa003e00")]), "mmio_addr: "),
        (
            memory(&[("mmio_addr", "0xa003f00")]),
            "say so by frontend_vm",
        ),
        (
            memory(&[
                ("mmio_addr", "0x10000100"),
                ("shmem_addr", "0x20000000"),
                ("shmem_path", "/b"),
            ]),
            "overlap between",
        ),
        (
            memory(&[("shmem_size", "0x2000000")]),
            "shmem_path: /dev/baoipc0 is",
        ),
        (
            memory(&[("shmem_addr", "0x10800000"), ("shmem_path", "/b")]),
            "shmem_addr: ",
        ),
        (memory(&[("tag", "a")]), "tag: the device in line 2 has it"),
    ];
    for (second, said_of_it) in cases {
        let text = devices(&[&first, &second]);
        let said = refused(&text);
        assert!(said.starts_with("fs.yaml:11: "), "{text}{said}");
        assert!(said.contains(said_of_it), "{text}{said}");
    }
    assert!(parse(&devices(&[&first, &memory(&[])])).is_ok());
}

#[test]
fn devices_of_different_guests_may_lie_at_the_same_address() {
    let first = device(&[("frontend_vm", "one"), ("tag", "a")]);
    let second = device(&[("id", "1"), ("frontend_vm", "two"), ("tag", "a")]);
    assert!(parse(&devices(&[&first, &second])).is_ok());
}

#[test]
fn everything_wrong_is_told_at_once_in_the_order_of_the_file() {
    let said = refused(&format!(
        "log_level: loud\nnodes: []\n{}",
        one(&[("queue_size", "3"), ("irq", "1000"), ("mmio_addr", "1")])
    ));
    let blamed: Vec<&str> = said
        .lines()
        .map(|line| line.split(": ").next().unwrap())
        .collect();
    assert_eq!(
        blamed,
        [
            "fs.yaml:1",
            "fs.yaml:2",
            "fs.yaml:7",
            "fs.yaml:9",
            "fs.yaml:10"
        ]
    );
}

#[test]
fn documents_that_are_something_else_are_refused() {
    let cases = [
        ("", "fs.yaml:1: unexpected end"),
        ("devices: []\n", "devices: the list is empty"),
        ("device:\n  - id: 0\n", "1: device: there is no such key"),
        (
            "devices:\n  - id: 0\n    id: 1\n",
            "3: id: it is given twice",
        ),
        ("devices: 7\n", "fs.yaml:1: devices: expected a list"),
        ("devices:\n  - {\n", "fs.yaml:2: unclosed bracket"),
        (
            "devices:\n  - 7\n",
            "fs.yaml:2: expected keys with a value each",
        ),
        ("devices: [&a {id: *a}]\n", "fs.yaml:1: devices: recursive"),
    ];
    for (text, said_of_it) in cases {
        let said = refused(text);
        assert!(said.contains(said_of_it), "{text:?}: {said}");
    }
}

#[test]
fn file_that_is_not_there_is_named() {
    let error = Config::load(Path::new("/nonexistent/fs.yaml")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/fs.yaml"));
}

proptest! {
    #[test]
    fn no_text_panics(text in "[a-z:\\- \n\\[\\]{}&*0-9x\"']{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_number_panics(
        id in any::<u64>(), mmio in any::<u64>(), window in any::<u64>(), addr in any::<u64>(),
        size in any::<u64>(), queues in any::<u32>(), entries in any::<u32>(),
    ) {
        let device = |page: u64| format!(
            "  - {{id: {id}, type: fs, data_plane: vhost_user, mmio_addr: {mmio}, \
             window_size: {window}, shmem_addr: {}, shmem_size: {}, shmem_path: /a, socket: /s, \
             num_request_queues: {queues}, queue_size: {entries}}}\n",
            addr & page, size & page,
        );
        let _ = parse(&devices(&[&device(!0)]));
        let _ = parse(&devices(&[&device(!0xfff), &device(!0xfff)]));
    }
}

#[test]
fn socket_whose_path_no_socket_can_have_is_refused() {
    let long = format!("/run/{}.sock", "x".repeat(98));
    assert!(refused(&one(&[("socket", &long)])).contains("no socket's path has more than 107"));
    let prefix = format!("/run/{}/", "x".repeat(96));
    let refusal = refused(&one(&[("socket", ""), ("socket_path", &prefix)]));
    assert!(
        refusal.contains("socket_path: ") && refusal.contains("more than 107"),
        "{refusal}"
    );
    assert!(parse(&one(&[("socket", &long[..107])])).is_ok());
}

#[test]
fn devices_of_one_daemon_are_noted_in_the_plan() {
    let second = device(&[("id", "1"), ("mmio_addr", "0xa003c00")]);
    let plan = parse(&devices(&[&device(&[]), &second]))
        .unwrap()
        .to_string();
    assert!(
        plan.contains("devices 0 and 1 have the same daemon"),
        "{plan}"
    );
}
