//! What single options promise. Each is tried with every line that has the option.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, chown};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::guest_suite::programs::LOCK_IS_HELD;
use gangplank_tests::promises::Tried;
use rustix::fs::{FlockOperation, OFlags, fcntl_lock};
use rustix::process::{Resource, Rlimit, getrlimit};

use crate::Line;
use crate::environment::{IN_SUBMOUNT, SUBMOUNT, kvm_gid};
use crate::launch::Launched;

/// Limit for a process to get to where it waits.
const LIMIT: Duration = Duration::from_secs(60);

/// `CAP_DAC_READ_SEARCH`, which open_by_handle_at(2) takes.
const OPENS_BY_HANDLE: u64 = 1 << 2;

/// A guest, and the command line of its daemon.
pub(crate) struct Given<'a> {
    pub(crate) tried: Tried<'a>,
    pub(crate) launched: &'a Launched,
    pub(crate) words: &'a [&'a str],
}

/// Fails unless an option keeps its promise.
type Promise = fn(&mut Given<'_>) -> Result<()>;

/// Options in the forms in which lines have them, and what they promise.
const PROMISES: &[(&[&str], Promise)] = &[
    (
        &["--announce-submounts", "announce_submounts"],
        announces_submounts,
    ),
    (&["--no-announce-submounts"], hides_submounts),
    (
        &["--cache=never", "--cache never", "cache=none"],
        sees_changes_at_once,
    ),
    (
        &["--cache=always", "--cache always", "cache=always"],
        keeps_what_it_has_seen,
    ),
    (
        &["--allow-direct-io", "allow_direct_io"],
        reads_around_the_hosts_cache,
    ),
    (&["--inode-file-handles=mandatory"], reaches_files_by_handle),
    (&["--rlimit-nofile"], has_descriptors),
    (&["--thread-pool-size"], has_threads),
    (&["--syslog"], logs_to_syslog),
    (&["--log-level debug", "-d", "-o debug"], logs_details),
    (
        &["RUST_LOG=ERROR", "--log-level=error", "log_level=err"],
        logs_errors_alone,
    ),
    (&["--log-level warn", "log_level=warn"], logs_no_information),
    (&["--modcaps=-mknod"], makes_no_devices),
    (&["--seccomp kill"], filters_system_calls),
    (
        &["--seccomp none", "--seccomp=none"],
        filters_no_system_calls,
    ),
    (&["--socket-group=kvm"], lets_the_group_connect),
    (&["posix_lock", "flock"], has_posix_locks_of_the_host),
];

/// What the options of `line` promise.
pub(crate) fn promises(line: &Line) -> impl Iterator<Item = Promise> {
    let words = line.words.join(" ");
    let environment = line.environment.iter();
    let environment = environment.map(|(name, value)| format!(" {name}={value}"));
    let typed = format!(" {words}{} ", environment.collect::<String>()).replace(',', " ");
    PROMISES.iter().filter_map(move |(forms, promise)| {
        let is_given = |form: &&str| {
            [" ", "="]
                .iter()
                .any(|end| typed.contains(&format!(" {form}{end}")))
        };
        forms.iter().any(is_given).then_some(*promise)
    })
}

/// The value that an option has, in its word or in the next.
pub(crate) fn value<'a>(words: &[&'a str], option: &str) -> Option<&'a str> {
    let mut words = words.iter();
    words
        .find_map(|word| match word.strip_prefix(option)? {
            "" => Some(""),
            rest => rest.strip_prefix('='),
        })
        .and_then(|value| {
            if value.is_empty() {
                words.next().copied()
            } else {
                Some(value)
            }
        })
}

impl Given<'_> {
    /// As [`Tried::sh`].
    fn sh(&mut self, command: &str) -> Result<String> {
        self.tried.sh(command)
    }

    /// The number that an option has.
    fn number(&self, option: &str) -> Result<u64> {
        let number = value(self.words, option);
        let number = number.with_context(|| format!("{option} is not given"))?;
        Ok(number.parse()?)
    }

    /// Writes a file on the host, which belongs to the share's owner.
    fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.tried.share.join(name);
        fs::write(&path, content)?;
        let owner = self.tried.owner;
        chown(&path, Some(owner), Some(owner))?;
        Ok(())
    }
}

/// What is mounted below the share is another file system for the guest.
fn announces_submounts(given: &mut Given<'_>) -> Result<()> {
    let seen = given.sh(&format!(
        "cat {SUBMOUNT}/{IN_SUBMOUNT}; stat -c %d . {SUBMOUNT}; \
         grep -c ' /mnt/{SUBMOUNT} virtiofs ' /proc/mounts"
    ))?;
    let lines: Vec<&str> = seen.lines().collect();
    ensure!(
        matches!(*lines, ["below", above, below, "1"] if above != below),
        "{seen}"
    );
    Ok(())
}

