//! Formats a command as a line.

use std::fmt::Write;

use crate::abi::{Code, Command, Endpoint, Header, HeaderFlags, M1};

/// Bytes of a payload that are shown.
const MAX_SHOWN: usize = 32;

/// Describes a command: source, destination, type and numbers.
pub(super) fn describe(header: &Header, payload: &[u8]) -> String {
    let mut line = format!(
        "{} {}@{} -> {}@{}",
        header.command, header.src, header.snode, header.dst, header.dnode
    );
    // Appending to a string does not fail.
    let _ = append(&mut line, header, payload);
    line
}

fn append(line: &mut String, header: &Header, payload: &[u8]) -> std::fmt::Result {
    if header.dc != 0 {
        write!(line, " dc {}", header.dc)?;
    }
    if header.command.is_ack() || header.rcode != 0 {
        match Code::from_result(header.rcode) {
            Some(code) => write!(line, " result {}: {code}", header.rcode)?,
            None => write!(line, " result {}", header.rcode)?,
        }
    }
    if header.command.is_copy() {
        let copy = &header.copy;
        write!(
            line,
            " copy {} bytes from {}:{:#x} to {}:{:#x}",
            copy.bytes,
            Endpoint::from_raw(copy.src),
            copy.src_address,
            Endpoint::from_raw(copy.dst),
            copy.dst_address
        )?;
    } else if !header.command.is_ack() {
        let arm: M1 = header.message.arm();
        write!(
            line,
            " type {} ({:#x}) [{:#x} {:#x} {:#x} {:#x} {:#x} {:#x}]",
            header.message.kind,
            header.message.kind,
            arm.i1,
            arm.i2,
            arm.i3,
            arm.p1,
            arm.p2,
            arm.p3
        )?;
    }
    if header.pid != 0 && header.command != Command::NONE {
        write!(line, " pid {}", header.pid)?;
    }
    if header.flags.contains(HeaderFlags::LZ4) {
        line.push_str(" LZ4");
    }
    if header.is_batch() {
        return write!(line, " batch of {} more", header.batch_nr);
    }
    if let Some(shown) = payload
        .get(..payload.len().min(MAX_SHOWN))
        .filter(|it| !it.is_empty())
    {
        write!(line, " data \"{}\"", shown.escape_ascii())?;
        if payload.len() > MAX_SHOWN {
            write!(line, " and {} bytes more", payload.len() - MAX_SHOWN)?;
        }
    }
    Ok(())
}
