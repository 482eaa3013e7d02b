//! A guest compiles on the share while the process that serves it is killed ten times.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{Daemon, TAG};
use gangplank_tests::debian_tree;
use gangplank_tests::driver::fixture::guest_processes;
use gangplank_tests::guest::{Guest, Machine, Options};
use rustix::process::{Pid, Signal, kill_process};

use crate::progress::during;
use crate::story::{heading, host, said, seconds};

/// Kills.
const KILLS: usize = 10;

/// Modules of the program that the guest compiles.
const MODULES: usize = 60;

/// Limit for a step of the build, and for a worker to be replaced.
const LIMIT: Duration = Duration::from_secs(120);

/// Where the guest's build is, from the root of the Debian tree.
const WORK: &str = "work";

/// Shows every step. Fails at the first unexpected result.
pub(crate) fn tell(share: &Path, daemon: &Daemon) -> Result<()> {
    heading("gangplankd shares a directory, in which there is a compiler and a program to compile");
    host(&format!(
        "gangplankd --socket-path={} --shared-dir={} --tag={TAG} --max-crashes=100",
        daemon.socket().display(),
        share.display()
    ));
    let machine = Machine::Uml;
    let tree = share.join("debian");
    during("making a Debian tree", || {
        debian_tree::copy_to(&tree, machine.arch())
    })?;
    write_program(&tree.join(WORK))?;

    heading("Debian's User Mode Linux boots and begins to compile");
    let options = Options::new(machine).share(daemon.socket(), TAG);
    let mut guest = during("the guest boots", || Guest::boot(&options))?;
    guest.mount(TAG, "/mnt")?;
    said(&format!("chroot /mnt/debian sh /{WORK}/build &"));
    guest.sh(&format!(
        "{{ chroot /mnt/debian /bin/sh /{WORK}/build >/tmp/build.log 2>&1; \
           echo $? >/tmp/status; }} &"
    ))?;

    heading(&format!(
        "Meanwhile the process that serves it is killed {KILLS} times"
    ));
    let started = Instant::now();
    for kill in 1..=KILLS {
        let compiled = during("the guest compiles", || {
            wait_for(&mut guest, kill * MODULES / (KILLS + 1))
        })?;
        let worker = kill_worker(daemon)?;
        let pause = wait_for_pause(daemon, kill)?;
        host(&format!("kill -9 {worker}"));
        said(&format!(
            "{kill:2} of {KILLS}: {compiled:3} of {MODULES} modules compiled; served again after \
             {pause} ms"
        ));
    }
    during("the guest compiles", || wait_for(&mut guest, MODULES))?;
    let status = guest.sh("until test -e /tmp/status; do sleep 1; done; cat /tmp/status")?;
    let log = guest.sh("cat /tmp/build.log")?;
    ensure!(status.trim() == "0", "the build has failed: {log}");
    ensure!(log.trim().is_empty(), "the build said: {log}");
    said(&format!(
        "the build has ended without an error, after {}",
        seconds(started.elapsed())
    ));

    heading("The program works");
    let printed = guest.sh(&format!("chroot /mnt/debian /{WORK}/program"))?;
    println!("   guest# ./program");
    said(&printed);
    let expected = format!("{MODULES} modules, their sum is {}", sum());
    ensure!(printed.trim() == expected, "it should print {expected}");
    let longest = pauses(daemon).into_iter().fold(0.0, f64::max);
    said(&format!(
        "{KILLS} processes were killed, and no program in the guest got an error; the longest \
         pause was {longest:.1} ms"
    ));
    guest.sh("umount /mnt")?;
    guest.power_off()?;
    println!();
    Ok(())
}

/// Sum of what the modules return.
fn sum() -> usize {
    (0..MODULES).map(|number| number * number).sum()
}

/// A program of many modules, and the script that compiles it one module after another.
fn write_program(work: &Path) -> Result<()> {
    fs::create_dir_all(work)?;
    let (mut declared, mut added) = (String::new(), String::new());
    for number in 0..MODULES {
        let module = format!(
            "#include <stdio.h>\nint part_{number}(void) {{ return {number} * {number}; }}\n"
        );
        fs::write(work.join(format!("part-{number}.c")), module)?;
        writeln!(declared, "int part_{number}(void);")?;
        writeln!(added, "  sum += part_{number}();")?;
    }
    let main = format!(
        "#include <stdio.h>\n{declared}int main(void) {{\n  int sum = 0;\n{added}  \
         printf(\"{MODULES} modules, their sum is %d\\n\", sum);\n  return 0;\n}}\n"
    );
    fs::write(work.join("main.c"), main)?;
    let build = format!(
        "set -e\ncd /{WORK}\nn=0\nwhile [ $n -lt {MODULES} ]; do\ntcc -c part-$n.c -o part-$n.o\n\
         n=$((n+1))\necho $n >>progress\ndone\ntcc -o program main.c part-*.o\n"
    );
    Ok(fs::write(work.join("build"), build)?)
}

/// Waits until so many modules are compiled. Returns how many there are.
fn wait_for(guest: &mut Guest, modules: usize) -> Result<usize> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let told = guest.sh(&format!(
            "cat /mnt/debian/{WORK}/progress 2>/dev/null | wc -l; cat /tmp/build.log"
        ))?;
        let compiled = told
            .lines()
            .next()
            .and_then(|line| line.trim().parse().ok());
        match compiled {
            Some(compiled) if compiled >= modules => return Ok(compiled),
            _ => ensure!(
                Instant::now() < deadline,
                "the build does not go on: {told}"
            ),
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Kills the worker of the only guest. Returns its process.
fn kill_worker(daemon: &Daemon) -> Result<u32> {
    let guests = guest_processes(daemon)?;
    let (_, worker) = guests.first().context("no guest is connected")?;
    let process = Pid::from_raw(i32::try_from(*worker)?).context("a process")?;
    kill_process(process, Signal::KILL)?;
    Ok(*worker)
}

/// Waits for the pause number `count`, and returns it in ms.
fn wait_for_pause(daemon: &Daemon, count: usize) -> Result<f64> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(pause) = pauses(daemon).get(count - 1) {
            return Ok(*pause);
        }
        ensure!(
            Instant::now() < deadline,
            "no next worker: {}",
            daemon.log()
        );
        thread::sleep(Duration::from_millis(5));
    }
}

/// The pauses that the daemon's log tells, in ms.
fn pauses(daemon: &Daemon) -> Vec<f64> {
    let log = daemon.log();
    let parts = log.split("is served again after ").skip(1);
    let pauses = parts.filter_map(|part| part.split_whitespace().next()?.parse().ok());
    pauses.collect()
}
