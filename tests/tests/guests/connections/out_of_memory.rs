//! Whom the kernel ends when memory runs out: workers, and not the processes that serve all guests.
//! A QEMU guest is the host, because not every machine that runs tests lets root lower a process's
//! `oom_score_adj` (`CAP_SYS_RESOURCE`).

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use gangplank_tests::cgroup::SHORTAGE;
use gangplank_tests::guest::Machine;
use gangplank_tests::tools;

use super::qemu_host::Host;

/// Number of guests.
const GUESTS: usize = 2;

/// Each process: its number, its parent's, what its kernel ends it by, and its name.
const PROCESSES: &str = "for process in /proc/[0-9]*; do \
    grep -q '^State:\\s*Z' $process/status && continue; \
    score=$(cat $process/oom_score_adj 2>/dev/null) || continue; \
    parent=$(sed -n 's/^PPid:\\s*//p' $process/status) && \
    echo ${process#/proc/} $parent $score $(cat $process/comm); done 2>/dev/null; true";

struct Process {
    number: u32,
    parent: u32,
    score: i32,
    name: String,
}

/// The processes of a daemon.
struct Processes {
    supervisor: Process,
    acceptor: Process,
    keepers: Vec<Process>,
    workers: Vec<Process>,
}

impl Processes {
    fn of(host: &mut Host, share: &str) -> Result<Self> {
        let pid_file = host.0.sh(&format!("cat /run/{share}.pid"))?;
        let supervisor: u32 = pid_file.trim().parse()?;
        let mut all = Vec::new();
        for line in host.0.sh(PROCESSES)?.lines() {
            let mut words = line.split_whitespace();
            let mut number = || words.next().context("a process without a number");
            all.push(Process {
                number: number()?.parse()?,
                parent: number()?.parse()?,
                score: number()?.parse()?,
                name: words.collect::<Vec<_>>().join(" "),
            });
        }
        let mut taken = |is_it: &dyn Fn(&Process) -> bool| -> Vec<Process> {
            all.extract_if(.., |process| is_it(process)).collect()
        };
        let is_child = |process: &Process| process.parent == supervisor;
        Ok(Self {
            supervisor: taken(&|process| process.number == supervisor)
                .pop()
                .context("a supervisor")?,
            keepers: taken(&|process| is_child(process) && process.name.starts_with("keeper_")),
            acceptor: taken(&is_child).pop().context("an acceptor")?,
            workers: taken(&|process| process.name.starts_with("worker_")),
        })
    }

    /// What they are once all guests are served.
    fn serving(host: &mut Host, share: &str) -> Result<Self> {
        for _ in 0..100 {
            let found = Self::of(host, share)?;
            // A worker has its name a moment before its score.
            let is_ready = |worker: &Process| worker.score == 0;
            if found.workers.len() == GUESTS && found.workers.iter().all(is_ready) {
                return Ok(found);
            }
            host.0.sh("sleep 0.1")?;
        }
        anyhow::bail!("there are not {GUESTS} workers with the score 0")
    }

    /// All but the workers: these have to outlive a shortage.
    fn protected(&self) -> impl Iterator<Item = &Process> {
        [&self.supervisor, &self.acceptor]
            .into_iter()
            .chain(&self.keepers)
    }
}

/// Supervisor, acceptor and keepers have a lower score than workers. When a cgroup has no memory
/// left, the kernel ends workers alone. Their guests go on.
pub(crate) fn ends_workers_alone() -> Result<()> {
    let session = tools::session_check(Machine::QemuX86_64.arch())?;
    let programs = [("session-check", session.as_path() as &Path)];
    let mut host = Host::boot(Vec::new(), &[], &programs)?;
    host.0.sh(
        "mkdir /cgroup /srv && mount -t tmpfs tmpfs /srv && mount -t cgroup2 cgroup2 /cgroup && \
         echo +memory >/cgroup/cgroup.subtree_control",
    )?;
    for sandbox in ["chroot", "none"] {
        // The shell that starts the daemon, and so the daemon.
        let enter = format!("mkdir /cgroup/{sandbox} && echo 0 >/cgroup/{sandbox}/cgroup.procs");
        let options = format!("--sandbox={sandbox} --max-crashes=1000");
        host.serve_by(&enter, sandbox, "/srv", &options)?;
        let checked = works_on(&mut host, sandbox);
        let log = host.0.sh(&format!("cat /run/{sandbox}.log"))?;
        checked.with_context(|| format!("--sandbox={sandbox}: {log}"))?;
        host.ends(sandbox)?;
    }
    host.0.power_off()
}

fn works_on(host: &mut Host, share: &str) -> Result<()> {
    for guest in 0..GUESTS {
        host.0.sh(&format!(
            "rm -f /run/end && {{ session-check /run/{share} guest-{guest} /run/end \
             >/run/guest-{guest} 2>&1 & }}"
        ))?;
    }
    let before = Processes::serving(host, share)?;
    let protected: Vec<i32> = before.protected().map(|process| process.score).collect();
    ensure!(protected == [-500; GUESTS + 2], "{protected:?}");

    let shortage = format!("cd /cgroup/{share} && {SHORTAGE}");
    let kills: u32 = host.0.sh(&shortage)?.trim().parse()?;
    ensure!(kills > 0, "the kernel has killed nobody");
    let after = Processes::serving(host, share)?;
    let numbers = |processes: &Processes| -> BTreeSet<u32> {
        processes
            .protected()
            .map(|process| process.number)
            .collect()
    };
    ensure!(
        numbers(&after) == numbers(&before),
        "not only workers were killed, {kills} in all"
    );
    let numbers = |processes: &Processes| -> BTreeSet<u32> {
        processes
            .workers
            .iter()
            .map(|worker| worker.number)
            .collect()
    };
    ensure!(numbers(&after) != numbers(&before), "no worker was killed");
    // All that a session says beside the numbers of its rounds.
    let sessions = host.0.sh(&format!(
        "touch /run/end; for i in $(seq 600); do \
         [ $(grep -lx ended /run/guest-* | wc -l) = {GUESTS} ] && break; sleep 0.1; done; \
         grep -hv '^[0-9]' /run/guest-*; rm /run/guest-*"
    ))?;
    ensure!(sessions == "ended\n".repeat(GUESTS), "{sessions}");
    Ok(())
}
