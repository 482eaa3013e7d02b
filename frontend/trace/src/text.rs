//! A record as a line, in the manner of strace(1).

use gangplank_trace::{Kind, Record, Told};
use jiff::Timestamp;
use nix::errno::Errno;

use crate::arguments::arguments;

/// The line, without its end: time, guest, ring, number of the request, operation with its
/// arguments, result, duration.
pub(crate) fn line(record: &Record) -> String {
    let time = time(record);
    let Record { guest, ring, .. } = record;
    match record.kind {
        Kind::Request => {}
        Kind::WorkerBegins => return format!("{time} guest {guest} --- a worker begins ---"),
        Kind::WorkerEnds => return format!("{time} guest {guest} --- its worker ends ---"),
    }
    format!(
        "{time} guest {guest}.{ring} #{} {} {} <{}.{:06}>",
        record.header.unique,
        call(record),
        result(record),
        record.duration / 1_000_000_000,
        record.duration / 1000 % 1_000_000
    )
}

/// In UTC, with microseconds.
pub(crate) fn time(record: &Record) -> String {
    let time = Timestamp::from_nanosecond(record.time.into()).unwrap_or_default();
    format!("{time:.6}")
}

fn call(record: &Record) -> String {
    let name = operation(record);
    let mut parts = Vec::new();
    if record.header.nodeid != 0 {
        parts.push(format!("node={}", record.header.nodeid));
    }
    match record.request() {
        Ok(request) => {
            let arguments = arguments(&request.operation).into_iter();
            parts.extend(arguments.map(|(name, value)| format!("{name}={value}")));
        }
        Err(_) if record.args.len() < usize::try_from(record.args_len).unwrap_or(usize::MAX) => {
            parts.push(format!("... {} bytes", record.args_len));
        }
        Err(error) => parts.push(format!("malformed: {error}")),
    }
    format!("{name}({})", parts.join(", "))
}

/// The operation's name, or its number.
pub(crate) fn operation(record: &Record) -> String {
    record.header.opcode().map_or_else(
        |_| format!("opcode {}", record.header.opcode),
        |opcode| opcode.name().to_owned(),
    )
}

fn result(record: &Record) -> String {
    if record.errno != 0 {
        let (name, text) = errno(record);
        return format!("= -{name} ({text})");
    }
    match record.told() {
        Told::Nothing if record.reply_len == 0 => "= ?".to_owned(),
        Told::Nothing => "= 0".to_owned(),
        Told::Node(node) => format!("= node {node}"),
        Told::Handle(fh) => format!("= fh {fh}"),
        Told::Created(node, fh) => format!("= node {node}, fh {fh}"),
        Told::Bytes(count) => format!("= {count}"),
        Told::Offset(offset) => format!("= {offset}"),
    }
}

/// Name and meaning of the error in the reply.
pub(crate) fn errno(record: &Record) -> (String, &'static str) {
    let number = i32::try_from(record.errno).unwrap_or(i32::MAX);
    let errno = Errno::from_raw(number);
    match errno {
        Errno::UnknownErrno => (number.to_string(), "unknown error"),
        errno => (format!("{errno:?}"), errno.desc()),
    }
}
