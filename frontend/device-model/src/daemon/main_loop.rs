//! The main thread's loop: it waits for signals, status requests, the end of devices and the loss
//! of the fd store.

use std::thread;
use std::time::Duration;

use gangplank_service::rate_limit::RateLimit;
use gangplank_service::signals::{STATUS, Signals};
use gangplank_service::watchdog::Watchdog;
use gangplank_service::{error_chain, logging};
use log::{error, info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::devices::Devices;
use super::error::Error;
use super::status::StatusSocket;

/// Time between two attempts to connect to an fd store after the previous one has gone.
const FD_STORE_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The connection to the fd store, as the main loop knows it.
struct FdStoreState {
    is_connected: bool,
    /// Limits the log messages about failed attempts to connect.
    complaint: RateLimit,
}

/// Serves until a signal ends the program, or no device is left.
pub(super) fn serve(
    devices: &mut Devices,
    signals: &Signals,
    status: Option<&StatusSocket>,
    is_json: bool,
) -> Result<(), Error> {
    let mut fd_store = FdStoreState {
        is_connected: true,
        complaint: RateLimit::once(),
    };
    let mut watchdog = Watchdog::from_environment();
    while devices.alive() > 0 {
        if let Some(watchdog) = &mut watchdog
            && watchdog.is_due()
        {
            watchdog.alive();
        }
        let limit = watchdog.as_ref().map(Watchdog::left);
        if wait(devices, signals, status, fd_store.is_connected, limit)? {
            warn!("the process that keeps the devices has gone, or does not answer");
            fd_store.is_connected = false;
        }
        if !fd_store.is_connected {
            fd_store.is_connected = reconnect(devices, &fd_store.complaint);
        }
        devices.mark_ended();
        if let Some(status) = status {
            status.answer(|| match is_json {
                true => format!("{}\n", devices.json()),
                false => devices.to_string(),
            });
        }
        if told_to_end(devices, signals)? {
            return Ok(());
        }
    }
    error!("no device is left to serve");
    Ok(())
}

/// Waits until something happens, for at most `limit`. Returns whether the fd store has gone, if it
/// was connected.
fn wait(
    devices: &Devices,
    signals: &Signals,
    status: Option<&StatusSocket>,
    is_connected: bool,
    limit: Option<Duration>,
) -> Result<bool, Error> {
    let fd_store = devices.fd_store_connection();
    let ended_fds: Vec<_> = devices.ended_fds().collect();
    let mut awaited: Vec<PollFd<'_>> = Vec::with_capacity(ended_fds.len() + 3);
    if is_connected {
        awaited.push(PollFd::new(&fd_store, PollFlags::RDHUP));
    }
    awaited.push(PollFd::new(signals, PollFlags::IN));
    awaited.extend(status.map(|status| PollFd::new(status, PollFlags::IN)));
    awaited.extend(ended_fds.iter().map(|end| PollFd::new(end, PollFlags::IN)));
    let retry = (!is_connected).then_some(FD_STORE_RETRY_INTERVAL);
    let limit = retry.into_iter().chain(limit).min();
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    match poll(&mut awaited, limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(failed(errno.into())),
    }
    let first = awaited.first();
    Ok(is_connected && first.is_some_and(|fd_store| !fd_store.revents().is_empty()))
}

/// Takes the signals that have arrived. Returns whether one of them ends the program.
fn told_to_end(devices: &Devices, signals: &Signals) -> Result<bool, Error> {
    while let Some(signal) = signals.take().map_err(failed)? {
        if !STATUS.contains(&signal) {
            info!("told to end by {signal}");
            return Ok(true);
        }
        logging::log_status(&devices.to_string());
    }
    Ok(false)
}

/// Waits until the fd store has every descriptor whose last close the hypervisor's driver does not
/// survive. The process must not end before.
pub(super) fn wait_until_saved(devices: &Devices) {
    let complaint = RateLimit::once();
    while devices.has_unsaved_descriptors() {
        if !reconnect(devices, &complaint) {
            thread::sleep(FD_STORE_RETRY_INTERVAL);
        }
    }
}

/// Connects to an fd store and gives it every descriptor. Returns whether that has succeeded.
fn reconnect(devices: &Devices, complaint: &RateLimit) -> bool {
    match devices.reconnect_fd_store() {
        Ok(()) => {
            info!("the devices are kept again");
            true
        }
        Err(error) => {
            if complaint.admit().is_some() {
                let why = error_chain(&error);
                error!("nothing keeps the devices, so this program must not end: {why}");
            }
            false
        }
    }
}

fn failed(source: std::io::Error) -> Error {
    Error::System {
        what: "signals and devices",
        source,
    }
}
