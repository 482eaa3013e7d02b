use std::fs;

use tempfile::TempDir;

use super::*;
use crate::abi::{Generation, NodeId};
use crate::rhostfs::server::{Credentials, SymlinkPolicy};

/// A directory with files. `rhostfs.cfg` is the first.
fn place(files: &[(&str, &str)]) -> TempDir {
    let place = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(place.path().join(name), text).unwrap();
    }
    place
}

fn load(text: &str) -> Result<Config, ConfigError> {
    let place = place(&[("rhostfs.cfg", text)]);
    Config::load(&place.path().join("rhostfs.cfg"), None)
}

/// The errors without the name of the directory.
fn faults(text: &str) -> Vec<String> {
    match load(text) {
        Err(ConfigError::Faults { faults }) => faults
            .iter()
            .map(|fault| {
                let text = fault.to_string();
                let at = text.find("rhostfs.cfg").unwrap();
                text[at + "rhostfs.cfg:".len()..].to_owned()
            })
            .collect(),
        other => panic!("{other:?}"),
    }
}

fn assert_faults(text: &str, starts: &[&str]) {
    let faults = faults(text);
    assert_eq!(faults.len(), starts.len(), "{faults:#?}");
    for (fault, start) in faults.iter().zip(starts) {
        assert!(fault.starts_with(start), "{fault}\nis not about\n{start}");
    }
}

const ORIGINAL: &str = "# this is a comment\nrhs SERVER1 {\n    rhs_dcid  0;\n    \
                        rhs_ep    1;\n    rhs_dir   \"/some/dir\"\n};\n";

#[test]
fn the_originals_file_is_accepted_with_a_socket_from_the_command_line() {
    for text in [ORIGINAL.to_owned(), ORIGINAL.replace("rhs_dcid", "dcid")] {
        let place = place(&[("rhostfs.cfg", &text)]);
        let socket = Path::new("/run/fs.sock");
        let config = Config::load(&place.path().join("rhostfs.cfg"), Some(socket)).unwrap();
        let [server] = config.servers.as_slice() else {
            panic!("{config:?}");
        };
        assert_eq!(server.name, "SERVER1");
        assert_eq!(
            (server.dc, server.endpoint),
            (DcId::new(0).unwrap(), Endpoint::from_raw(1))
        );
        assert_eq!(server.carrier_kind, CarrierKind::Device);
        assert_eq!(server.options.root, "/some/dir");
        assert_eq!(server.options.socket, socket);
    }
    assert_faults(ORIGINAL, &["2: rhs_socket: it is missing in SERVER1"]);
}

const WHOLE: &str = r#"
node US { node_id 1; node_address 10.0.0.1; node_port_base 4000 };
peer THEM { peer_id 0; peer_host dvs0.example; peer_generation legacy; peer_announce yes; };
local HERE { local_socket "/run/switch"; local_switch_uid 7; };
dc BIG { dc_id 3; dc_procs 300; dc_tasks 35; dc_sysprocs 70 };
rhs A {
    rhs_dcid 3; rhs_ep 34; rhs_dir "/"; rhs_socket "/run/a.sock"; rhs_carrier node;
    rhs_links follow; rhs_uid 1000; rhs_gid 100; rhs_readonly yes;
    rhs_clients 5; rhs_files 6; rhs_open 4; rhs_threads 7; rhs_cache_ms 0; rhs_limit_s 9
};
rhs B { rhs_dcid 0; rhs_ep 0; rhs_dir '/sub/dir'; rhs_socket '/run/b.sock'; rhs_carrier local };
"#;

#[test]
fn several_servers_have_their_own_options() {
    let config = load(WHOLE).unwrap();
    let [a, b] = config.servers.as_slice() else {
        panic!("{config:?}");
    };
    let options = &a.options;
    assert_eq!(
        (a.carrier_kind, b.carrier_kind),
        (CarrierKind::Node, CarrierKind::Local)
    );
    assert_eq!(
        options.credentials,
        Credentials {
            uid: 1000,
            gid: 100
        }
    );
    assert_eq!(
        (options.symlinks, b.options.symlinks),
        (SymlinkPolicy::Follow, SymlinkPolicy::Refuse)
    );
    assert!(options.read_only && !b.options.read_only);
    assert_eq!(
        (options.clients, options.handles, options.workers),
        (5, 6, 7)
    );
    assert_eq!(
        (options.cache_timeout.as_millis(), options.limit.as_secs()),
        (0, 9)
    );
    assert_eq!((options.open, b.options.open), (4, 512));
    let node = config.node.unwrap();
    assert_eq!((node.id, node.port_base), (NodeId::new(1).unwrap(), 4000));
    assert_eq!(node.peers[0].host, "dvs0.example");
    assert_eq!(
        (node.peers[0].generation, node.peers[0].announce),
        (Generation::Legacy, true)
    );
    assert_eq!(node.dcs[&a.dc].procs, 300);
    assert_eq!(node.dcs[&b.dc], DcLimits::USUAL);
    assert_eq!(config.local.unwrap().switch_uid, Some(7));
}

