//! A guest on one host whose daemon is on another: its virtqueues pass over DVK's messages.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{Daemon, TAG};
use gangplank_tests::dvk_tunnel::{Between, Tunnel};
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::hosts::{self, Hosts};
use gangplank_tests::process::User;

use crate::progress::during;
use crate::story::{heading, host, said, seconds, typed};

/// How long the link is cut.
const CUT: Duration = Duration::from_secs(3);

/// Shows every step. Fails at the first unexpected result.
pub(crate) fn tell(share: &Path, daemon: &Daemon) -> Result<()> {
    ensure!(
        User::is_root(),
        "two hosts with a network between them take root: sudo scripts/demo tunnel"
    );
    heading("Host A has the directory, gangplankd, and gangplank-dvk, which has DVK endpoints");
    host(&format!(
        "gangplankd --socket-path={} --shared-dir={} --tag={TAG}",
        daemon.socket().display(),
        share.display()
    ));
    host("gangplank-dvk serve --config rhostfs.cfg");

    heading("Host B has a guest, and a tunnel that offers it a virtio-fs device");
    host(&format!(
        "gangplank-dvk tunnel --listen guest.sock --endpoint 4 --peer {}:1 --node 2",
        hosts::SERVERS
    ));
    let between = Between::Hosts(Hosts::new(1)?);
    let tunnel = Tunnel::start(between, daemon.socket(), "", &[])?;
    let started = Instant::now();
    let options = Options::new(Machine::Uml).share(&tunnel.socket(), TAG);
    let mut guest =
        during("the guest boots", || Guest::boot(&options)).with_context(|| tunnel.log())?;
    said(&format!(
        "Debian's User Mode Linux, unmodified, is up after {}",
        seconds(started.elapsed())
    ));
    let told = show(&mut guest, &tunnel, share);
    told.with_context(|| tunnel.log())?;
    guest.power_off()?;
    println!();
    Ok(())
}

fn show(guest: &mut Guest, tunnel: &Tunnel, share: &Path) -> Result<()> {
    heading("The guest mounts the other host's directory; each reads what the other wrote");
    fs::write(share.join("from-a.txt"), "Ahoy from host A!\n")?;
    typed(guest, &format!("mount -t virtiofs {TAG} /mnt"))?;
    let read = typed(guest, "cat /mnt/from-a.txt")?;
    ensure!(read == "Ahoy from host A!\n", "the guest read: {read}");
    typed(guest, "echo 'Ahoy from the guest!' >/mnt/from-guest.txt")?;
    let read = fs::read_to_string(share.join("from-guest.txt"))?;
    host(&format!("cat {}/from-guest.txt", share.display()));
    said(&read);
    ensure!(read == "Ahoy from the guest!\n", "the host read: {read}");

    heading("The link between the hosts is cut for 3 seconds. The guest's work waits, and goes on");
    let work = "i=0; while [ $i -lt 500 ]; do echo $i >>/mnt/lines || exit 1; i=$((i+1)); done";
    let started = Instant::now();
    let cut = std::thread::scope(|scope| {
        let cut = scope.spawn(|| -> Result<()> {
            std::thread::sleep(Duration::from_millis(100));
            tunnel.cut(true)?;
            std::thread::sleep(CUT);
            tunnel.cut(false)
        });
        let worked = typed(guest, work);
        worked.map(|_| cut.join())
    })?;
    cut.map_err(|_| anyhow::anyhow!("cutting the link panicked"))??;
    said(&format!("done after {}", seconds(started.elapsed())));
    let lines = fs::read_to_string(share.join("lines"))?;
    let expected: String = (0..500).map(|line| format!("{line}\n")).collect();
    ensure!(lines == expected, "lines are lost or doubled");
    host(&format!("wc -l <{}/lines", share.display()));
    said("500");

    heading("What the tunnel says of it");
    host("gangplank-dvk status tunnel-status.sock");
    said(&tunnel.tunnel_status()?);
    typed(guest, "umount /mnt").map(drop)
}
