//! The log of clients with locks, in a file that survives this program.
//!
//! ```text
//!   gangplank-nfs clients 1
//!   state 7                     how often this program has started: 2 for each time, and 1
//!   + 10.0.2.15 10.0.2.1        a client, and the server's address that it knows
//!   - 10.0.2.15 10.0.2.1        it was told that this program has started again, and has no locks
//! ```
//!
//! At the start the log is written anew. What a crash cut off is ignored.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::state_log::{self, LogError, foreign};

/// The first line: this layout.
const MAGIC: &str = "gangplank-nfs clients 1";

/// Most clients that are remembered.
const MAX_CLIENTS: usize = 1024;

/// A client with locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Monitored {
    /// Its address.
    pub client: IpAddr,
    /// The server's address that it knows.
    pub server: IpAddr,
}

/// The log.
#[derive(Debug)]
pub(super) struct MonitorLog {
    state: u32,
    before: Vec<Monitored>,
    /// Those that are in the file, and have a lock by now.
    current: BTreeSet<Monitored>,
    file: Option<File>,
}

impl MonitorLog {
    pub(super) fn open(directory: Option<&Path>) -> Result<Self, LogError> {
        let Some(directory) = directory else {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let seconds = now.map_or(0, |now| now.as_secs());
            return Ok(Self {
                state: u32::try_from(seconds & 0x7fff_ffff).unwrap_or(0) | 1,
                before: Vec::new(),
                current: BTreeSet::new(),
                file: None,
            });
        };
        let path = directory.join("clients");
        let bytes = state_log::read(&path)?.unwrap_or_default();
        let text = str::from_utf8(&bytes).ok();
        let text = text.filter(|text| text.is_empty() || text.lines().next() == Some(MAGIC));
        let Some(text) = text else {
            return Err(foreign(path, "clients", &bytes, MAGIC.as_bytes()));
        };
        let (state, before) = parse(text);
        // The value is kept positive, since others take it as signed.
        let state = (state.wrapping_add(2) & 0x7fff_ffff) | 1;
        let file = state_log::replace(&path, |new| write(new, state, &before))?;
        Ok(Self {
            state,
            before: before.into_iter().collect(),
            current: BTreeSet::new(),
            file: Some(file),
        })
    }

    pub(super) const fn state(&self) -> u32 {
        self.state
    }

    /// Those that had locks when this program ended.
    pub(super) fn before(&self) -> &[Monitored] {
        &self.before
    }

    /// Notes a client with locks.
    pub(super) fn add(&mut self, client: Monitored) -> io::Result<()> {
        if self.current.contains(&client) {
            return Ok(());
        }
        if self.current.len() >= MAX_CLIENTS {
            return Err(io::Error::other(format!("there are {MAX_CLIENTS} already")));
        }
        if let Some(file) = &mut self.file {
            file.write_all(line('+', client).as_bytes())?;
            // Clients may outlive the host.
            file.sync_data()?;
        }
        self.current.insert(client);
        Ok(())
    }

    /// Notes that a client was told of the start. It has reclaimed what it had, or will.
    pub(super) fn told(&mut self, client: Monitored) {
        if !self.current.contains(&client)
            && let Some(file) = &mut self.file
        {
            // Otherwise it is told once more the next time.
            let _ = file.write_all(line('-', client).as_bytes());
        }
    }
}

fn line(sign: char, Monitored { client, server }: Monitored) -> String {
    format!("{sign} {client} {server}\n")
}

fn write(path: &Path, state: u32, clients: &BTreeSet<Monitored>) -> io::Result<File> {
    let mut file = File::create(path)?;
    let clients: String = clients.iter().map(|client| line('+', *client)).collect();
    file.write_all(format!("{MAGIC}\nstate {state}\n{clients}").as_bytes())?;
    file.sync_data()?;
    Ok(file)
}

/// The state and the clients in a log.
fn parse(text: &str) -> (u32, BTreeSet<Monitored>) {
    let mut state = 0;
    let mut clients = BTreeSet::new();
    // What is behind the last end of a line was cut off.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    for line in whole.lines().skip(1) {
        let words: Vec<_> = line.split(' ').collect();
        match *words {
            ["state", number] => state = number.parse().unwrap_or(0),
            [sign, client, server] => {
                let (Ok(client), Ok(server)) = (client.parse(), server.parse()) else {
                    continue;
                };
                let client = Monitored { client, server };
                match sign {
                    "+" if clients.len() < MAX_CLIENTS => drop(clients.insert(client)),
                    "-" => drop(clients.remove(&client)),
                    _ => {}
                }
            }
            _ => {}
        }
    }
    (state, clients)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(host: u8) -> Monitored {
        Monitored {
            client: IpAddr::from([10, 0, 2, host]),
            server: IpAddr::from([10, 0, 2, 1]),
        }
    }

    #[test]
    fn clients_with_locks_are_known_after_a_restart_until_they_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let open = || MonitorLog::open(Some(directory.path())).unwrap();
        let mut log = open();
        let first = log.state();
        assert!(log.before().is_empty() && first % 2 == 1);
        for host in [15, 16, 16] {
            log.add(client(host)).unwrap();
        }
        let mut log = open();
        assert_eq!(
            (log.state(), log.before()),
            (first + 2, &[client(15), client(16)][..])
        );
        log.told(client(15));
        // It has locks again.
        log.add(client(16)).unwrap();
        log.told(client(16));
        let log = open();
        assert_eq!((log.state(), log.before()), (first + 4, &[client(16)][..]));
    }

    #[test]
    fn a_log_that_was_cut_off_is_read_up_to_there_and_a_foreign_file_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("clients");
        std::fs::write(
            &path,
            format!("{MAGIC}\nstate 5\n+ 10.0.2.15 10.0.2.1\n+ 10.0.2.1"),
        )
        .unwrap();
        let log = MonitorLog::open(Some(directory.path())).unwrap();
        assert_eq!((log.state(), log.before()), (7, &[client(15)][..]));
        std::fs::write(&path, "something else\n").unwrap();
        let foreign = MonitorLog::open(Some(directory.path()));
        assert!(matches!(foreign, Err(LogError::Foreign { .. })));
    }
}