#[test]
fn a_virtqueue_block_has_a_range_of_endpoints_that_no_other_server_has() {
    let block = "virtqueue V { vq_dcid 0; vq_ep 4; vq_socket \"/s\"; vq_carrier local;";
    let local = "local L { local_socket \"/l\"; };\n";
    let whole = format!("{local}{block} vq_queues 2; vq_guests 3; vq_idle_s 60; }};");
    let config = load(&whole).unwrap();
    let [virtqueue] = config.virtqueues.as_slice() else {
        panic!("{config:?}");
    };
    assert_eq!(virtqueue.endpoints, [4, 5, 6].map(Endpoint::from_raw));
    let options = &virtqueue.options;
    assert_eq!((options.queues, options.guests), (2, 3));
    assert_eq!(options.idle.as_secs(), 60);
    assert!(config.servers.is_empty());
    assert_eq!(config.local.unwrap().dcs[&virtqueue.dc], DcLimits::USUAL);

    let rhs =
        "rhs A { rhs_dcid 0; rhs_ep 6; rhs_dir \"/\"; rhs_socket \"/s\"; rhs_carrier local; };";
    assert_faults(
        &format!("{whole}\n{rhs}"),
        &["2: V: A has endpoint 6 of container 0 as well"],
    );
    assert_faults(
        &format!("{local}{block} vq_queues 26; }};"),
        &["2: vq_ep 4: its endpoints 4 to 30 go beyond 29, the last possible one"],
    );
    assert_faults(
        "virtqueue V {\n vq_carrier node; };",
        &[
            "1: vq_dcid: it is missing in V",
            "1: vq_ep: it is missing in V",
            "1: vq_socket: it is missing in V",
        ],
    );
    assert_faults(
        &format!("{block} }};"),
        &["1: V: its carrier needs a block `local` that names the switch"],
    );
}

#[test]
fn missing_keys_are_named() {
    assert_faults(
        "rhs A {\n rhs_carrier node; };\npeer B { };\nlocal C { };",
        &[
            "1: rhs_dcid: it is missing in A",
            "1: rhs_ep: it is missing in A",
            "1: rhs_dir: it is missing in A",
            "1: rhs_socket: it is missing in A",
            "3: peer_id: it is missing in B",
            "3: peer_host: it is missing in B",
            "3: B: no block `node` defines",
            "4: local_socket: it is missing in C",
        ],
    );
}

#[test]
fn a_missing_semicolon_is_reported() {
    assert_faults(
        "rhs A { rhs_dcid 0\n rhs_ep 1;\n rhs_dir \"/\"; rhs_socket 's'; };",
        &[
            "1: rhs_ep: it is missing in A",
            "2: rhs_ep: it is on the line of rhs_dcid",
        ],
    );
    let twice = format!("{}\n{}", ORIGINAL.replace("};", "}"), ORIGINAL);
    assert!(
        faults(&twice)
            .iter()
            .any(|fault| fault.contains("a ; is missing"))
    );
}

#[test]
fn values_are_checked_with_file_line_and_token() {
    let with = |keys: &str| {
        format!("rhs A {{\nrhs_dcid 0; rhs_ep 1; rhs_dir \"/\"; rhs_socket \"s\";\n{keys}\n}};")
    };
    for (keys, start) in [
        ("rhs_ep 2;", "3: rhs_ep: line 2 already has it"),
        ("rhs_color red;", "3: rhs_color: unknown key"),
        (
            "rhs_links some;",
            "3: rhs_links some: must be one of refuse, follow, patched",
        ),
        (
            "rhs_threads 0;",
            "3: rhs_threads 0: must be a number from 1",
        ),
        ("rhs_threads 1x;", "3: rhs_threads 1x: must be a number"),
        ("rhs_threads -1;", "3: rhs_threads -1: must be a number"),
        ("rhs_threads 99999999999999999999;", "3: rhs_threads 999"),
        (
            "rhs_threads \"3\";",
            "3: rhs_threads \"3\": must be a number",
        ),
        ("rhs_readonly;", "3: rhs_readonly: expected one value"),
        ("rhs_uid 0;", "3: rhs_uid 0: it requires rhs_gid"),
        (
            "rhs_carrier node;",
            "1: A: its carrier needs a block `node`",
        ),
        (
            "rhs_carrier local;",
            "1: A: its carrier needs a block `local`",
        ),
        ("rhs_clients { };", "3: rhs_clients: expected one value"),
    ] {
        assert_faults(&with(keys), &[start]);
    }
    for (dir, start) in [
        (
            "\"some/dir\"",
            "1: rhs_dir \"some/dir\": it must start with a slash",
        ),
        ("\"/a/../b\"", "1: rhs_dir \"/a/../b\": it contains"),
        (
            "/some/dir",
            "1: rhs_dir /some/dir: must be a string in quotes",
        ),
    ] {
        let text = format!("rhs A {{ rhs_dcid 0; rhs_ep 1; rhs_dir {dir}; rhs_socket 's' }};");
        assert_faults(&text, &[start]);
    }
}

