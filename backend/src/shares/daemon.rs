//! The process of all shares: it starts one for each, watches them, and takes commands.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use gangplank_service::signals::{Signal, Signals};
use gangplank_service::watchdog::Watchdog;
use gangplank_service::{error_chain, rate_limited, readiness};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::Error;
use super::clients::{Clients, Command};
use super::file;
use super::notify::{NotifySocket, Said};
use super::private_dir::PrivateDir;
use super::process::{End, Phase, ShareProcess, Start};
use super::request::{Reply, Request};
use super::share::{Origin, Share};
use crate::status::answer::Kind;

/// Descriptors that are always waited for, before those of clients.
const FIXED: usize = 3;

/// What the daemon is made of.
#[derive(Debug)]
pub struct Daemon {
    pub(super) start: Start,
    pub(super) signals: Signals,
    pub(super) notify: NotifySocket,
    pub(super) directory: PrivateDir,
    pub(super) clients: Clients,
    /// Sockets that the service manager has passed, by tag. A share's process has a copy.
    pub(super) passed: HashMap<String, OwnedFd>,
    pub(super) shares: Vec<ShareProcess>,
    /// `--shares-dir`.
    pub(super) shares_dir: Option<PathBuf>,
    /// `--socket-dir`.
    pub(super) socket_dir: Option<PathBuf>,
    /// Sockets of the daemon itself, which no share may have.
    pub(super) own_sockets: Vec<PathBuf>,
    /// Whether shares can be added.
    pub(super) has_control: bool,
    pub(super) watchdog: Option<Watchdog>,
    /// Share processes started so far.
    pub(super) count: u64,
    /// Whether all shares of the start have served.
    pub(super) has_begun: bool,
    pub(super) is_ending: bool,
    /// Whether the service manager waits for the end of a reload.
    pub(super) is_reloading: bool,
}

impl Daemon {
    /// Starts the process of a share.
    ///
    /// # Errors
    /// The share is not valid, collides with another, or cannot be started: the reason in words.
    pub(super) fn begin(&mut self, mut share: Share) -> Result<(), String> {
        let passed = self.passed.get(&share.tag);
        if let (Some(_), Some(socket)) = (passed, share.socket()) {
            return Err(format!(
                "share {:?} has the socket {socket:?}, and another one from the service manager: \
                 remove one",
                share.tag
            ));
        }
        self.name_socket(&mut share, passed.is_some())?;
        let checked = share.check(&self.start.of_all, passed.is_some());
        checked.map_err(|error| error_chain(&error))?;
        self.check_collisions(&share)?;
        let passed = passed.map(OwnedFd::try_clone).transpose();
        let passed = passed.map_err(|error| error.to_string())?;
        self.count += 1;
        let control = self.directory.join(format!("{}.control", self.count));
        let tag = share.tag.clone();
        let process = ShareProcess::start(&self.start, share, passed, control)
            .map_err(|error| format!("cannot start a process for share {tag:?}: {error}"))?;
        self.shares.push(process);
        Ok(())
    }

    fn name_socket(&self, share: &mut Share, is_passed: bool) -> Result<(), String> {
        let (None, false, Some(directory)) = (share.socket(), is_passed, &self.socket_dir) else {
            return Ok(());
        };
        let path = directory.join(format!("{}.sock", share.tag));
        let path = path
            .to_str()
            .ok_or_else(|| format!("--socket-dir {directory:?} is not UTF-8"))?;
        let option = super::options::Given::new("socket-path", path);
        share.add(option).map_err(|error| error.to_string())
    }

    fn check_collisions(&self, share: &Share) -> Result<(), String> {
        let path = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        for other in self.shares.iter().map(ShareProcess::share) {
            if other.tag == share.tag {
                return Err(format!(
                    "there are two shares {:?}: of {} and of {}",
                    share.tag, other.origin, share.origin
                ));
            }
            let sockets = share.socket().zip(other.socket());
            if let Some((socket, others)) = sockets
                && path(socket) == path(others)
            {
                return Err(format!(
                    "shares {:?} and {:?} have one socket, {socket:?}",
                    other.tag, share.tag
                ));
            }
        }
        let socket = share.socket().map(path);
        match self
            .own_sockets
            .iter()
            .find(|own| Some(path(own)) == socket)
        {
            Some(own) => Err(format!(
                "share {:?} has the socket {own:?} of --control or --metrics",
                share.tag
            )),
            None => Ok(()),
        }
    }

