//! What the guest of the host that is cut off does: locks that it holds, and operations that it
//! begins during the cut.

use anyhow::{Result, bail, ensure};
use gangplank_tests::guest::Guest;

use crate::fixture::{LIMIT, POLICIES};

/// An operation: its name, what the process opens before the cut, and what it does during the cut
/// in the directory of the policy.
const OPERATIONS: [(&str, &str, &str); 8] = [
    (
        "read",
        "exec 3<read",
        "read line <&3 && test \"$line\" = before",
    ),
    // The file is cut at its opening, so it has nothing else. Closing it waits for the servers.
    ("write", "exec 3>written", "echo during >&3 && exec 3>&-"),
    (
        "removed",
        "exec 3<removed",
        "until test -e /dev/shm/ops/mended; do sleep 0.5; done; \
         read line <&3 && test \"$line\" = before",
    ),
    ("attributes", ":", "test -s attributes"),
    ("list", ":", "ls >/dev/null"),
    ("open", ":", "grep -q before opened"),
    ("create", ":", "echo during >created"),
    ("lock", ":", "guest-check free --try-posix-lock"),
];

/// Holds a record lock and a `flock` of each policy, until `/dev/shm/unlock` exists.
pub(super) fn hold_locks(guest: &mut Guest) -> Result<()> {
    for policy in POLICIES {
        guest.sh(&format!(
            "guest-check /{policy}/cut-{policy} --hold-locks /dev/shm/unlock >/tmp/held-{policy} \
               2>&1 & \
             until grep -q locked /tmp/held-{policy}; do sleep 0.02; done"
        ))?;
    }
    Ok(())
}

/// Starts the processes, which wait for the cut, which the file `begun` tells of.
pub(super) fn prepare_operations(guest: &mut Guest) -> Result<()> {
    guest.sh("rm -rf /dev/shm/ops && mkdir /dev/shm/ops")?;
    for policy in POLICIES {
        for (name, before, during) in OPERATIONS {
            let file = format!("/dev/shm/ops/{policy}-{name}");
            guest.sh(&format!(
                "cd /{policy}/cut-{policy} && {{ ( {before} && touch {file}.ready; \
                   until test -e /dev/shm/ops/begun; do sleep 0.2; done; \
                   ( {during} ); echo $? >{file}.part; mv {file}.part {file}.ended ) \
                   >{file}.said 2>&1 & }}; \
                 until test -e {file}.ready; do sleep 0.02; done"
            ))?;
        }
    }
    Ok(())
}

/// Has the operations begin.
pub(super) fn begin_operations(guest: &mut Guest) -> Result<()> {
    guest.sh("touch /dev/shm/ops/begun").map(drop)
}

/// The operations that have been answered, none of which has failed.
pub(super) fn answered_operations(guest: &mut Guest) -> Result<Vec<String>> {
    let told = guest.sh("cd /dev/shm/ops; grep -H '' *.ended 2>/dev/null; true")?;
    let mut answered = Vec::new();
    for line in told.lines() {
        let (name, status) = line.split_once(".ended:").unwrap_or((line, "?"));
        if status != "0" {
            let said = guest.sh(&format!("cat /dev/shm/ops/{name}.said"))?;
            bail!("{name} has failed with status {status}: {said}");
        }
        answered.push(name.to_owned());
    }
    for policy in POLICIES {
        for must_wait in ["create", "lock", "write"] {
            let name = format!("{policy}-{must_wait}");
            ensure!(!answered.contains(&name), "{name} needs no server");
        }
    }
    Ok(answered)
}

/// Waits until all operations have succeeded.
pub(super) fn wait_for_operations(guest: &mut Guest) -> Result<()> {
    let all = OPERATIONS.len() * POLICIES.len();
    let told = guest.sh_within(
        &format!(
            "touch /dev/shm/ops/mended; cd /dev/shm/ops; \
             until test $(ls *.ended 2>/dev/null | wc -l) = {all}; do sleep 0.05; done; \
             for name in *.ended; do \
               grep -q '^0$' $name || {{ echo $name; cat $name ${{name%.ended}}.said; }}; done"
        ),
        LIMIT,
    )?;
    ensure!(told.is_empty(), "these have failed: {told}");
    Ok(())
}
