//! One text by HTTP/1.1: what a collector of metrics asks for.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use httparse::{EMPTY_HEADER, Request, Status};
use rustix::net::{Shutdown, shutdown};

use crate::deadline_io::{read_until, write_all};

/// Most bytes of a request with its headers.
const MAX_REQUEST: usize = 16 * 1024;

/// Most bytes that are read of what follows a request that is too long.
const MAX_DISCARDED: usize = 64 * 1024;

/// Most headers of a request.
const MAX_HEADERS: usize = 64;

/// Reads one request from `connection` and answers it: GET and HEAD of `path` with `text`, all
/// others with an error. The caller closes the connection.
///
/// # Errors
/// The client has gone or takes longer than `deadline`; those of `text`.
pub fn answer_get(
    connection: BorrowedFd<'_>,
    path: &str,
    media_type: &str,
    deadline: Instant,
    text: impl FnOnce() -> io::Result<String>,
) -> io::Result<()> {
    let end = |bytes: &[u8]| bytes.windows(4).any(|end| end == b"\r\n\r\n");
    let request = read_until(connection, MAX_REQUEST, deadline, end)?;
    let reply = match judge(&request, path) {
        Ok(has_body) => {
            let text = text()?;
            let body = if has_body { text.as_str() } else { "" };
            reply("200 OK", media_type, text.len(), body)
        }
        Err(status) => reply(status, "text/plain", status.len(), status),
    };
    write_all(connection, reply.as_bytes(), deadline)?;
    if request.len() >= MAX_REQUEST {
        // A socket that is closed with bytes unread resets the connection, and the client may lose
        // the reply (RFC 9112 section 9.6).
        shutdown(connection, Shutdown::Write)?;
        let _ = read_until(connection, MAX_DISCARDED, deadline, |_| false);
    }
    Ok(())
}

/// Whether the reply has a body, or the status of an error.
fn judge(request: &[u8], path: &str) -> Result<bool, &'static str> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = Request::new(&mut headers);
    match parsed.parse(request) {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) if request.len() >= MAX_REQUEST => {
            return Err("431 Request Header Fields Too Large");
        }
        _ => return Err("400 Bad Request"),
    }
    let asked = parsed.path.unwrap_or_default();
    match (parsed.method, asked.split('?').next()) {
        (Some(method @ ("GET" | "HEAD")), Some(asked)) if asked == path => Ok(method == "GET"),
        (Some("GET" | "HEAD"), _) => Err("404 Not Found"),
        _ => Err("405 Method Not Allowed"),
    }
}

fn reply(status: &str, media_type: &str, len: usize, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {len}\r\n\
         Connection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    fn exchange(request: &[u8]) -> String {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(request).unwrap();
        client.shutdown(net::Shutdown::Write).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        answer_get(server.as_fd(), "/metrics", "text/x", deadline, || {
            Ok("numbers\n".to_owned())
        })
        .unwrap();
        drop(server);
        let mut reply = String::new();
        client.read_to_string(&mut reply).unwrap();
        reply
    }

    #[test]
    fn each_request_has_the_reply_of_its_kind() {
        let long = format!("GET /metrics HTTP/1.1\r\na: {}", "x".repeat(MAX_REQUEST));
        for (request, status, has_text) in [
            ("GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n", "200", true),
            ("GET /metrics?x=1 HTTP/1.0\r\n\r\n", "200", true),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", "200", false),
            ("GET / HTTP/1.1\r\n\r\n", "404", false),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405", false),
            ("GET /metrics HTTP/1.1\r\n", "400", false),
            ("rubbish\r\n\r\n", "400", false),
            ("", "400", false),
            (long.as_str(), "431", false),
        ] {
            let reply = exchange(request.as_bytes());
            assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{reply}");
            assert_eq!(reply.contains("numbers"), has_text, "{request}");
        }
        assert!(exchange(b"HEAD /metrics HTTP/1.1\r\n\r\n").contains("Content-Length: 8\r\n"));
    }

    #[test]
    fn a_client_that_says_nothing_is_given_up() {
        let (_client, server) = UnixStream::pair().unwrap();
        let deadline = Instant::now() + Duration::from_millis(10);
        let answered = answer_get(server.as_fd(), "/", "t", deadline, || Ok(String::new()));
        assert_eq!(answered.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
