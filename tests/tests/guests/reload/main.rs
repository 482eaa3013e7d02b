//! The daemon is upgraded, or loses its acceptor, while guests use it: they stay connected, and
//! what they have open stays open.

mod killed_acceptor;

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{GetattrIn, NodeId, Operation};
use gangplank_tests::daemon::{Daemon, Options};
use gangplank_tests::driver::fixture::{acceptor_of, guest_processes, wait_for_log};
use gangplank_tests::driver::{Driver, NodeAndFile, Setup};
use gangplank_tests::process::{User, copy_program};
use gangplank_tests::tools;
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Reloads under load.
const RELOADS: usize = 50;

/// Another guest's owner of locks.
const OWNER: u64 = 7;

/// `F_WRLCK` (asm-generic/fcntl.h).
const WRITE_LOCK: u32 = 1;

/// A daemon whose program can be replaced, with its share.
struct Upgradable {
    daemon: Daemon,
    directory: TempDir,
}

impl Upgradable {
    fn start(arguments: &[&str], user: Option<User>) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        let share = directory.path().join("share");
        fs::create_dir(&share)?;
        let program = directory.path().join("gangplankd");
        copy_program(&tools::gangplankd()?, &program)?;
        let mut options = Options::new(&share).program(&program).arguments(arguments);
        if let Some(user) = user {
            chown(&share, Some(user.uid), Some(user.gid))?;
            options = options.user(user);
        }
        let daemon = Daemon::start(&options)?;
        wait_for_log(&daemon, "waiting for guests")?;
        Ok(Self { daemon, directory })
    }

    fn share(&self) -> PathBuf {
        self.directory.path().join("share")
    }

    fn program(&self) -> PathBuf {
        self.directory.path().join("gangplankd")
    }

    /// Puts another program at the daemon's path, as a package manager does.
    fn replace(&self, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let new = self.directory.path().join("new");
        make(&new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
        Ok(fs::rename(&new, self.program())?)
    }

    fn replace_by(&self, program: &Path) -> Result<()> {
        self.replace(|new| Ok(copy_program(program, new)?))
    }

    fn ask_to_reload(&self) -> Result<Output> {
        // By another copy: the daemon's own may be no daemon.
        self.daemon.ask_to_reload()
    }

    fn reload(&self) -> Result<()> {
        let old = acceptor_of(&self.daemon)?;
        let output = self.ask_to_reload()?;
        ensure!(output.status.success(), "{output:?}\n{}", self.daemon.log());
        ensure!(acceptor_of(&self.daemon)? != old, "the acceptor stayed");
        Ok(())
    }

    /// Has the daemon reload, which it must refuse. Returns what it says.
    fn reload_in_vain(&self) -> Result<String> {
        let old = self.processes()?;
        let output = self.ask_to_reload()?;
        ensure!(output.status.code() == Some(1), "{output:?}");
        ensure!(self.processes()? == old, "the processes changed");
        Ok(String::from_utf8(output.stderr)?)
    }

    /// The acceptor, and the keeper and the worker of each guest.
    fn processes(&self) -> Result<(u32, Vec<(u32, u32)>)> {
        let acceptor = acceptor_of(&self.daemon)?;
        Ok((acceptor, guest_processes(&self.daemon)?))
    }
}

/// What a guest has open across a reload: a file without a name, a lock, and a file that a rename
/// has moved.
struct Session {
    driver: Driver,
    name: &'static str,
    unlinked: NodeAndFile,
    locked: NodeAndFile,
    moved: NodeId,
    written: u64,
}

