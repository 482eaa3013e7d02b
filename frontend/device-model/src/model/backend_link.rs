//! Keeps a device connected to its backend, whichever of the two appears first and however often
//! the backend comes back.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gangplank_service::{error_chain, rate_limited};
use gangplank_vhost_user::client as vhost_user;
use gangplank_vhost_user::client::{Backend, Deadlines, Facts, Messages, Socket};
use log::{debug, error};
use parking_lot::Mutex;

use super::fs_device::{Change, FsDevice, FsError};
use super::stop::{StopEvent, WaitEnd};
use crate::fd_store::as_descriptor;
use crate::mmio::Transport;

/// Pause after the first failed attempt to connect. It doubles with each further one.
const MIN_RETRY_BACKOFF: Duration = Duration::from_millis(50);

/// Longest pause between two attempts to connect.
const MAX_RETRY_BACKOFF: Duration = Duration::from_secs(2);

/// How often the queues of a lost backend are looked at without a kick: the guest may have reset
/// the device.
const LOST_INTERVAL: Duration = Duration::from_millis(100);

/// Connects to a backend.
pub trait Connector {
    /// What carries the messages.
    type Messages: Messages + Send;

    /// Connects and negotiates, within deadlines. Returns the session and a descriptor of the
    /// connection that polls as hung up when the backend goes. Another process can take the
    /// connection over by that descriptor.
    fn connect(&self) -> vhost_user::Result<(Backend<Self::Messages>, OwnedFd)>;

    /// How long a guest's requests may wait for a backend before they get error replies.
    fn absence_limit(&self) -> Duration;

    /// Takes over a connection in the state `facts`. Otherwise as [`Connector::connect`].
    fn resume(
        &self,
        connection: OwnedFd,
        facts: &Facts,
    ) -> vhost_user::Result<(Backend<Self::Messages>, OwnedFd)>;
}

/// Connects to a backend that listens on a socket.
#[derive(Clone, Debug)]
pub struct SocketConnector {
    /// The socket's path.
    pub path: PathBuf,
    /// How long the backend may take to answer.
    pub deadlines: Deadlines,
    /// [`Connector::absence_limit`].
    pub absence_limit: Duration,
}

impl Connector for SocketConnector {
    type Messages = Socket;

    fn connect(&self) -> vhost_user::Result<(Backend<Socket>, OwnedFd)> {
        let session = Backend::negotiate(Socket::connect(&self.path, self.deadlines)?)?;
        let connection = session.messages().hang_up()?;
        Ok((session, connection))
    }

    fn absence_limit(&self) -> Duration {
        self.absence_limit
    }

    fn resume(
        &self,
        connection: OwnedFd,
        facts: &Facts,
    ) -> vhost_user::Result<(Backend<Socket>, OwnedFd)> {
        let socket = Socket::from_stream(connection.into(), &self.path, self.deadlines.answer);
        let session = Backend::resume(socket, facts)?;
        let connection = session.messages().hang_up()?;
        Ok((session, connection))
    }
}

/// Connects, reconnects and tells the guest what has changed for it, until `stop` is set. While a
/// backend is lost or does not come, or the device is broken, replies to the guest's requests with
/// errors.
/// `connection` is the connection of a backend that is attached already. Counts in `connections`,
/// and calls `ready` whenever a backend has been attached.
pub fn maintain<C: Connector>(
    connector: &C,
    mut connection: Option<Arc<OwnedFd>>,
    transport: &Mutex<Transport<FsDevice<C::Messages>>>,
    stop: &StopEvent,
    connections: &AtomicU64,
    mut ready: impl FnMut(),
) {
    let mut pause = MIN_RETRY_BACKOFF;
    let mut absent = false;
    loop {
        if connection.is_none() {
            match reply_while_lost(transport, stop) {
                Ok(WaitEnd::Stopped) => return,
                Ok(_) => {}
                Err(error) => rate_limited!(error, "cannot wait for the guest's kicks: {error}"),
            }
            connection = connect(connector, transport, &mut absent);
            connections.fetch_add(connection.is_some().into(), Ordering::Relaxed);
        }
        if let Some(connection) = connection.take() {
            pause = MIN_RETRY_BACKOFF;
            ready();
            match stop.wait(Some(&connection), None) {
                Ok(WaitEnd::Stopped) => return,
                Ok(WaitEnd::HungUp | WaitEnd::Signalled | WaitEnd::TimedOut) => {
                    rate_limited!(warn, "the daemon has gone")
                }
                Err(error) => rate_limited!(error, "cannot watch the daemon's connection: {error}"),
            }
            let rings = transport.lock().device().running_rings();
            if let Some(Err(error)) = rings.map(|rings| rings.wait_until_stable()) {
                debug!("{}", error_chain(&error));
            }
            let mut transport = transport.lock();
            let change = transport.device_mut().detach();
            notify_guest(&mut transport, change);
            continue;
        }
        let limit = connector.absence_limit();
        {
            let mut transport = transport.lock();
            let change = transport.device_mut().refuse_waiting(limit);
            notify_guest(&mut transport, change);
        }
        match stop.wait(None, Some(pause.min(limit))) {
            Ok(WaitEnd::Stopped) => return,
            Ok(_) => pause = MAX_RETRY_BACKOFF.min(pause.saturating_mul(2)),
            Err(error) => {
                error!("cannot wait for the daemon any more: {error}");
                return;
            }
        }
    }
}

