//! Connections that say nothing, too many connections, and the end of a guest's own processes.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::vhost_user::{Peer, VERSION, encode, message};
use gangplank_tests::driver::{Driver, Setup};
use rustix::fs::fstat;
use rustix::process::{Pid, Signal, kill_process};

use super::Target;

/// Connections with half a message each.
const SILENT: usize = 12;

/// How long they stay.
const STAYING: Duration = Duration::from_millis(300);

/// Connections of a storm.
const STORM: usize = 60;

pub(super) fn half_messages(target: &Target<'_>, _: u64) -> Result<()> {
    let whole = encode(message::SET_FEATURES, VERSION, 8, &[0; 8]);
    let silent = (0..SILENT).map(|index| {
        let peer = Peer::connect(target.fixture.socket())?;
        // From nothing at all to all but the last byte.
        let len = index * (whole.len() - 1) / (SILENT - 1);
        peer.send_bytes(whole.get(..len).unwrap_or_default(), &[])?;
        anyhow::Ok(peer)
    });
    let silent: Vec<Peer> = silent.collect::<Result<_>>()?;
    thread::sleep(STAYING);
    drop(silent);
    Ok(())
}

pub(super) fn storm(target: &Target<'_>, _: u64) -> Result<()> {
    for index in 0..STORM {
        let peer = Peer::connect(target.fixture.socket())?;
        if index % 2 == 0 {
            // The daemon may not have come to it before the connection ends.
            peer.send(message::GET_FEATURES, VERSION, &[], &[])?;
        }
    }
    Ok(())
}

/// The end of guests' own processes: of the worker by SIGKILL and by SIGABRT, and of the keeper.
pub(super) fn killed_processes(target: &Target<'_>, _: u64) -> Result<()> {
    for (kills_worker, signal) in [
        (true, Signal::KILL),
        (true, Signal::ABORT),
        (false, Signal::KILL),
    ] {
        let mut guest = target.guest(&Setup::default())?;
        guest.lookup(NodeId::ROOT, c"open")?;
        let (keeper, worker) = own_processes(target, &guest)?;
        let victim = if kills_worker { worker } else { keeper };
        let victim = Pid::from_raw(victim.try_into()?).context("a process id")?;
        kill_process(victim, signal)?;
        if kills_worker {
            guest
                .lookup(NodeId::ROOT, c"open")
                .with_context(|| format!("after {signal:?} of the worker"))?;
        } else {
            guest.peer.wait_for_hang_up()?;
        }
    }
    Ok(())
}

/// The keeper and the worker of `guest`: the worker has mapped the guest's memory.
fn own_processes(target: &Target<'_>, guest: &Driver) -> Result<(u32, u32)> {
    let inode = fstat(guest.memory.file())?.st_ino.to_string();
    let maps_it = |worker: u32| {
        let maps = fs::read_to_string(format!("/proc/{worker}/maps")).unwrap_or_default();
        // Addresses, permissions, offset, device, inode, path (proc_pid_maps(5)).
        maps.lines().any(|line| {
            line.contains("memfd:guest") && line.split_whitespace().nth(4) == Some(&*inode)
        })
    };
    let processes = target.fixture.guest_processes()?;
    let own = processes.into_iter().find(|(_, worker)| maps_it(*worker));
    own.context("no worker has mapped the guest's memory")
}