impl Session {
    fn begin(daemon: &Daemon, name: &'static str) -> Result<Self> {
        let mut driver = Driver::mount(daemon.socket(), &Setup::default())?;
        let name_of = |what: &str| CString::new(format!("{name}-{what}"));
        let (gone, locked) = (name_of("unlinked")?, name_of("locked")?);
        let unlinked = driver.create(NodeId::ROOT, &gone, 0o644)?;
        driver.write(unlinked, 0, b"still here")?;
        driver.unlink(NodeId::ROOT, &gone)?;
        let locked = driver.create(NodeId::ROOT, &locked, 0o644)?;
        driver.setlk(locked, OWNER, WRITE_LOCK)?;
        let (directory, moved) = (name_of("directory")?, name_of("moved")?);
        let directory = NodeId::new(driver.mkdir(NodeId::ROOT, &directory)?.nodeid);
        let file = driver.create(directory, c"file", 0o644)?;
        driver.release(file)?;
        driver.rename((directory, c"file"), (NodeId::ROOT, &moved), 0)?;
        Ok(Self {
            driver,
            name,
            unlinked,
            locked,
            moved: file.node,
            written: 0,
        })
    }

    /// All that the guest has is what it was.
    fn check(&mut self, share: &Path) -> Result<()> {
        let content = self.driver.read(self.unlinked, 0, 64)?;
        ensure!(content == b"still here", "{content:?}");
        self.driver.getattr(self.moved, None)?;
        self.driver.write(self.locked, self.written, b"line\n")?;
        self.written += 5;
        let path = share.join(format!("{}-locked", self.name));
        let file = File::options().read(true).write(true).open(path)?;
        ensure!(file.metadata()?.len() == self.written);
        ensure!(is_locked(&file)?, "the lock is lost");
        Ok(())
    }
}

/// Whether another open file has a lock on the file.
fn is_locked(file: &File) -> Result<bool> {
    match fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(true),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(false),
    }
}

fn as_users() -> Vec<Option<User>> {
    match User::is_root() {
        true => vec![None, Some(User::NOBODY)],
        false => vec![None],
    }
}

#[test]
fn guests_keep_what_they_have_open_across_reloads() -> Result<()> {
    for user in as_users() {
        for sandbox in ["namespace", "chroot", "none"] {
            if sandbox == "chroot" && (user.is_some() || !User::is_root()) {
                continue;
            }
            let sandbox = format!("--sandbox={sandbox}");
            let upgradable = Upgradable::start(&[&sandbox, "--locks=host"], user)?;
            let share = upgradable.share();
            let outcome = (|| -> Result<()> {
                let mut first = Session::begin(&upgradable.daemon, "first")?;
                let mut second = Session::begin(&upgradable.daemon, "second")?;
                for _ in 0..3 {
                    upgradable.reload()?;
                    first.check(&share)?;
                    second.check(&share)?;
                }
                // A guest that connects now is one of the new program's, and is taken over as well.
                let mut third = Session::begin(&upgradable.daemon, "third")?;
                drop(second);
                upgradable.reload()?;
                first.check(&share)?;
                third.check(&share)?;
                wait_for_log(&upgradable.daemon, "guest 2 has gone")
            })();
            outcome.with_context(|| format!("{sandbox} {user:?}\n{}", upgradable.daemon.log()))?;
            let (status, log) = upgradable.daemon.stop()?;
            ensure!(status.success(), "{status}: {log}");
        }
    }
    Ok(())
}

#[test]
fn a_program_that_cannot_take_over_is_refused_and_nothing_changes() -> Result<()> {
    let upgradable = Upgradable::start(&["--locks=host"], None)?;
    let share = upgradable.share();
    let mut guest = Session::begin(&upgradable.daemon, "guest")?;
    let scripts = [
        ("#!/bin/sh\nexit 3\n", "exit status: 3"),
        ("not a program", "cannot start"),
        // The path is not the running program's, so this one is found and passed other options.
        (
            "#!/bin/sh\nexec PROGRAM --no-such-option \"$@\"\n",
            "exit status: 2",
        ),
        (
            "#!/bin/sh\nexec PROGRAM \"$@\" --shared-dir=/nonexistent\n",
            "/nonexistent",
        ),
    ];
    let program = tools::gangplankd()?.display().to_string();
    for (script, reason) in scripts {
        let script = script.replace("PROGRAM", &program);
        upgradable.replace(|new| Ok(fs::write(new, script)?))?;
        let said = upgradable.reload_in_vain()?;
        ensure!(said.contains(reason), "{said}");
        guest.check(&share)?;
    }
    upgradable.replace_by(&tools::gangplankd()?)?;
    upgradable.reload()?;
    guest.check(&share)
}