    /// Serves until a signal ends the daemon, or the last share has ended.
    ///
    /// # Errors
    /// A share of the start cannot be served; signals or descriptors cannot be waited for.
    pub(super) fn run(&mut self) -> Result<u8, Error> {
        let mut failure = None;
        loop {
            self.obey()?;
            while let Some(command) = self.clients.command() {
                self.carry_out(command);
            }
            self.shares.iter_mut().for_each(ShareProcess::look);
            // A process says why it ends.
            self.hear();
            if let Some(reason) = self.reap() {
                // The others end in order, and then the daemon fails.
                failure.get_or_insert(reason);
                self.end_all();
            }
            for share in &mut self.shares {
                share.keep_up(&self.start);
            }
            self.tell();
            let has_failed = |share: &ShareProcess| matches!(share.phase(), Phase::Failed(_));
            if !self.shares.is_empty() && self.shares.iter().all(has_failed) {
                return Err(Error::Share("no share can be served any more".to_owned()));
            }
            if self.shares.is_empty() && (self.is_ending || !self.has_control) {
                return match failure {
                    Some(reason) => Err(Error::Share(reason)),
                    None => Ok(0),
                };
            }
            self.wait()?;
        }
    }

    /// Takes what the shares' processes say.
    fn hear(&mut self) {
        loop {
            let (process, said) = match self.notify.receive() {
                Ok(Some(received)) => received,
                Ok(None) => return,
                Err(error) => {
                    rate_limited!(error, "cannot receive what a share's process says: {error}");
                    return;
                }
            };
            let Some(share) = self.shares.iter_mut().find(|share| share.is_of(process)) else {
                continue;
            };
            let is_ready = said.contains(&Said::Ready);
            for said in said {
                match said {
                    Said::Ready => share.is_ready(),
                    Said::Alive => share.is_alive(),
                    // What it says of itself while all is well is no reason of a failure.
                    Said::Status(status) if !is_ready => share.says(status),
                    Said::Status(_) | Said::Reloading => {}
                }
            }
        }
    }

    /// Takes the signals that have arrived.
    fn obey(&mut self) -> Result<(), Error> {
        while let Some(signal) = self.signals.take().map_err(Error::Wait)? {
            match signal {
                Signal::SIGCHLD => {}
                Signal::SIGHUP => self.reload(),
                Signal::SIGUSR1 => self.shares.iter().for_each(ShareProcess::log_status),
                _ => self.end_all(),
            }
        }
        Ok(())
    }

    /// Has all shares end in order, and then the daemon.
    pub(super) fn end_all(&mut self) {
        if !self.is_ending {
            self.is_ending = true;
            readiness::stopping();
        }
        for share in &mut self.shares {
            if !matches!(share.phase(), Phase::Ending(_)) {
                share.end();
            }
        }
    }

    /// Has all shares reload, and begins to serve those of new files.
    fn reload(&mut self) {
        if self.is_ending || !self.has_begun {
            return;
        }
        readiness::reloading();
        self.is_reloading = true;
        for share in &mut self.shares {
            share.reload();
        }
        let Some(directory) = self.shares_dir.clone() else {
            return;
        };
        let paths = match file::list(&directory) {
            Ok(paths) => paths,
            Err(error) => return log::error!("{}", error_chain(&error)),
        };
        for share in self.shares.iter().map(ShareProcess::share) {
            if let Origin::File(path) = &share.origin
                && path.starts_with(&directory)
                && !paths.contains(path)
            {
                log::warn!(
                    "{}: the file has gone, and share {:?} goes on: to end it, \
                     gangplankd share remove {}",
                    path.display(),
                    share.tag,
                    share.tag
                );
            }
        }
        for path in paths {
            let read = file::read(&path).map_err(|error| error_chain(&error));
            let result = read.and_then(|share| match self.find(&share.tag) {
                None => self.begin(share),
                Some(known) if *known.share() == self.named(&share) => Ok(()),
                Some(_) => Err(format!(
                    "{}: share {:?} is served with the options that it had before: to change them, \
                     remove it (gangplankd share remove) and reload again",
                    path.display(),
                    share.tag
                )),
            });
            if let Err(reason) = result {
                log::error!("{reason}");
            }
        }
    }

    /// The share with the socket that it would have.
    fn named(&self, share: &Share) -> Share {
        let mut named = share.clone();
        let is_passed = self.passed.contains_key(&share.tag);
        // What fails has failed before.
        let _ = self.name_socket(&mut named, is_passed);
        named
    }

