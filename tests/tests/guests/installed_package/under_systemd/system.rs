//! The machine, and what tests ask of it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use gangplank_tests::packages::Suite;
use gangplank_tests::systemd_host::{MOUNT, SystemdHost};
use gangplank_tests::tools;

use crate::build;

/// All that the package's units may run as, for systemctl.
const ALL: &str = "'gangplank*.socket' 'gangplank*.service'";

/// How long `systemctl stop` may take under emulation, on a busy machine. A service that must be
/// killed takes longer, by `TimeoutStopSec=`.
pub(crate) const STOP: Duration = Duration::from_secs(45);

/// Where files of the tree are listed, before the package is installed.
pub(crate) const BEFORE: &str = "/run/before";

/// Lists the files of the machine that are on its disk.
pub(crate) const LIST: &str = "find / -xdev -path /var/lib/dpkg -prune -o -path /var/log -prune -o \
                               -path /mnt -prune -o \
                               -path /srv -prune -o -path /tmp -prune -o ! -type d -print | sort";

/// The machine with the package installed.
pub(crate) struct System(SystemdHost);

impl System {
    pub(crate) fn boot(suite: Suite) -> Result<Self> {
        let parent = tempfile::Builder::new()
            .prefix("gangplank-deb-")
            .tempdir()?;
        let package = build(parent.path())?;
        let session = tools::session_check(tools::host_arch())?;
        let files = [
            ("gangplank.deb", package.as_path()),
            ("session-check", session.as_path()),
        ];
        let mut system = Self(SystemdHost::boot(suite, &files)?);
        system.sh(&format!("{LIST} >{BEFORE}"))?;
        system.sh(&format!("dpkg --install {MOUNT}/gangplank.deb"))?;
        Ok(system)
    }

    /// Runs shell text that has to succeed; returns what it printed.
    pub(crate) fn sh(&mut self, command: &str) -> Result<String> {
        self.0.guest.sh(command)
    }

    /// Runs shell text that has to fail; returns what it printed.
    pub(crate) fn fails(&mut self, command: &str) -> Result<String> {
        self.sh(&format!("! {{ {command}; }}"))
    }

    /// Waits until shell text succeeds.
    pub(crate) fn wait_until(&mut self, condition: &str) -> Result<()> {
        self.sh(&within_a_minute(condition, "sleep 0.1"))
            .with_context(|| format!("it never comes: {condition}"))?;
        Ok(())
    }