#[test]
fn a_program_that_keeps_guests_in_another_way_is_refused_and_the_old_one_serves_on() -> Result<()> {
    let upgradable = Upgradable::start(&["--locks=host"], None)?;
    let share = upgradable.share();
    let mut guest = Session::begin(&upgradable.daemon, "guest")?;
    // Its version of guests' states is another.
    upgradable.replace_by(&tools::gangplankd_that_crashes()?)?;
    for _ in 0..2 {
        let said = upgradable.reload_in_vain()?;
        ensure!(
            said.contains("keeps guests' states in version"),
            "{said}\n{}",
            upgradable.daemon.log()
        );
        guest.check(&share)?;
        burst(&mut guest.driver)?;
    }
    // Guests are accepted again, too.
    Session::begin(&upgradable.daemon, "next")?.check(&share)?;
    upgradable.replace_by(&tools::gangplankd()?)?;
    upgradable.reload()?;
    guest.check(&share)
}

#[test]
fn guests_go_on_with_the_old_program_if_the_new_one_fails_while_it_takes_them_over() -> Result<()> {
    let upgradable = Upgradable::start(&["--locks=host"], None)?;
    let share = upgradable.share();
    let mut guest = Session::begin(&upgradable.daemon, "guest")?;
    let files = (0..400).map(|file| {
        let name = CString::new(format!("file {file}"))?;
        Ok(guest.driver.create(NodeId::ROOT, &name, 0o644)?)
    });
    let files = files.collect::<Result<Vec<_>>>()?;
    let program = tools::gangplankd()?.display().to_string();
    let script = format!("#!/bin/sh\nexec {program} \"$@\" --rlimit-nofile=300\n");
    upgradable.replace(|new| Ok(fs::write(new, script)?))?;
    let (acceptor, _) = upgradable.processes()?;
    for _ in 0..3 {
        let output = upgradable.ask_to_reload()?;
        ensure!(output.status.code() == Some(1), "{output:?}");
        let said = String::from_utf8(output.stderr)?;
        ensure!(said.contains("descriptors"), "{said}");
        ensure!(upgradable.processes()?.0 == acceptor);
        guest.check(&share)?;
    }
    upgradable.replace_by(&tools::gangplankd()?)?;
    upgradable.reload()?;
    guest.check(&share)?;
    for file in files {
        guest.driver.write(file, 0, b"open")?;
    }
    // Guests are accepted again, too.
    Session::begin(&upgradable.daemon, "next")?.check(&share)
}

