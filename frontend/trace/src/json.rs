//! A record as a JSON object on a line. The names of the fields are part of the interface.

use gangplank_trace::{Kind, Record, Told};
use serde_json::{Map, Value, json};

use crate::arguments::{self, arguments};
use crate::text;

/// An object for a request, or for the beginning or end of a worker.
pub(crate) fn record(record: &Record) -> Value {
    let kind = match record.kind {
        Kind::Request => "request",
        Kind::WorkerBegins => "worker_begins",
        Kind::WorkerEnds => "worker_ends",
    };
    let mut object = json!({
        "kind": kind,
        "time": text::time(record),
        "guest": record.guest,
    });
    if record.kind == Kind::Request
        && let Some(fields) = object.as_object_mut()
    {
        fields.extend(request(record));
    }
    object
}

fn request(record: &Record) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    let header = &record.header;
    set("ring", record.ring.into());
    set("unique", header.unique.into());
    set("op", text::operation(record).into());
    set("node", header.nodeid.into());
    set("uid", header.uid.into());
    set("gid", header.gid.into());
    set("pid", header.pid.into());
    if let Ok(request) = record.request() {
        let arguments = arguments(&request.operation).into_iter();
        let arguments = arguments.map(|(name, value)| (name.to_owned(), argument(&value)));
        set("args", Value::Object(arguments.collect()));
    } else {
        set("args", Value::Null);
    }
    match record.errno {
        0 => set("error", Value::Null),
        _ => set("error", text::errno(record).0.into()),
    };
    set("errno", record.errno.into());
    set("reply_len", record.reply_len.into());
    match record.told() {
        Told::Nothing => {}
        Told::Node(node) => {
            set("result_node", node.into());
        }
        Told::Handle(fh) => {
            set("result_fh", fh.into());
        }
        Told::Created(node, fh) => {
            set("result_node", node.into());
            set("result_fh", fh.into());
        }
        Told::Bytes(count) => {
            set("result_bytes", count.into());
        }
        Told::Offset(offset) => {
            set("result_offset", offset.into());
        }
    }
    set("duration_ns", record.duration.into());
    fields
}

fn argument(value: &arguments::Value<'_>) -> Value {
    match value {
        arguments::Value::Number(number) => (*number).into(),
        arguments::Value::Mode(mode) => (*mode).into(),
        arguments::Value::Text(text) => text.as_str().into(),
        // What is not UTF-8 in a name becomes U+FFFD.
        arguments::Value::Name(name) => name.to_string_lossy().into(),
    }
}

/// An object for records that were lost.
pub(crate) fn lost(guest: u32, count: u64) -> Value {
    json!({ "kind": "lost", "guest": guest, "count": count })
}

/// An object for a place that cannot be read.
pub(crate) fn note(kind: &str, text: &str) -> Value {
    json!({ "kind": kind, "text": text })
}