    /// Stops all that a test has started, and removes its settings.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.sh(&format!(
            "systemctl stop {ALL}; systemctl reset-failed {ALL}; rm -rf /etc/default/gangplank* \
             /run/systemd/system/gangplank* /etc/gangplank*; touch /run/stop; sleep 0.1; \
             rm -rf /srv/* /run/stop; systemctl daemon-reload; mkdir -p /srv/home && \
             echo written on the host >/srv/home/from-host"
        ))?;
        Ok(())
    }

    /// The end of the journal.
    pub(crate) fn journal(&mut self) -> String {
        let journal = "journalctl --no-pager -o short-monotonic -n 60";
        let said = self.sh(journal);
        said.unwrap_or_else(|error| format!("no journal: {error:#}"))
    }

    /// A property of a unit, as `systemctl show` has it.
    pub(crate) fn property(&mut self, unit: &str, name: &str) -> Result<String> {
        let value = self.sh(&format!("systemctl show -P {name} {unit}"))?;
        Ok(value.trim_end().to_owned())
    }

    /// Properties of a unit that must have these values.
    pub(crate) fn expect(&mut self, unit: &str, expected: &[(&str, &str)]) -> Result<()> {
        let names: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
        let shown = self.sh(&format!("systemctl show -p {} {unit}", names.join(",")))?;
        for (name, value) in expected {
            let line = format!("{name}={value}");
            ensure!(
                shown.lines().any(|other| other == line),
                "{unit} has not {line}: {shown}"
            );
        }
        Ok(())
    }

    /// A service runs that systemd has never started again.
    pub(crate) fn expect_running(&mut self, unit: &str) -> Result<()> {
        let expected = [
            ("ActiveState", "active"),
            ("SubState", "running"),
            ("NRestarts", "0"),
        ];
        self.expect(unit, &expected)
    }

    /// The processes of a unit whose names begin so.
    pub(crate) fn processes(&mut self, unit: &str, name: &str) -> Result<Vec<u32>> {
        let group = self.property(unit, "ControlGroup")?;
        let listed = self.sh(&format!(
            "for p in $(cat '/sys/fs/cgroup{group}/cgroup.procs'); do \
             case $(cat /proc/$p/comm 2>/dev/null) in {name}*) echo $p;; esac; done"
        ))?;
        listed
            .lines()
            .map(|line| Ok(line.parse()?))
            .collect::<Result<_>>()
    }

    /// The one process of a unit whose name begins so.
    pub(crate) fn process(&mut self, unit: &str, name: &str) -> Result<u32> {
        let mut found = Vec::new();
        // Those of a guest that has just gone end a little later.
        for _ in 0..50 {
            found = self.processes(unit, name)?;
            if let [process] = found[..] {
                return Ok(process);
            }
        }
        bail!("{unit} has {found:?} named {name}")
    }

    /// Kills a process, and waits until another has its name.
    pub(crate) fn kill_and_wait(&mut self, unit: &str, name: &str) -> Result<()> {
        let killed = self.process(unit, name)?;
        self.sh(&format!("kill -KILL {killed}"))?;
        for _ in 0..100 {
            let others = self.processes(unit, name)?;
            if others.iter().any(|other| *other != killed) {
                return Ok(());
            }
        }
        bail!("nothing is in the place of {name} {killed}");
    }

    /// Stops a unit, which must end in order and in time.
    pub(crate) fn stop(&mut self, unit: &str) -> Result<()> {
        let took = self.sh(&format!(
            "begun=$(date +%s%N); systemctl stop {unit}; \
             echo $((($(date +%s%N) - begun) / 1000000))"
        ))?;
        let took = Duration::from_millis(took.trim().parse()?);
        ensure!(took < STOP, "{unit} stops after {took:?}");
        if unit.ends_with(".socket") {
            return Ok(());
        }
        self.expect(
            unit,
            &[
                ("ActiveState", "inactive"),
                ("Result", "success"),
                ("NFileDescriptorStore", "0"),
            ],
        )
    }

    /// A unit with these settings beside its own, until the next test.
    pub(crate) fn change(&mut self, unit: &str, settings: &str) -> Result<()> {
        let directory = format!("/run/systemd/system/{unit}.d");
        self.sh(&format!(
            "mkdir -p {directory} && printf '[Service]\\n{settings}\\n' >{directory}/test.conf && \
             systemctl daemon-reload"
        ))?;
        Ok(())
    }

    /// Reads and writes at a socket, as a guest that comes and goes.
    pub(crate) fn use_share(&mut self, socket: &str, name: &str) -> Result<()> {
        let client = format!("gangplank-frontend fs --socket {socket}");
        let read = self.sh(&format!("{client} cat /from-host"))?;
        ensure!(read == "written on the host\n", "{read}");
        self.sh(&format!("echo written by {name} | {client} write /{name}"))?;
        let written = self.sh(&format!("cat /srv/home/{name}"))?;
        ensure!(written == format!("written by {name}\n"), "{written}");
        Ok(())
    }

    /// Begins a session that lasts until the end of the test, or [`Session::end`].
    pub(crate) fn session(&mut self, socket: &str, name: &'static str) -> Result<Session> {
        let session = Session { name };
        self.sh(&format!(
            ": >/run/{name}; \
             {MOUNT}/session-check {socket} {name} /run/stop </dev/null >/run/{name} 2>&1 &"
        ))?;
        session.goes_on(self)?;
        Ok(session)
    }
}

/// Shell text that succeeds once `condition` does, and fails a minute later. Between two looks it
/// does what `meanwhile` says.
fn within_a_minute(condition: &str, meanwhile: &str) -> String {
    format!(
        "end=$(($(date +%s) + 60)); until {condition}; do \
         [ $(date +%s) -lt $end ] || exit 1; {meanwhile}; done"
    )
}

/// A guest's session in the machine.
pub(crate) struct Session {
    name: &'static str,
}

impl Session {
    /// Waits until it has made some rounds more.
    pub(crate) fn goes_on(&self, system: &mut System) -> Result<()> {
        let log = format!("/run/{}", self.name);
        system
            .sh(&format!(
                "begun=$(wc -l <{log}); {}",
                within_a_minute(
                    &format!("[ $(wc -l <{log}) -ge $((begun + 4)) ]"),
                    &format!("! grep -e failed -e ended {log} || exit 1; sleep 0.1"),
                )
            ))
            .with_context(|| format!("the session {} does not go on", self.name))?;
        Ok(())
    }

    /// Waits until it has lost its daemon.
    pub(crate) fn is_lost(&self, system: &mut System) -> Result<()> {
        system.wait_until(&format!("grep -q failed /run/{}", self.name))
    }

    /// Ends it in order.
    pub(crate) fn end(self, system: &mut System) -> Result<()> {
        system.sh("touch /run/stop")?;
        system.wait_until(&format!("grep -q ended /run/{}", self.name))?;
        system.sh("rm /run/stop")?;
        Ok(())
    }
}
