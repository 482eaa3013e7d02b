//! What the server writes to the log when somebody asks for its status by a signal.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use gangplank_service::logging;
use gangplank_service::signals::{STATUS, Signals};
use gangplank_service::watchdog::Watchdog;
use log::info;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::network::connections::Connections;
use crate::nlm::locks::Locks;
use crate::share::Share;

/// Where the status is found.
#[derive(Debug)]
pub struct StatusSource {
    /// The daemon's socket.
    pub daemon: PathBuf,
    /// The share.
    pub share: Arc<Share>,
    /// The locks of clients.
    pub locks: Arc<Locks>,
    /// The connections at addresses of the host.
    pub connections: Arc<Connections>,
    /// The server's own address, if it has one.
    pub own_address: Option<IpAddr>,
}

impl fmt::Display for StatusSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connected = match self.share.is_connected() {
            true => "connected",
            false => "not connected",
        };
        writeln!(f, "daemon {}: {connected}", self.daemon.display())?;
        let clients = self.connections.by_client();
        let count: usize = clients.iter().map(|(_, count)| count).sum();
        writeln!(f, "{count} connections at addresses of the host")?;
        for (client, count) in clients {
            writeln!(f, "  {client}: {count}")?;
        }
        if let Some(address) = self.own_address {
            writeln!(f, "own network: {address}")?;
        }
        let locks = self.locks.totals();
        let grace = match self.locks.in_grace() {
            true => "; clients can only reclaim theirs",
            false => "",
        };
        writeln!(
            f,
            "{} locked ranges of {} clients in {} files, {} waited for{grace}",
            locks.ranges, locks.clients, locks.files, locks.waiters
        )
    }
}

/// Waits for a signal that ends the program. Writes the status to the log at those that ask for it,
/// and tells the service manager that the program is alive.
///
/// # Errors
/// Those of `signalfd(2)` and `poll(2)`.
pub fn wait(signals: &Signals, status: &StatusSource) -> io::Result<()> {
    let mut watchdog = Watchdog::from_environment();
    loop {
        if let Some(watchdog) = &mut watchdog
            && watchdog.is_due()
        {
            watchdog.alive();
        }
        match signals.take()? {
            Some(signal) if STATUS.contains(&signal) => logging::log_status(&status.to_string()),
            Some(signal) => {
                info!("{signal}: ending");
                return Ok(());
            }
            None => {
                let left = watchdog.as_ref().map(Watchdog::left);
                let left = left.and_then(|left| Timespec::try_from(left).ok());
                let mut ready = [PollFd::new(signals, PollFlags::IN)];
                match poll(&mut ready, left.as_ref()) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
    }
}