/// What is mounted below the share is a directory of the share's file system for the guest.
fn hides_submounts(given: &mut Given<'_>) -> Result<()> {
    let seen = given.sh(&format!(
        "cat {SUBMOUNT}/{IN_SUBMOUNT}; stat -c %d . {SUBMOUNT}; \
         grep -c ' /mnt/{SUBMOUNT} ' /proc/mounts || true"
    ))?;
    let lines: Vec<&str> = seen.lines().collect();
    ensure!(
        matches!(*lines, ["below", above, below, "0"] if above == below),
        "{seen}"
    );
    Ok(())
}

/// What the host changes, the guest sees in its next access.
fn sees_changes_at_once(given: &mut Given<'_>) -> Result<()> {
    given.write("changed", b"1\n")?;
    given.sh("test \"$(cat changed)\" = 1; test ! -e appeared")?;
    given.write("changed", b"another text\n")?;
    given.write("appeared", b"")?;
    given.sh(
        "test \"$(stat -c %s changed)\" = 13; test \"$(cat changed)\" = 'another text'; \
         test -e appeared",
    )?;
    Ok(())
}

/// What the guest has seen, it need not ask for again.
fn keeps_what_it_has_seen(given: &mut Given<'_>) -> Result<()> {
    given.write("kept", b"1\n")?;
    given.sh("test \"$(cat kept)\" = 1; test \"$(stat -c %s kept)\" = 2")?;
    given.write("kept", b"another text\n")?;
    // Longer than any other policy keeps it.
    thread::sleep(Duration::from_millis(1500));
    given.sh("test \"$(stat -c %s kept)\" = 2")?;
    Ok(())
}

/// A file that a program of the guest opens with `O_DIRECT` is open like that on the host.
fn reads_around_the_hosts_cache(given: &mut Given<'_>) -> Result<()> {
    given.write("direct", &[7; 1 << 20])?;
    // The pipe is full long before the end of the file.
    given.sh(
        "(t dd if=/mnt/direct iflag=direct bs=4096 2>/dev/null | sleep 1000) >/dev/null 2>&1 & :",
    )?;
    let until = Instant::now() + LIMIT;
    let worker = given.launched.worker()?;
    while !has_open_directly(worker, "direct") {
        ensure!(Instant::now() < until, "no file is open with O_DIRECT");
        thread::sleep(Duration::from_millis(20));
    }
    given.sh("killall sleep; t dd if=/mnt/direct iflag=direct bs=65536 | wc -c | grep 1048576")?;
    Ok(())
}

/// Whether a process has a file of this name open with `O_DIRECT`.
fn has_open_directly(process: u32, name: &str) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd"));
    descriptors.into_iter().flatten().flatten().any(|entry| {
        let is_it = fs::read_link(entry.path()).is_ok_and(|path| path.ends_with(name));
        let number = entry.file_name();
        let number = number.to_string_lossy();
        let info = fs::read_to_string(format!("/proc/{process}/fdinfo/{number}"));
        let flags = info.ok().and_then(|info| {
            let line = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
            u32::from_str_radix(line.trim(), 8).ok()
        });
        is_it && flags.is_some_and(|flags| flags & OFlags::DIRECT.bits() != 0)
    })
}

/// The worker may open files by handle, and the guest goes on in a directory that the host renames.
fn reaches_files_by_handle(given: &mut Given<'_>) -> Result<()> {
    let status = fs::read_to_string(format!("/proc/{}/status", given.launched.worker()?))?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.context("no capabilities")?;
    let effective = u64::from_str_radix(effective.trim(), 16)?;
    ensure!(effective & OPENS_BY_HANDLE != 0, "{effective:#x}");
    given.sh("mkdir before; echo found >before/file; \
         (cd before; : >/tmp/there; while [ ! -e /tmp/go ]; do sleep 0.1; done; \
         cat file >/tmp/found) >/dev/null 2>&1 & \
         while [ ! -e /tmp/there ]; do sleep 0.1; done")?;
    fs::rename(
        given.tried.share.join("before"),
        given.tried.share.join("after"),
    )?;
    given.sh(
        "touch /tmp/go; for i in $(seq 600); do [ -s /tmp/found ] && break; sleep 0.1; done; \
         test \"$(cat /tmp/found)\" = found",
    )?;
    Ok(())
}