#[test]
fn an_endpoint_is_a_system_process_and_served_once() {
    let block = |name: &str, ep: i32| {
        format!("rhs {name} {{ rhs_dcid 0; rhs_ep {ep}; rhs_dir '/'; rhs_socket 's' }};\n")
    };
    assert!(load(&block("A", 29)).is_ok());
    assert_faults(
        &block("A", 30),
        &["1: rhs_ep 30: must be a number from 0 to 29"],
    );
    let small = format!("dc D {{ dc_id 0; dc_sysprocs 36 }};\n{}", block("A", 2));
    assert_faults(&small, &["2: rhs_ep 2: must be a number from 0 to 1"]);
    let twice = block("A", 1) + &block("B", 1);
    assert_faults(&twice, &["2: B: A has endpoint 1 of container 0 as well"]);
}

#[test]
fn a_file_has_blocks_and_nothing_else() {
    assert_faults(
        "",
        &["1: rhs: no block `rhs` or `virtqueue` defines a share to serve"],
    );
    assert_faults("rhs;", &["1: rhs: expected a block"]);
    assert_faults("rhs A 1;", &["1: rhs: expected a block"]);
}

#[test]
fn files_include_others_and_a_missing_one_is_empty() {
    let place = place(&[
        ("rhostfs.cfg", "include 'sub.cfg'; include none.cfg;\n"),
        (
            "sub.cfg",
            "rhs A {\n include keys.cfg;\n rhs_ep 1; rhs_dir '/'; rhs_socket 's' };",
        ),
        ("keys.cfg", "rhs_dcid 2"),
    ]);
    let config = Config::load(&place.path().join("rhostfs.cfg"), None).unwrap();
    assert_eq!(config.servers[0].dc, DcId::new(2).unwrap());
    assert_eq!(config.warnings.len(), 1);
    assert!(
        config.warnings[0]
            .to_string()
            .contains("none.cfg: the file does not exist")
    );

    fs::write(place.path().join("sub.cfg"), "include sub.cfg;").unwrap();
    let error = Config::load(&place.path().join("rhostfs.cfg"), None).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("sub.cfg:1: sub.cfg: too many files"),
        "{error}"
    );
}

#[test]
fn braces_that_do_not_match_are_found() {
    assert!(faults("rhs A { rhs_dcid 0;")[0].starts_with("1: {: the block has no end"));
    assert!(faults("rhs A };")[0].starts_with("1: }: it ends no block"));
    let deep = "x {".repeat(100_000);
    assert!(faults(&deep)[0].contains("nested too deep"));
    assert!(faults("verb A { };")[0].starts_with("1: verb: unknown block"));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Config::load(Path::new("/nonexistent/rhostfs.cfg"), None).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/rhostfs.cfg"));
}

#[test]
fn the_example_is_accepted() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/rhostfs.cfg");
    let config = Config::load(&file, None).unwrap();
    assert!(config.warnings.is_empty());
}

#[test]
fn a_peer_has_a_host() {
    let config = |host: &str| {
        format!(
            "rhs A {{ rhs_dcid 0; rhs_ep 1; rhs_dir \"/\"; rhs_socket \"/s\"; \
             rhs_carrier node; }};\n\
             node N {{ node_id 1; }};\n\
             peer P {{ peer_id 2; {host} }};\n"
        )
    };
    assert!(load(&config("peer_host far;")).is_ok());
    for host in ["peer_host \"\";", ""] {
        let faults = faults(&config(host));
        assert!(
            faults.iter().any(|it| it.contains("peer_host")),
            "{faults:?}"
        );
    }
}
