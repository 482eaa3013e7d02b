//! A guest's session moves from one host's daemon to the other's, behind a relay.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_tests::guest_work::{self, Program};

use crate::fixture::{Fixture, LIMIT, POLICIES, daemon_on};
use crate::short_or_long;

/// fsx on the share of the relay.
const FSX: Program = (
    "fsx",
    "mkdir -p /auto/moving && cd /auto/moving && cp ../fsx.toml . && s=0; \
     while ! test -e /dev/shm/end; do \
       fsx -f fsx.toml -N 300 -S $s -P /tmp file || exit 1; rm file || exit 1; s=$((s+1)); done",
);

/// The first guest's session goes to the other host and back, again and again.
pub(crate) fn guest_moves_to_the_other_host(fixture: &mut Fixture) -> Result<()> {
    let moves = short_or_long(2, 20);
    guest_work::start(&mut fixture.hosts[0].guest, &[FSX])?;
    let mut daemons = Vec::new();
    for turn in 0..moves {
        std::thread::sleep(Duration::from_millis(700));
        let host = usize::from(turn % 2 == 0);
        let next = daemon_on(&fixture.hosts[host].path, POLICIES[1])?;
        let socket = next.socket().to_str().context("a path that is no text")?;
        let said = fixture.relay.tell(&["switch", socket]);
        let logs = || format!("{}\n{}", fixture.relay.log(), next.log());
        ensure!(
            said.with_context(logs)?.contains("bytes of state"),
            "{}",
            logs()
        );
        daemons.push(next);
    }
    let guest = &mut fixture.hosts[0].guest;
    guest_work::end(guest, 1, LIMIT)?;
    guest_work::check_kernel_log(guest)?;
    guest.sh("umount /auto")?;
    drop(daemons);
    Ok(())
}
