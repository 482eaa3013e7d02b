//! The network is cut between one host and the cluster, with open files, locks and writes in
//! flight, until the daemons have warned of it; then it is mended.
//!
//! The guest of the host that is cut off waits, loses nothing and keeps its locks. The other host's
//! guest goes on.

mod daemons;
mod guest;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::driver::fixture::wait_for_log;
use gangplank_tests::guest_suite::programs::LOCK_IS_HELD;
use gangplank_tests::guest_work::{self, Program};
use gangplank_tests::runner;

use crate::fixture::{Fixture, LIMIT, POLICIES};
use daemons::OtherDaemons;

/// The hosts, by their numbers.
const NEAR: usize = 0;
const CUT_OFF: usize = 1;

/// How long guests work before the cut.
const WORKING: Duration = Duration::from_millis(700);

/// Limit for the daemons' warning, which comes 10 to 15 s after the cut.
const WARNED: Duration = Duration::from_secs(60);

/// A program that appends numbered lines to a file, open all the time, until told to end.
macro_rules! append {
    ($name:literal, $file:literal) => {
        (
            $name,
            concat!(
                "exec 3>>",
                $file,
                "; i=0; while ! test -e /dev/shm/end; do \
                   echo line $i >&3 || exit 1; i=$((i+1)); sleep 0.1; done; \
                 echo $i >/dev/shm/lines-",
                $name
            ),
        )
    };
}

/// What the guests append meanwhile, by the policy.
const NEAR_APPENDS: [Program; 1] = [append!("never", "/never/cut-never/near")];
const CUT_OFF_APPENDS: [Program; 2] = [
    append!("never", "/never/cut-never/cut-off"),
    append!("auto", "/auto/cut-auto/cut-off"),
];

pub(crate) fn host_cut_off(fixture: &mut Fixture) -> Result<()> {
    let mut others = OtherDaemons::start(&mut fixture.cluster, CUT_OFF)?;
    prepare(fixture)?;
    guest_work::start(&mut fixture.hosts[NEAR].guest, &NEAR_APPENDS)?;
    let guest = &mut fixture.hosts[CUT_OFF].guest;
    guest_work::start(guest, &CUT_OFF_APPENDS)?;
    guest::hold_locks(guest)?;
    guest::prepare_operations(guest)?;
    std::thread::sleep(WORKING);

    fixture.cluster.cut(CUT_OFF, true)?;
    let waited = while_cut(fixture, &mut others);
    fixture.cluster.cut(CUT_OFF, false)?;
    let mended = Instant::now();
    let answered = waited?;
    runner::note(&format!("answered while cut off: {answered:?}"));

    guest::wait_for_operations(&mut fixture.hosts[CUT_OFF].guest)?;
    let took = mended.elapsed();
    runner::note(&format!(
        "all requests were answered {took:?} after the cut"
    ));
    changes_are_seen(fixture)?;
    locks_are_still_held(fixture)?;
    others.are_served_again()?;
    nothing_is_lost(fixture)
}

/// The files of both policies.
fn prepare(fixture: &mut Fixture) -> Result<()> {
    for policy in POLICIES {
        let dir = format!("/{policy}/cut-{policy}");
        let names = "read written removed attributes opened seen past free";
        fixture.hosts[NEAR].guest.sh(&format!(
            "mkdir {dir} && cd {dir} && for name in {names}; do echo before >$name; done; sync"
        ))?;
        let look = format!("until grep -qs before {dir}/free; do sleep 0.02; done");
        fixture.hosts[CUT_OFF].guest.sh(&look)?;
    }
    Ok(())
}