#[test]
fn requests_in_flight_are_answered_once_however_often_the_daemon_reloads() -> Result<()> {
    let upgradable = Upgradable::start(&[], None)?;
    let mut guest = Driver::mount(upgradable.daemon.socket(), &Setup::default())?;
    let process = Pid::from_raw(upgradable.daemon.pid().try_into()?).context("a process id")?;
    let served = thread::scope(|scope| -> Result<usize> {
        let reloading = scope.spawn(|| -> Result<()> {
            for _ in 0..RELOADS {
                upgradable.reload()?;
                thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        });
        let mut served = 0;
        while !reloading.is_finished() {
            served += burst(&mut guest).with_context(|| upgradable.daemon.log())?;
            // Connections that come meanwhile wait, and none is refused.
            let next = Driver::mount(upgradable.daemon.socket(), &Setup::default());
            drop(next.with_context(|| upgradable.daemon.log())?);
        }
        reloading.join().expect("no panic")?;
        Ok(served)
    })?;
    let mut pauses = pauses(&upgradable.daemon.log());
    pauses.sort_by(f64::total_cmp);
    eprintln!(
        "{served} requests; pauses of the guests: median {:?} ms, longest {:?} ms",
        pauses.get(pauses.len() / 2),
        pauses.last()
    );
    // By a signal alone.
    let old = acceptor_of(&upgradable.daemon)?;
    kill_process(process, Signal::HUP)?;
    wait_for_log(&upgradable.daemon, &format!("reload {}", RELOADS + 1))?;
    burst(&mut guest)?;
    ensure!(acceptor_of(&upgradable.daemon)? != old);
    Ok(())
}

/// Sends 32 requests and waits for each. The driver fails if one comes back twice.
fn burst(guest: &mut Driver) -> Result<usize> {
    const COUNT: usize = 32;
    let getattr = Operation::Getattr(GetattrIn {
        getattr_flags: 0,
        dummy: 0,
        fh: 0,
    });
    let tickets = (0..COUNT)
        .map(|_| guest.submit(1, NodeId::ROOT, getattr, &[], 256))
        .collect::<Result<Vec<_>, _>>()?;
    for ticket in tickets {
        guest.finish(ticket)?;
    }
    Ok(COUNT)
}

/// The pauses that the log tells, in ms.
fn pauses(log: &str) -> Vec<f64> {
    let parts = log.split("is served by the new program after ").skip(1);
    parts
        .filter_map(|part| part.split_whitespace().next()?.parse().ok())
        .collect()
}

#[test]
fn a_guest_that_knows_many_files_is_taken_over_with_all_of_them() -> Result<()> {
    let upgradable = Upgradable::start(&[], None)?;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let files = limit.maximum.unwrap_or(u64::MAX).min(100_000) - 1000;
    let share = upgradable.share();
    for file in 0..files {
        File::create(share.join(file.to_string()))?;
    }
    let mut guest = Driver::mount(upgradable.daemon.socket(), &Setup::default())?;
    let mut nodes = Vec::new();
    for file in 0..files {
        let name = CString::new(file.to_string())?;
        nodes.push(NodeId::new(guest.lookup(NodeId::ROOT, &name)?.nodeid));
    }
    upgradable.reload()?;
    guest.getattr(NodeId::ROOT, None)?;
    wait_for_log(&upgradable.daemon, "is served by the new program after")?;
    eprintln!(
        "{files} files: {:?} ms",
        pauses(&upgradable.daemon.log()).last()
    );
    for node in nodes {
        guest.getattr(node, None)?;
    }
    Ok(())
}

#[test]
fn a_service_manager_is_told_of_each_reload_and_of_its_end() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path)?;
    manager.set_read_timeout(Some(Duration::from_secs(20)))?;
    let next = || -> Result<String> {
        let mut text = [0; 4096];
        let len = manager.recv(&mut text).context("no message came")?;
        Ok(String::from_utf8(text[..len].to_vec())?)
    };
    // The daemon's path is the program's, which the script executes.
    let program = directory.path().join("gangplankd");
    copy_program(&tools::gangplankd()?, &program)?;
    let script = directory.path().join("script");
    let text = format!(
        "#!/bin/sh\nNOTIFY_SOCKET={} exec {} \"$@\"\n",
        path.display(),
        program.display()
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let share = directory.path().join("share");
    fs::create_dir(&share)?;
    let daemon = Daemon::start(&Options::new(&share).program(&script))?;
    let ready = next()?;
    ensure!(ready.starts_with("READY=1"), "{ready}");
    let upgradable = Upgradable { daemon, directory };
    for works in [true, true, false] {
        if works {
            upgradable.reload()?;
        } else {
            upgradable.replace(|new| Ok(fs::write(new, "not a program")?))?;
            upgradable.reload_in_vain()?;
        }
        let reloading = next()?;
        ensure!(reloading.starts_with("RELOADING=1"), "{reloading}");
        ensure!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
        let ready = next()?;
        ensure!(ready.starts_with("READY=1"), "{ready}");
    }
    let (status, log) = upgradable.daemon.stop()?;
    ensure!(status.success(), "{log}");
    let stopping = next()?;
    ensure!(stopping.starts_with("STOPPING=1"), "{stopping}");
    Ok(())
}
