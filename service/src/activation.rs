//! A listening socket that a service manager passes (`sd_listen_fds(3)`).
//!
//! The sockets are the descriptors from 3 on. `LISTEN_FDS` has their number, `LISTEN_PID` the
//! process that they are for, and `LISTEN_FDNAMES` their names, separated by colons. Among them may
//! be descriptors that the program has stored with the service manager itself, which it tells by
//! their names.
#![allow(unsafe_code)] // takes ownership of a descriptor that the process inherited

use std::env;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::net::{AddressFamily, SocketType, sockopt};
use thiserror::Error;

/// The first descriptor that is passed (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// What the names of stored descriptors begin with: a guest's connection and state.
const STORED: &str = "guest-";

/// A socket is passed that cannot be used.
#[derive(Debug, Error)]
pub enum Error {
    /// A variable is no number.
    #[error("the environment's {name} is {value:?}; expected a number")]
    NotANumber {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// More sockets than one.
    #[error(
        "the service manager passes {0} sockets (LISTEN_FDS); expected one: leave one \
         ListenStream= in the socket unit"
    )]
    Several(usize),
    /// Something else than a listening Unix stream socket.
    #[error(
        "descriptor {0} of the service manager (LISTEN_FDS) is not a listening Unix stream socket"
    )]
    WrongDescriptor(RawFd),
    /// The descriptor cannot be used.
    #[error("cannot use descriptor {number} of the service manager (LISTEN_FDS)")]
    Descriptor {
        /// Its number.
        number: RawFd,
        /// Why.
        source: io::Error,
    },
}

/// The number of the socket that the service manager has passed to the process `process`; `None` if
/// it has passed none.
///
/// # Errors
/// The environment is malformed, or has several sockets.
pub fn number(process: u32) -> Result<Option<RawFd>, Error> {
    let variable = |name| env::var(name).ok();
    choose(
        variable("LISTEN_PID").as_deref(),
        variable("LISTEN_FDS").as_deref(),
        variable("LISTEN_FDNAMES").as_deref(),
        process,
    )
}

/// Takes the socket that the service manager has passed to this process. `None` if it has passed
/// none.
///
/// The caller must not have opened a descriptor, and must call this once: nothing else may own the
/// socket.
///
/// # Errors
/// [`enum@Error`].
pub fn take() -> Result<Option<UnixListener>, Error> {
    let Some(number) = number(std::process::id())? else {
        return Ok(None);
    };
    let failed = |source: io::Error| Error::Descriptor { number, source };
    // SAFETY: the number is 3 or more, and thereby no -1; the descriptor is borrowed for this line.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    fcntl_getfd(borrowed).map_err(|error| failed(error.into()))?;
    // SAFETY: the descriptor is open, and by this function's contract nothing in the program owns
    // it.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    let is_right = sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&socket) == Ok(SocketType::STREAM)
        && sockopt::socket_acceptconn(&socket) == Ok(true);
    if !is_right {
        return Err(Error::WrongDescriptor(number));
    }
    fcntl_setfd(&socket, FdFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    Ok(Some(UnixListener::from(socket)))
}

/// The sockets that the service manager has passed to the process `process`, by their names
/// (`FileDescriptorName=`). Stored descriptors are not among them.
///
/// # Errors
/// The environment is malformed.
pub fn named(process: u32) -> Result<Vec<(String, RawFd)>, Error> {
    let variable = |name| env::var(name).ok();
    list(
        variable("LISTEN_PID").as_deref(),
        variable("LISTEN_FDS").as_deref(),
        variable("LISTEN_FDNAMES").as_deref(),
        process,
    )
}

fn choose(
    owner: Option<&str>,
    count: Option<&str>,
    names: Option<&str>,
    process: u32,
) -> Result<Option<RawFd>, Error> {
    let sockets = list(owner, count, names, process)?;
    match sockets[..] {
        [] => Ok(None),
        [(_, socket)] => Ok(Some(socket)),
        _ => Err(Error::Several(sockets.len())),
    }
}

fn list(
    owner: Option<&str>,
    count: Option<&str>,
    names: Option<&str>,
    process: u32,
) -> Result<Vec<(String, RawFd)>, Error> {
    let (Some(owner), Some(count)) = (owner, count) else {
        return Ok(Vec::new());
    };
    if parse::<u32>("LISTEN_PID", owner)? != process {
        return Ok(Vec::new());
    }
    let count: u16 = parse("LISTEN_FDS", count)?;
    let mut names = names.unwrap_or_default().split(':');
    let sockets = (FIRST..FIRST + RawFd::from(count))
        .map(|number| (names.next().unwrap_or_default().to_owned(), number));
    Ok(sockets
        .filter(|(name, _)| !name.starts_with(STORED))
        .collect())
}

fn parse<T: std::str::FromStr>(name: &'static str, value: &str) -> Result<T, Error> {
    value.parse().map_err(|_| Error::NotANumber {
        name,
        value: value.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_the_one_that_is_not_stored() {
        let chosen = |count, names| choose(Some("7"), Some(count), names, 7).unwrap();
        assert_eq!(chosen("1", None), Some(3));
        assert_eq!(chosen("1", Some("gangplankd@home.socket")), Some(3));
        assert_eq!(chosen("3", Some("guest-1:fs:guest-2")), Some(4));
        assert_eq!(chosen("2", Some("guest-1:guest-2")), None);
        assert_eq!(chosen("0", None), None);
    }

    #[test]
    fn several_sockets_have_names() {
        let listed = |count, names| list(Some("7"), Some(count), names, 7).unwrap();
        let socket = |name: &str, number| (name.to_owned(), number);
        assert_eq!(
            listed("3", Some("home:guest-1:tools")),
            [socket("home", 3), socket("tools", 5)]
        );
        assert_eq!(listed("1", None), [socket("", 3)]);
    }

    #[test]
    fn what_is_for_another_process_is_left_alone() {
        assert_eq!(choose(Some("8"), Some("1"), None, 7).unwrap(), None);
        assert_eq!(choose(None, Some("1"), None, 7).unwrap(), None);
        assert_eq!(choose(Some("7"), None, None, 7).unwrap(), None);
    }

    #[test]
    fn a_wrong_environment_is_named() {
        for (owner, count, hint) in [
            ("seven", "1", "LISTEN_PID"),
            ("7", "many", "LISTEN_FDS"),
            ("7", "-1", "LISTEN_FDS"),
            ("7", "70000", "LISTEN_FDS"),
            ("7", "2", "2 sockets"),
        ] {
            let error = choose(Some(owner), Some(count), None, 7).unwrap_err();
            assert!(error.to_string().contains(hint), "{error}");
        }
    }
}