/// What holds while the host is cut off. Returns which operations of its guest were answered.
fn while_cut(fixture: &mut Fixture, others: &mut OtherDaemons) -> Result<Vec<String>> {
    let near_log = fixture.hosts[NEAR].path.join("cut-never/near");
    let before = fs::metadata(&near_log)?.len();
    guest::begin_operations(&mut fixture.hosts[CUT_OFF].guest)?;
    let daemon = &fixture.hosts[CUT_OFF].daemons[0];
    let (reload, gone_on) = std::thread::scope(|scope| {
        // Takes ten seconds if no request has waited for three.
        let reload = scope.spawn(|| daemon.ask_to_reload());
        let gone_on = others.go_on_while_cut();
        (reload.join(), gone_on)
    });
    gone_on?;
    let reload = reload.ok().context("reloading panicked")??;
    let said = String::from_utf8_lossy(&reload.stderr).into_owned();
    ensure!(
        !reload.status.success() && said.contains("has not answered"),
        "a reload says {said}"
    );
    for policy in POLICIES {
        let dir = format!("/{policy}/cut-{policy}");
        let near = &mut fixture.hosts[NEAR];
        near.guest.sh(&format!(
            "cd {dir} && echo changed >seen && rm removed && mv opened moved && mv moved opened"
        ))?;
        // By a program of the host, past the daemon.
        let past = near.path.join(format!("cut-{policy}/past"));
        fs::write(past, "changed\n")?;
        // A lock of the host that is cut off stays its own.
        near.guest.sh(&format!(
            "{{ guest-check {dir}/whole --run-locked 'touch /dev/shm/got-{policy}' & }} \
             >/tmp/whole-{policy} 2>&1; ! test -e /dev/shm/got-{policy}"
        ))?;
        record_lock_is_held(fixture, policy)?;
    }

    for daemon in &fixture.hosts[CUT_OFF].daemons {
        let words = "have waited for the storage for more than 10 s";
        let begun = Instant::now();
        while !daemon.log().contains(words) {
            ensure!(begun.elapsed() < WARNED, "no warning: {}", daemon.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    others.tell_the_oldest_request()?;
    let after = fs::metadata(&near_log)?.len();
    ensure!(after > before, "the other host's guest does not go on");
    guest_work::check_running(&mut fixture.hosts[NEAR].guest)?;
    guest_work::check_running(&mut fixture.hosts[CUT_OFF].guest)?;
    guest::answered_operations(&mut fixture.hosts[CUT_OFF].guest)
}

/// The guest of the other host does not get the lock.
fn record_lock_is_held(fixture: &mut Fixture, policy: &str) -> Result<()> {
    let tried = fixture.hosts[NEAR].guest.run(
        &format!("guest-check /{policy}/cut-{policy}/record --try-posix-lock"),
        LIMIT,
    )?;
    ensure!(
        tried.status == LOCK_IS_HELD,
        "{policy}: the lock: {}",
        tried.text
    );
    Ok(())
}

/// The guest that was cut off sees what was changed meanwhile.
fn changes_are_seen(fixture: &mut Fixture) -> Result<()> {
    for policy in POLICIES {
        fixture.hosts[CUT_OFF].guest.sh(&format!(
            "cd /{policy}/cut-{policy} && until grep -q changed seen && grep -q changed past && \
             ! test -e removed; do sleep 0.02; done"
        ))?;
    }
    Ok(())
}

/// The guest that was cut off has its locks, until it releases them.
fn locks_are_still_held(fixture: &mut Fixture) -> Result<()> {
    for policy in POLICIES {
        record_lock_is_held(fixture, policy)?;
        let near = &mut fixture.hosts[NEAR].guest;
        near.sh(&format!("! test -e /dev/shm/got-{policy}"))?;
    }
    fixture.hosts[CUT_OFF].guest.sh("touch /dev/shm/unlock")?;
    for policy in POLICIES {
        fixture.hosts[NEAR].guest.sh(&format!(
            "until test -e /dev/shm/got-{policy} && \
             guest-check /{policy}/cut-{policy}/record --try-posix-lock; do sleep 0.1; done"
        ))?;
    }
    Ok(())
}

/// Each line and each file is there as the guests have written it.
fn nothing_is_lost(fixture: &mut Fixture) -> Result<()> {
    let works = [
        (NEAR, &NEAR_APPENDS[..], "near"),
        (CUT_OFF, &CUT_OFF_APPENDS[..], "cut-off"),
    ];
    for (number, programs, file) in works {
        let guest = &mut fixture.hosts[number].guest;
        guest_work::end(guest, programs.len(), LIMIT)?;
        guest_work::check_kernel_log(guest)?;
        for (policy, _) in programs {
            let log = fixture.hosts[NEAR]
                .path
                .join(format!("cut-{policy}/{file}"));
            let guest = &mut fixture.hosts[number].guest;
            guest_work::check_appended(guest, &log, &format!("/dev/shm/lines-{policy}"))?;
        }
    }
    for policy in POLICIES {
        let dir = fixture.hosts[NEAR].path.join(format!("cut-{policy}"));
        for (name, content) in [("written", "during\n"), ("created", "during\n")] {
            let found = fs::read_to_string(dir.join(name)).context(name)?;
            ensure!(found == content, "{policy}: {name} has {found:?}");
        }
    }
    for daemon in &fixture.hosts[CUT_OFF].daemons {
        wait_for_log(daemon, "the storage has answered guest")?;
    }
    Ok(())
}
