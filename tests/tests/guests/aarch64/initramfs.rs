//! The daemon on an arm64 machine that runs from its initramfs, as the Linux beside a Bao guest
//! does: pivot_root is impossible there, and the system calls differ.

use std::time::Duration;

use anyhow::Result;
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::packages::Arch;
use gangplank_tests::tools;

/// Limit for starting a program on an emulated machine.
const LIMIT: Duration = Duration::from_secs(120);

const START: &str = "mkdir -p /srv /run; rm -f /log; \
    gangplankd --socket-path=/run/fs.sock --shared-dir=/srv --tag=myfs --announce-submounts";

#[test]
fn daemon_beside_a_bao_guest_runs_in_a_chroot() -> Result<()> {
    let program = tools::gangplankd_for(Arch::Arm64)?;
    let options = Options::new(Machine::QemuAarch64).program("gangplankd", &program);
    let mut machine = Guest::boot(&options)?;

    let told = machine.run(&format!("{START} --sandbox=namespace 2>&1"), LIMIT)?;
    assert_ne!(told.status, 0, "{}", told.text);
    assert!(told.text.contains("pass --sandbox=chroot"), "{}", told.text);

    let ready =
        "for i in $(seq 100); do grep -q 'waiting for guests' /log && break; sleep 0.1; done";
    // Not every kernel lists a process's children.
    let confined = "grep -h Seccomp: $(grep -l \"PPid:.$pid\" /proc/[0-9]*/status)";
    let seen = machine.sh_within(
        &format!(
            "{START} --sandbox=chroot 2>/log & pid=$!; {ready}; {confined}; \
             kill $pid; wait $pid; echo status $?; ls /run; echo end of /run; cat /log"
        ),
        LIMIT,
    )?;
    assert!(seen.contains("waiting for guests"), "{seen}");
    assert!(seen.contains("Seccomp:\t2"), "{seen}");
    assert!(seen.contains("status 0"), "{seen}");
    let (left, _) = seen.split_once("end of /run").unwrap_or((&seen, ""));
    assert!(!left.contains("fs.sock"), "{seen}");
    machine.power_off()
}
