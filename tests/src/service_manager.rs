//! Plays the part of systemd that holds descriptors for a service: takes them by `FDSTORE=1`, and
//! starts the next program with them (`sd_notify(3)`, `sd_listen_fds(3)`).

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::io::{IoSliceMut, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use rustix::fs::{FileType, fstat};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;

use crate::daemon::{Daemon, Options};
use crate::process;
use crate::tools;
use crate::wait;

/// The first descriptor of a service (`SD_LISTEN_FDS_START`, sd-daemon.h).
const FIRST: usize = 3;

/// Descriptors are kept above all that a service is started with.
const LOWEST: i32 = 2000;

/// A service manager with one service, a daemon.
pub struct ServiceManager {
    directory: TempDir,
    store: Arc<Mutex<Store>>,
}

#[derive(Default)]
struct Store {
    held: Vec<(String, OwnedFd)>,
    capacity: usize,
    /// The last of [`ServiceManager::settle`]'s messages that was read.
    settled: u64,
}

/// How the messages of [`ServiceManager::settle`] begin.
const SETTLED: &str = "SETTLED=";

impl ServiceManager {
    /// One that holds this number of descriptors.
    ///
    /// # Errors
    /// The program of the daemon is missing, or files cannot be written.
    pub fn new(capacity: usize) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("gangplank-manager-")
            .tempdir()?;
        let everyone = Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), everyone.clone())?;
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o777))?;
        process::copy_program(&tools::gangplankd()?, &directory.path().join("daemon"))?;
        let store = Arc::new(Mutex::new(Store {
            held: Vec::new(),
            capacity,
            settled: 0,
        }));
        let listening = Arc::clone(&store);
        thread::spawn(move || {
            while let Ok((text, descriptors)) = receive(&socket) {
                listening.lock().understand(&text, descriptors);
            }
        });
        let manager = Self { directory, store };
        manager.write_program(&[])?;
        Ok(manager)
    }

    /// Options for a daemon of this service manager.
    #[must_use]
    pub fn options(&self, share: &Path) -> Options {
        let capacity = self.store.lock().capacity.to_string();
        Options::new(share)
            .program(&self.program())
            .variable("NOTIFY_SOCKET", &self.directory.path().join("notify"))
            .variable("FDSTORE", Path::new(&capacity))
    }

    /// Kills all processes of the daemon and starts it again, with what is held.
    ///
    /// # Errors
    /// It does not serve.
    pub fn restart(&self, daemon: &mut Daemon, options: &Options) -> Result<()> {
        let starting = process::start_alone();
        daemon.kill();
        self.settle()?;
        let passed = {
            let store = self.store.lock();
            let held = store.held.iter();
            held.map(|(name, held)| Ok((name.clone(), fcntl_dupfd_cloexec(held, LOWEST)?)))
                .collect::<Result<Vec<_>>>()?
        };
        self.write_program(&passed)?;
        for (_, descriptor) in &passed {
            fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        let started = daemon.replace(options);
        drop((passed, starting));
        started
    }

    /// Waits until all messages have been read that were sent before, as systemd does before it
    /// looks at a process that has ended.
    fn settle(&self) -> Result<()> {
        let number = self.store.lock().settled + 1;
        let path = self.directory.path().join("notify");
        UnixDatagram::unbound()?.send_to(format!("{SETTLED}{number}").as_bytes(), path)?;
        wait::until("messages are read", Duration::from_secs(60), || {
            Ok(self.store.lock().settled >= number)
        })
    }

    /// The names of what is held.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let store = self.store.lock();
        store.held.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Closes all that is held, as at the end of a service that was stopped.
    pub fn stop(&self) {
        self.store.lock().held.clear();
    }

    fn program(&self) -> PathBuf {
        self.directory.path().join("start")
    }

    /// The program that starts the daemon with these descriptors.
    fn write_program(&self, passed: &[(String, OwnedFd)]) -> Result<()> {
        let mut text = "#!/bin/bash\n".to_owned();
        for (at, (_, descriptor)) in passed.iter().enumerate() {
            let from = descriptor.as_raw_fd();
            writeln!(text, "exec {}<&{from} {from}<&-", at + FIRST)?;
        }
        if !passed.is_empty() {
            let names: Vec<&str> = passed.iter().map(|(name, _)| name.as_str()).collect();
            let (count, names) = (names.len(), names.join(":"));
            writeln!(
                text,
                "export LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES={names}"
            )?;
        }
        let daemon = self.directory.path().join("daemon");
        writeln!(text, "exec {} \"$@\"", daemon.display())?;
        let program = self.program();
        let new = self.directory.path().join("new");
        fs::write(&new, text)?;
        fs::set_permissions(&new, Permissions::from_mode(0o755))?;
        fs::rename(new, program).context("writing the program that starts the daemon")
    }
}

impl Store {
    fn understand(&mut self, text: &str, descriptors: Vec<OwnedFd>) {
        if let Some(number) = text.strip_prefix(SETTLED) {
            self.settled = number.parse().unwrap_or(self.settled);
        }
        let has = |line: &str| text.lines().any(|other| other == line);
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
        let Some(name) = name else {
            return;
        };
        if has("FDSTOREREMOVE=1") {
            self.held.retain(|(held, _)| held != name);
        }
        if has("FDSTORE=1") {
            for descriptor in descriptors {
                let is_there = self.held.iter().any(|(_, held)| is_same(held, &descriptor));
                if self.held.len() < self.capacity && !is_there {
                    let kept = fcntl_dupfd_cloexec(&descriptor, LOWEST);
                    self.held.extend(kept.map(|kept| (name.to_owned(), kept)));
                }
            }
        }
    }
}

/// Whether two descriptors are of one open file, which systemd holds once: they share the offset.
/// Only regular files are told, since that is what frontends send several times.
fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    let file = |descriptor: &OwnedFd| {
        let stat = fstat(descriptor).ok()?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        is_file.then_some((stat.st_dev, stat.st_ino))
    };
    let (Some(one_file), Some(other_file)) = (file(one), file(other)) else {
        return false;
    };
    let shares_offset = || -> std::io::Result<bool> {
        let mut files = [one.try_clone()?.into(), other.try_clone()?.into()];
        let [one, other]: &mut [fs::File; 2] = &mut files;
        let before = other.stream_position()?;
        let moved = one.seek(SeekFrom::Start(before + 1))?;
        Ok(other.stream_position()? == moved)
    };
    // An `O_PATH` descriptor has none.
    one_file == other_file && shares_offset().unwrap_or(false)
}

/// A message to the service manager, with what comes with it.
fn receive(socket: &UnixDatagram) -> Result<(String, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 4096];
    let parts = &mut [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(passed) => Some(passed),
        _ => None,
    });
    let descriptors = descriptors.flatten().collect();
    ensure!(received.bytes > 0, "an empty message");
    let text = bytes.get(..received.bytes).unwrap_or_default();
    Ok((String::from_utf8_lossy(text).into_owned(), descriptors))
}