/// How many descriptors a process may have.
fn open_files(process: u32) -> Result<Rlimit> {
    let limits = fs::read_to_string(format!("/proc/{process}/limits"))?;
    let mut lines = limits.lines();
    let line = lines.find_map(|line| line.strip_prefix("Max open files"));
    let line = line.context("no limit of descriptors")?;
    // An unlimited number is none.
    let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
    Ok(Rlimit {
        current: numbers.next().flatten(),
        maximum: numbers.next().flatten(),
    })
}

/// The worker may have as many descriptors as the option says, or as the host permits.
fn has_descriptors(given: &mut Given<'_>) -> Result<()> {
    let number = given.number("--rlimit-nofile")?;
    let limit = open_files(given.launched.worker()?)?;
    let refused = format!("raising it to {number} is not permitted");
    let expected = match (number, given.launched.log().contains(&refused)) {
        // It is left alone.
        (0, _) => getrlimit(Resource::Nofile).current,
        (_, true) => limit.maximum.filter(|maximum| *maximum < number),
        (_, false) => Some(number),
    };
    ensure!(expected.is_some() && limit.current == expected, "{limit:?}");
    Ok(())
}

/// The worker has as many threads for requests as the option says.
fn has_threads(given: &mut Given<'_>) -> Result<()> {
    let number = given.number("--thread-pool-size")?;
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", given.launched.worker()?))? {
        let name = fs::read_to_string(thread?.path().join("comm"))?;
        threads += u64::from(name.starts_with("pool_"));
    }
    ensure!(threads == number, "{threads} threads");
    Ok(())
}

/// Messages go to the host's syslog daemon, and nowhere else.
fn logs_to_syslog(given: &mut Given<'_>) -> Result<()> {
    let (messages, errors) = (given.launched.syslog(), given.launched.standard_error());
    // Facility `user`, level `info`.
    ensure!(messages.contains("<14>gangplankd["), "{messages}");
    ensure!(errors.is_empty(), "on standard error: {errors}");
    Ok(())
}

fn logs_details(given: &mut Given<'_>) -> Result<()> {
    let log = given.launched.log();
    ensure!(log.contains(" DEBUG"), "{log}");
    Ok(())
}

fn logs_errors_alone(given: &mut Given<'_>) -> Result<()> {
    let log = given.launched.log();
    ensure!(log.is_empty(), "{log}");
    Ok(())
}

fn logs_no_information(given: &mut Given<'_>) -> Result<()> {
    let log = given.launched.log();
    ensure!(!log.contains(" INFO"), "{log}");
    Ok(())
}

/// A guest's root makes no device on the host.
fn makes_no_devices(given: &mut Given<'_>) -> Result<()> {
    given.sh("{ mknod zero c 1 5 2>&1 || true; } | grep 'Operation not permitted'")?;
    ensure!(!given.tried.share.join("zero").exists());
    Ok(())
}

/// How many filters of system calls the worker has, beside those that this process has.
fn filters_of(launched: &Launched) -> Result<usize> {
    let of = |process: &str| {
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let mut lines = status.lines();
        let filters = lines.find_map(|line| line.strip_prefix("Seccomp_filters:"));
        let filters = filters.context("the kernel does not count filters")?;
        anyhow::Ok(filters.trim().parse::<usize>()?)
    };
    Ok(of(&launched.worker()?.to_string())? - of("self")?)
}

fn filters_system_calls(given: &mut Given<'_>) -> Result<()> {
    ensure!(filters_of(given.launched)? > 0, "no filter");
    Ok(())
}

fn filters_no_system_calls(given: &mut Given<'_>) -> Result<()> {
    let filters = filters_of(given.launched)?;
    ensure!(filters == 0, "{filters} filters");
    Ok(())
}

/// The members of the group may connect, and nobody else but the owner.
fn lets_the_group_connect(given: &mut Given<'_>) -> Result<()> {
    let socket = fs::metadata(given.launched.socket())?;
    let seen = (socket.mode() & 0o777, socket.gid());
    ensure!(seen == (0o660, kvm_gid()?), "{seen:?}");
    Ok(())
}

/// A record lock that a program of the host holds is held in the guest as well.
fn has_posix_locks_of_the_host(given: &mut Given<'_>) -> Result<()> {
    given.write("recorded", b"")?;
    let held = File::options()
        .write(true)
        .open(given.tried.share.join("recorded"))?;
    fcntl_lock(&held, FlockOperation::NonBlockingLockExclusive)?;
    let tries = "status=0; guest-check /mnt/recorded --try-posix-lock || status=$?; echo $status";
    let status = given.sh(tries)?;
    ensure!(status.trim() == LOCK_IS_HELD.to_string(), "held: {status}");
    drop(held);
    let status = given.sh(tries)?;
    ensure!(status.trim() == "0", "free: {status}");
    Ok(())
}
