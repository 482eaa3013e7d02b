//! A guest of QEMU 10.0 that moves, as it runs, to other QEMUs with other daemons.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::guest::{Guest, Machine, Options, Qemu};
use gangplank_tests::tools;

/// Limit for the guest's programs to end.
const ENDING: Duration = Duration::from_secs(120);

/// The programs that work in the guest, by name: each goes on until `/tmp/end` exists.
const PROGRAMS: [(&str, &str); 3] = [
    (
        "append",
        "exec 3>>/mnt/log; i=0; while ! test -e /tmp/end; do \
           echo line $i >&3 || exit 1; i=$((i+1)); done; echo $i >/tmp/lines",
    ),
    (
        "names",
        "mkdir /mnt/names && cd /mnt/names && while ! test -e /tmp/end; do \
           echo a >a && mv a b && ln b c && rm b && mkdir d && mv c d/e && \
           test \"$(cat d/e)\" = a && rm d/e && rmdir d && test -z \"$(ls)\" || exit 1; done",
    ),
    (
        "fsx",
        "mkdir /mnt/fsx && cd /mnt/fsx && cp /mnt/fsx.toml . && s=0; while ! test -e /tmp/end; do \
           fsx -f fsx.toml -N 500 -S $s -P /tmp file || exit 1; rm file || exit 1; s=$((s+1)); \
         done",
    ),
];

/// The guest moves from gangplankd to virtiofsd 1.14 and to another gangplankd, under load.
pub(crate) fn live() -> Result<()> {
    let share = tempfile::tempdir()?;
    fs::write(share.path().join("fsx.toml"), tools::FSX_CONFIGURATION)?;
    let start = |is_ours: bool| {
        // Between unlink(2) and FORGET, the guest's kernel remembers an inode without a name.
        let options =
            daemon::Options::new(share.path()).arguments(&["--migration-on-error=guest-error"]);
        Daemon::start(&match is_ours {
            true => options,
            false => options.program(&tools::virtiofsd()?),
        })
    };
    let options = |daemon: &Daemon| -> Result<Options> {
        Ok(Options {
            qemu: Qemu::Backports,
            ..Options::new(Machine::QemuX86_64)
                .share(daemon.socket(), TAG)
                .program("fsx", &tools::fsx()?)
        })
    };
    let mut daemon = start(true)?;
    let mut guest = Guest::boot(&options(&daemon)?).with_context(|| daemon.log())?;
    guest.mount(TAG, "/mnt").with_context(|| daemon.log())?;
    for (name, program) in PROGRAMS {
        guest.sh(&format!(
            "{{ ( {program}; echo done ) >/tmp/{name}.log 2>&1 & }}"
        ))?;
    }
    let sockets = tempfile::tempdir()?;
    for (step, is_ours) in [false, true].into_iter().enumerate() {
        std::thread::sleep(Duration::from_secs(2));
        let next = start(is_ours)?;
        let socket = sockets.path().join(step.to_string());
        let arriving = Options {
            incoming: Some(socket.clone()),
            ..options(&next)?
        };
        let arrived = Guest::boot(&arriving).with_context(|| next.log())?;
        guest.migrate(&socket).with_context(|| {
            let (left, right) = (guest.complaints(), arrived.complaints());
            format!(
                "source: {left}\n{}\ndestination: {right}\n{}",
                daemon.log(),
                next.log()
            )
        })?;
        (guest, daemon) = (arrived, next);
        guest
            .sh("ls /mnt/names && tail -n 1 /mnt/log")
            .with_context(|| format!("step {step}: {}\n{}", guest.complaints(), daemon.log()))?;
    }
    let said = guest.sh_within(
        &format!(
            "touch /tmp/end; for i in $(seq {}); do \
               [ $(cat /tmp/*.log | grep -c '^done$') = {} ] && break; sleep 1; done; \
             tail -n 3 /tmp/*.log; dmesg | grep -i 'i/o error\\|fuse.*error' ; true",
            ENDING.as_secs(),
            PROGRAMS.len(),
        ),
        ENDING + Duration::from_secs(10),
    )?;
    ensure!(
        said.matches("\ndone\n").count() == PROGRAMS.len(),
        "the guest's programs said:\n{said}\n{}",
        daemon.log()
    );
    let lines: u64 = guest.sh("cat /tmp/lines")?.trim().parse()?;
    let expected = (0..lines).fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "line {line}");
        text
    });
    ensure!(fs::read_to_string(share.path().join("log"))? == expected);
    guest.sh("umount /mnt")?;
    Ok(())
}
