//! Guests that start before their daemon.

use std::fs;

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::TAG;
use gangplank_tests::guest::Machine;

use crate::fixture::{Fixture, Kind};

/// The guest boots and mounts without a daemon. When a daemon comes, the guest finds its files.
pub(crate) fn guest_is_first(machine: Machine, kind: Kind) -> Result<()> {
    let fixture = Fixture::new(&["--tag", TAG])?;
    let mut guest = fixture.boot(machine)?;
    guest.sh(
        "mkdir -p /mnt && { mount -t virtiofs myfs /mnt && cat /mnt/file >/tmp/seen; echo $? \
        >/tmp/done; } >/tmp/log 2>&1 &",
    )?;
    fixture.relay.wait_for("waits for a daemon")?;
    guest.sh("sleep 1; ! test -e /tmp/done")?;

    fs::write(fixture.host("file"), "was there\n")?;
    let daemon = fixture.daemon(kind, &[])?;
    fixture.put(&daemon)?;
    fixture.relay.wait_for("served by")?;
    let seen = guest
        .sh("while ! test -e /tmp/done; do sleep 0.1; done; cat /tmp/done /tmp/log /tmp/seen")
        .with_context(|| format!("{}\n{}", fixture.relay.log(), daemon.log()))?;
    ensure!(seen == "0\nwas there\n", "the guest saw: {seen}");
    guest.sh("echo written >/mnt/new && umount /mnt")?;
    ensure!(fs::read_to_string(fixture.host("new"))? == "written\n");
    fixture.relay.stop().map(drop)
}

/// A guest that reads the tag, which only a daemon knows, waits for a daemon.
pub(crate) fn guest_waits_for_the_tag() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let daemon = fixture.daemon(Kind::Gangplankd, &[])?;
    std::thread::scope(|scope| {
        let late = scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_secs(3));
            fixture.put(&daemon)
        });
        let mut guest = fixture.boot(Machine::Uml)?;
        guest.mount(TAG, "/mnt")?;
        late.join().map_err(|_| anyhow::anyhow!("panicked"))?
    })
}
