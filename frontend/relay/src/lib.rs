//! A relay between a guest and a virtio-fs daemon. The guest keeps its device when the daemon comes
//! late, is replaced or dies.
//!
//! ```text
//!   guest ── vhost-user ── relay ── vhost-user ── daemon
//!     └────── memory, kicks, calls, as descriptors ──┘
//! ```
//!
//! Only messages pass through the relay, a few dozen when a guest starts. Requests and data go
//! between guest and daemon directly.
//!
//! - `guest` serves a guest's connection, and `device` keeps what its messages set up, so that it
//!   can set up any daemon at any time. `device::replacement` replaces a daemon by another.
//! - `daemon` is the connection to a daemon.
//! - After a daemon has died, `device::loss` replies to the requests that it had, in the guest's
//!   memory.
//! - `holder` keeps descriptors for daemons whose processes have all ended.
//! - `serve` is the program: its sockets, and an operator's commands (`control`, `answers`).
//!   `sandbox` confines it.

mod answers;
mod args;
mod control;
mod daemon;
mod device;
mod guest;
mod holder;
mod sandbox;
mod serve;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

pub use args::{RelayAction, RelayArgs};
use gangplank_service::logging;
use gangplank_service::logging::LinePrefix;
use gangplank_service::output::Output;
use gangplank_service::rlimit::raise_descriptor_limit;
use gangplank_service::signals::{STATUS, Signals, TERMINATION};
use gangplank_service::unix_listener::OwnedListener;
use gangplank_service::{activation, group};
use log::info;
use rustix::fs::Mode;
pub use serve::Error;

use self::control::Command;
use self::daemon::Limits;
use self::device::DeviceOptions;
use self::holder::Holder;
use self::serve::Relay;

/// Time that a daemon has to take a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// Time that a guest waits for the tag while no daemon is connected. Then the guest gets no device.
const TAG_WAIT: Duration = Duration::from_secs(10);

/// Time that a running relay has to answer a command; it waits for requests in flight.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(600);

/// Runs a relay until SIGTERM or SIGINT. With an action, sends a command to a running relay
/// and writes its answer to `out`. A `filter` in env_logger's form replaces the options of the log.
///
/// # Errors
/// The sockets cannot be created; or the running relay does not take the command, or it fails.
pub fn run(args: &RelayArgs, filter: Option<&str>, mut out: Output) -> Result<(), Error> {
    let Some(action) = &args.action else {
        return serve(args, filter);
    };
    let (control, command) = match action {
        RelayAction::Status {
            control,
            json: false,
        } => (control, Ok(Command::Status)),
        RelayAction::Status {
            control,
            json: true,
        } => (control, Ok(Command::StatusJson)),
        RelayAction::Pause { control } => (control, Ok(Command::Pause)),
        RelayAction::Resume { control } => (control, Ok(Command::Resume)),
        RelayAction::Switch {
            control,
            without_state,
            socket,
        } => (control, serve::switch(socket, *without_state)),
    };
    let failed = |source| Error::Control {
        path: control.clone(),
        source,
    };
    let text = serve::send(control, &command.map_err(failed)?, CONTROL_TIMEOUT)?;
    let written = out.write_all(text.as_bytes());
    written.and_then(|()| out.close()).map_err(Error::Output)
}

fn serve(args: &RelayArgs, filter: Option<&str>) -> Result<(), Error> {
    let Some(backend) = &args.backend else {
        return Err(Error::Refused("--backend is required".into()));
    };
    // Before anything opens descriptors.
    let inherited = match &args.listen {
        Some(_) => None,
        None => activation::take()?,
    };
    let options = DeviceOptions {
        tag: args.tag.clone(),
        num_request_queues: args.num_request_queues,
        limits: Limits {
            connect: CONNECT_LIMIT,
            answer: args.limit,
            state: args.state_limit,
        },
        tag_wait: TAG_WAIT,
        return_time: args.return_time,
    };
    logging::start(&logging::Options {
        // A guest's thread has its number in the name.
        prefix: LinePrefix::Thread,
        ..logging::Options::chosen(
            "gangplank-frontend",
            args.log_level,
            filter.map(str::to_owned),
        )
    })?;
    raise_descriptor_limit();
    let signals = Signals::block(TERMINATION.into_iter().chain(STATUS)).map_err(Error::Wait)?;
    let control = args.control.as_deref();
    let control = control.map(|path| OwnedListener::bind(path, Some(Mode::RUSR | Mode::WUSR)));
    let control = control.transpose()?;
    let holder = args.holder.as_deref().map(OwnedListener::bind_packets);
    let holder = holder.transpose()?;
    let (listener, place) = match (&args.listen, inherited) {
        (Some(listen), _) => {
            let group = args.socket_group.as_deref().map(group::id).transpose()?;
            let listener = match group {
                Some(group) => OwnedListener::bind_for_group(listen, group)?,
                None => OwnedListener::bind(listen, None)?,
            };
            (listener, listen.display().to_string())
        }
        (None, Some(inherited)) => {
            let listener = OwnedListener::inherited(inherited).map_err(Error::Wait)?;
            (listener, "the service manager's socket".to_owned())
        }
        (None, None) => {
            return Err(Error::Refused(
                "no socket to listen on: pass --listen PATH, or have a socket unit of systemd \
                 start the relay"
                    .into(),
            ));
        }
    };
    info!(
        "guests connect at {place}, to the daemon at {}",
        backend.display()
    );
    sandbox::confine(
        args.seccomp,
        [&args.listen, &args.control, &args.holder]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path),
    )?;
    let held = holder::Options {
        limit: args.holder_limit,
        time: args.holder_time,
    };
    let holder = holder.map(|listener| Holder::start(listener, held));
    let holder = holder.transpose().map_err(Error::Holder)?;
    let summary = holder.as_ref().map(Holder::summary).cloned();
    let mut relay = Relay::new(options, backend.clone(), summary);
    let served = relay.serve(&listener, control.as_ref(), &signals);
    drop(holder);
    served
}

#[cfg(test)]
mod tests;