    fn find(&self, tag: &str) -> Option<&ShareProcess> {
        self.shares.iter().find(|one| one.share().tag == tag)
    }

    fn carry_out(&mut self, command: Command) {
        let Command { request, answer } = command;
        if let Err(reason) = self.try_to(request, &answer) {
            // It may have gone.
            let _ = answer.try_send(Reply::Error(reason));
        }
        self.show();
    }

    fn try_to(&mut self, request: Request, answer: &SyncSender<Reply>) -> Result<(), String> {
        if self.is_ending {
            return Err("the daemon is ending".to_owned());
        }
        let share = match request {
            Request::Add(share) => {
                self.begin(share)?;
                self.shares.last_mut()
            }
            Request::Remove { tag, .. } => {
                let share = self.shares.iter_mut().find(|one| one.share().tag == tag);
                let share = share.ok_or_else(|| format!("there is no share {tag:?}"))?;
                share.end();
                Some(share)
            }
            // Clients' threads see it without a command.
            Request::List => None,
        };
        let share = share.ok_or("this is no command")?;
        share.answer_later(answer.clone());
        Ok(())
    }

    /// Forgets the shares that have ended. Returns why a share of the start does not serve.
    fn reap(&mut self) -> Option<String> {
        let mut failure = None;
        let (has_begun, is_ending) = (self.has_begun, self.is_ending);
        self.shares.retain_mut(|share| {
            let tag = share.share().tag.clone();
            match share.reap() {
                Some(End::Ended) => {
                    log::info!("share {tag:?} is served no longer");
                    share.answer(&Reply::Done);
                    false
                }
                Some(End::NotStarted(reason)) => {
                    let reason = format!("cannot serve share {tag:?}: {reason}");
                    if has_begun && !is_ending {
                        log::error!("{reason}; the other shares go on");
                        share.answer(&Reply::Error(reason));
                    } else {
                        failure.get_or_insert(reason);
                    }
                    false
                }
                None if share.has_ended() => {
                    share.answer(&Reply::Done);
                    false
                }
                Some(End::Stays) | None => true,
            }
        });
        failure
    }

    /// Tells clients and the service manager how the shares are.
    fn tell(&mut self) {
        self.show();
        let all_serve = (self.shares.iter()).all(|share| *share.phase() != Phase::Starting);
        let serving = || {
            let count = self.shares.len();
            readiness::ready(&format!("serves {count} shares"));
        };
        if !self.has_begun && !self.is_ending && all_serve {
            self.has_begun = true;
            log::info!("serving {} shares", self.shares.len());
            serving();
        } else if self.is_reloading && !self.shares.iter().any(ShareProcess::is_reloading) {
            self.is_reloading = false;
            serving();
        }
        // That each acceptor answers is looked after by share.
        if let Some(watchdog) = &mut self.watchdog
            && watchdog.is_due()
        {
            watchdog.alive();
        }
    }

    fn show(&self) {
        let listed = self.shares.iter().map(ShareProcess::listed);
        self.clients.show(listed.collect());
    }

    /// Waits for something to do.
    fn wait(&mut self) -> Result<(), Error> {
        let deadlines = self
            .shares
            .iter()
            .filter_map(|one| one.deadline(&self.start));
        let left = deadlines.min();
        let left = left.map(|time| time.saturating_duration_since(Instant::now()));
        let left = left
            .into_iter()
            .chain(self.watchdog.as_ref().map(Watchdog::left))
            .min();
        let limit = left.and_then(|left: Duration| Timespec::try_from(left).ok());
        let asking = self.clients.polled();
        let fixed: [_; FIXED] = [
            self.signals.as_fd(),
            self.notify.as_fd(),
            self.clients.wake(),
        ];
        let polled = asking.iter().map(|(_, listener)| *listener);
        let mut ready: Vec<_> = (fixed.into_iter().chain(polled))
            .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
            .collect();
        match poll(&mut ready, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::Wait(io::Error::from(error))),
        }
        let kinds: Vec<Kind> = (ready.iter().skip(FIXED).zip(&asking))
            .filter(|(ready, _)| !ready.revents().is_empty())
            .map(|(_, (kind, _))| *kind)
            .collect();
        for kind in kinds {
            self.clients.accept(kind);
        }
        Ok(())
    }
}