/// Replies to the guest's requests with errors, until it opens a session or resets the device, or
/// `stop` is set.
fn reply_while_lost<M: Messages + Send>(
    transport: &Mutex<Transport<FsDevice<M>>>,
    stop: &StopEvent,
) -> io::Result<WaitEnd> {
    loop {
        let lost = {
            let mut transport = transport.lock();
            let change = transport.device_mut().reply_errors();
            notify_guest(&mut transport, change);
            transport.device().lost_queues()
        };
        let Some((queues, eventfds)) = lost else {
            return Ok(WaitEnd::Signalled);
        };
        let kicks = queues.iter().filter_map(|queue| eventfds.kick(*queue));
        let kicks = kicks.map(as_descriptor);
        if let WaitEnd::Stopped = stop.wait_for_signal(kicks, LOST_INTERVAL)? {
            return Ok(WaitEnd::Stopped);
        }
    }
}

/// Makes one attempt to connect. Returns the connection of a backend that serves the device.
/// `absent` says whether the last attempt found no backend, which is logged once.
fn connect<C: Connector>(
    connector: &C,
    transport: &Mutex<Transport<FsDevice<C::Messages>>>,
    absent: &mut bool,
) -> Option<Arc<OwnedFd>> {
    match connector.connect() {
        Ok((session, connection)) => {
            *absent = false;
            attach(transport, session, Arc::new(connection))
        }
        Err(error) => {
            if *absent {
                debug!("still no daemon: {error}");
            } else {
                rate_limited!(info, "no daemon answers yet, waiting for one: {error}");
            }
            *absent = error.is_absence();
            None
        }
    }
}

/// Attaches a backend. Returns its connection if it serves the device.
fn attach<M: Messages + Send>(
    transport: &Mutex<Transport<FsDevice<M>>>,
    session: Backend<M>,
    connection: Arc<OwnedFd>,
) -> Option<Arc<OwnedFd>> {
    let mut transport = transport.lock();
    let change = match transport
        .device_mut()
        .attach(session, Arc::clone(&connection))
    {
        Ok(change) => {
            rate_limited!(info, "a daemon is connected");
            change
        }
        Err(error) => {
            rate_limited!(warn, "the daemon does not serve this device: {error}");
            match error {
                FsError::Start(_) if error.is_loss() => transport.device_mut().on_backend_lost(),
                FsError::Start(_) => transport.device_mut().give_up(),
                FsError::Queues { .. } | FsError::Features { .. } | FsError::NoTag => Change::None,
            }
        }
    };
    notify_guest(&mut transport, change);
    transport.device().is_attached().then_some(connection)
}

pub(super) fn notify_guest<M: Messages + Send>(
    transport: &mut Transport<FsDevice<M>>,
    change: Change,
) {
    match change {
        Change::None => {}
        Change::Config => transport.config_changed(),
        Change::Lost => rate_limited!(
            error,
            "the guest's requests fail until it mounts anew: its open files were lost with the \
             daemon"
        ),
        Change::NeedsReset => {
            rate_limited!(warn, "the guest must reset the device");
            transport.needs_reset();
        }
    }
}
