//! The golden vectors: bytes that an i386 compiler produced from DVK's declarations, decoded and
//! encoded again.

use serde_json::Value;
use zerocopy::{FromBytes, IntoBytes};

use super::rhostfs::{Statfs64, UsrDirent, UsrStat, Utimes};
use super::{
    CopyBlock, Endpoint, Generation, Header, M1, M2, M3, M7, M9, Message, Timestamp, ioctl,
};

fn document() -> Value {
    serde_json::from_str(include_str!("../../tests/vectors.json")).unwrap()
}

fn vectors() -> Vec<Value> {
    document()["vectors"].as_array().unwrap().clone()
}

fn bytes(vector: &Value) -> Vec<u8> {
    let hex = vector["hex"].as_str().unwrap().as_bytes();
    let digits = hex.chunks(2).map(|pair| str::from_utf8(pair).unwrap());
    digits
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

/// The number `key` in `value`: decimal, hexadecimal or octal.
fn number(value: &Value, key: &str) -> i64 {
    match &value[key] {
        Value::Number(number) => number.as_i64().unwrap(),
        Value::String(text) => match text.split_at(2) {
            ("0x", digits) => i64::from_str_radix(digits, 16).unwrap(),
            ("0o", digits) => i64::from_str_radix(digits, 8).unwrap(),
            _ => panic!("{key} is {text}"),
        },
        other => panic!("{key} is {other}"),
    }
}

/// Asserts that each listed field equals the vector's decoding.
macro_rules! assert_fields {
    ($value:expr, $($key:literal => $field:expr),* $(,)?) => {
        $( assert_eq!(i64::from($field), number($value, $key), "{}", $key); )*
    };
}

fn assert_message(message: &Message, decoded: &Value) {
    assert_fields!(decoded, "m_source" => message.source.raw(), "m_type" => message.kind);
    let fields = decoded.as_object().unwrap();
    if fields.contains_key("m1_i1") {
        let arm: M1 = message.arm();
        assert_fields!(
            decoded,
            "m1_i1" => arm.i1, "m1_i2" => arm.i2, "m1_i3" => arm.i3, "m1_p1" => arm.p1,
        );
        if fields.contains_key("m1_p2") {
            assert_fields!(decoded, "m1_p2" => arm.p2, "m1_p3" => arm.p3);
        }
    }
    if fields.contains_key("m2_i1") {
        let arm: M2 = message.arm();
        assert_fields!(
            decoded,
            "m2_i1" => arm.i1, "m2_i2" => arm.i2, "m2_i3" => arm.i3, "m2_l1" => arm.l1,
            "m2_l2" => arm.l2, "m2_p1" => arm.p1,
        );
    }
    if fields.contains_key("m7_i1") {
        let arm: M7 = message.arm();
        assert_fields!(
            decoded,
            "m7_i1" => arm.i1, "m7_i2" => arm.i2, "m7_i3" => arm.i3, "m7_i4" => arm.i4,
            "m7_p1" => arm.p1, "m7_p2" => arm.p2,
        );
    }
    if fields.contains_key("m9_i1") {
        let arm: M9 = message.arm();
        assert_fields!(decoded, "m9_i1" => arm.i1, "m9_l1" => arm.l1);
        assert_eq!(
            decoded["m9_t1"],
            serde_json::json!([arm.t1_sec, arm.t1_nsec])
        );
    }
}

fn assert_copy(copy: &CopyBlock, decoded: &Value) {
    assert_fields!(
        decoded,
        "v_src" => copy.src, "v_dst" => copy.dst, "v_rqtr" => copy.requester,
        "v_saddr" => copy.src_address, "v_daddr" => copy.dst_address, "v_bytes" => copy.bytes,
    );
}

fn assert_header(bytes: &[u8], generation: Generation, decoded: &Value) {
    let header = Header::decode(bytes, generation).unwrap();
    assert_fields!(
        decoded,
        "c_cmd" => header.command.raw(), "c_dcid" => header.dc, "c_src" => header.src.raw(),
        "c_dst" => header.dst.raw(), "c_snode" => header.snode, "c_dnode" => header.dnode,
        "c_rcode" => header.rcode, "c_len" => header.len, "c_batch_nr" => header.batch_nr,
        "c_flags" => header.flags.bits(),
    );
    let Timestamp { sec, nsec } = header.timestamp;
    assert_eq!(decoded["c_timestamp"], serde_json::json!([sec, nsec]));
    if !decoded["c_pid"].is_null() {
        assert_fields!(
            decoded,
            "c_pid" => header.pid, "c_snd_seq" => header.snd_seq, "c_ack_seq" => header.ack_seq,
        );
    }
    if !decoded["c_msg"].is_null() {
        assert_message(&header.message, &decoded["c_msg"]);
    }
    if !decoded["c_vcopy"].is_null() {
        assert_copy(&header.copy, &decoded["c_vcopy"]);
    }
    if !decoded["m3"].is_null() {
        let arm: M3 = header.message.arm();
        assert_fields!(&decoded["m3"], "m3_i1" => arm.i1, "m3_i2" => arm.i2, "m3_p1" => arm.p1);
        assert!(
            arm.ca1
                .starts_with(decoded["m3"]["m3_ca1"].as_str().unwrap().as_bytes())
        );
    }
    let mut back = Vec::new();
    header.encode(generation, &mut back);
    assert_eq!(back, bytes);
}

fn assert_stat(stat: &UsrStat, decoded: &Value) {
    assert_fields!(
        decoded,
        "ust_dev" => stat.dev, "ust_ino" => stat.ino, "ust_mode" => stat.mode,
        "ust_nlink" => stat.nlink,
        "ust_uid" => stat.uid, "ust_gid" => stat.gid, "ust_pad0" => stat.pad0,
        "ust_rdev" => stat.rdev,
        "ust_size" => stat.size, "ust_blksize" => stat.blksize, "ust_blocks" => stat.blocks,
        "ust_atime" => stat.atime.get(), "ust_mtime" => stat.mtime.get(),
        "ust_ctime" => stat.ctime.get(),
    );
}

fn assert_statfs(statfs: &Statfs64, decoded: &Value) {
    let wide = |value: zerocopy::little_endian::U64| i64::try_from(value.get()).unwrap();
    assert_fields!(
        decoded,
        "f_type" => statfs.kind, "f_bsize" => statfs.bsize, "f_blocks" => wide(statfs.blocks),
        "f_bfree" => wide(statfs.bfree), "f_bavail" => wide(statfs.bavail),
        "f_files" => wide(statfs.files),
        "f_ffree" => wide(statfs.ffree), "f_namelen" => statfs.namelen, "f_frsize" => statfs.frsize,
        "f_flags" => statfs.flags,
    );
    let [low, high] = statfs.fsid.map(|half| format!("{half:#x}"));
    assert_eq!(decoded["f_fsid"], serde_json::json!([low, high]));
    assert_eq!(statfs.spare, [0; 4]);
}

/// Reads `T` from exactly these bytes.
fn read<T: FromBytes>(bytes: &[u8]) -> T {
    T::read_from_bytes(bytes).ok().unwrap()
}

#[test]
fn every_vector_decodes_and_encodes_to_the_same_bytes() {
    for vector in vectors() {
        eprintln!("{}", vector["name"]);
        let bytes = bytes(&vector);
        let decoded = &vector["decoded"];
        assert_eq!(number(&vector, "size"), i64::try_from(bytes.len()).unwrap());
        match vector["kind"].as_str().unwrap() {
            "message" | "message_legacy76" => {
                let message = Message::decode(&bytes).unwrap();
                assert_message(&message, decoded);
                let mut back = vec![0; bytes.len()];
                message.encode(&mut back);
                assert_eq!(back, bytes);
            }
            "cmd" => assert_header(&bytes, Generation::Current, decoded),
            "cmd_legacy132" => assert_header(&bytes, Generation::Legacy, decoded),
            "USR_stat" => {
                let stat: UsrStat = read(&bytes);
                assert_stat(&stat, decoded);
                assert_eq!(stat.as_bytes(), bytes);
            }
            "USR_dirent" => {
                let entry: UsrDirent = read(&bytes);
                assert_fields!(
                    decoded,
                    "d_ino" => entry.ino, "d_off" => entry.off, "d_reclen" => entry.reclen,
                    "d_type" => entry.kind,
                );
                let name = decoded["d_name"].as_str().unwrap().as_bytes();
                assert_eq!(entry.name.split(|&byte| byte == 0).next(), Some(name));
                assert_eq!(entry.as_bytes(), bytes);
            }
            "statfs64" => {
                let statfs: Statfs64 = read(&bytes);
                assert_statfs(&statfs, decoded);
                assert_eq!(statfs.as_bytes(), bytes);
            }
            "timeval2" => {
                let Utimes { atime, mtime } = read(&bytes);
                assert_eq!(decoded["atime"], serde_json::json!([atime.sec, atime.usec]));
                assert_eq!(decoded["mtime"], serde_json::json!([mtime.sec, mtime.usec]));
            }
            "parm_ipc" => {
                let block: ioctl::Ipc = read(&bytes);
                assert_fields!(
                    decoded,
                    "parm_ep" => block.ep, "parm_mptr" => block.message,
                    "parm_tout" => block.timeout,
                );
            }
            "parm_bind" => {
                let block: ioctl::Bind = read(&bytes);
                assert_fields!(
                    decoded,
                    "parm_cmd" => block.cmd, "parm_dcid" => block.dcid, "parm_pid" => block.pid,
                    "parm_ep" => block.ep, "parm_nodeid" => block.nodeid,
                );
            }
            "vcopy" => {
                let copy: CopyBlock = read(&bytes);
                assert_copy(&copy, decoded);
                assert_eq!(copy.as_bytes(), bytes);
            }
            other => panic!("nothing here decodes a {other}"),
        }
    }
}

#[test]
fn the_notification_that_looks_like_a_request_is_detected() {
    let vectors = vectors();
    let vector = |name| {
        let found = vectors.iter().find(|vector| vector["name"] == name);
        Message::decode(&bytes(found.unwrap())).unwrap()
    };
    assert!(vector("notify_from_4").is_notification());
    assert!(!vector("get_rootpath_request").is_notification());
}

#[test]
fn every_endpoint_vector_is_a_slot_and_a_generation() {
    for vector in document()["endpoint_vectors"].as_array().unwrap() {
        let raw = |key| i32::try_from(number(vector, key)).unwrap();
        let endpoint = Endpoint::from_raw(raw("endpoint"));
        assert_eq!(endpoint.slot(), raw("slot"));
        assert_eq!(endpoint.generation(), raw("generation"));
        assert_eq!(
            Endpoint::new(raw("generation"), raw("slot")),
            Some(endpoint)
        );
    }
}
