//! One guest that mounts one directory twice: by virtio-fs, and by NFS from an address of its own.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{Daemon, TAG};
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::nfs::{self, CLIENT_MODULES, NfsServer, SERVER};

use crate::progress::during;
use crate::story::{heading, host, said};

/// Shows every step. Fails at the first unexpected result.
pub(crate) fn tell(share: &Path, daemon: &Daemon) -> Result<()> {
    heading(
        "gangplankd shares a directory, and gangplank-nfs serves it once more, by NFS at an \
         address that this machine does not have",
    );
    let server = NfsServer::start(daemon.socket(), &["--client", "*(rw,no_root_squash)"])?;
    host(&format!(
        "gangplank-nfs serve --backend {} --client '*(rw,no_root_squash)' --address {SERVER}/24 \
         --switch-packet {}",
        daemon.socket().display(),
        server.sockets().join("packet").display()
    ));

    heading("Debian's User Mode Linux, unmodified, boots with a card at the virtual switch");
    let mut options = Options::new(Machine::Uml).share(daemon.socket(), TAG);
    options.switch = Some(server.packets());
    options.modules = CLIENT_MODULES.to_vec();
    let mut guest = during("the guest boots", || Guest::boot(&options))?;
    nfs::configure(&mut guest, 15)?;
    typed(&mut guest, &format!("ping -c 1 {SERVER}"))?;

    heading("It mounts the directory by NFS, and by virtio-fs");
    println!("   guest# mount -t nfs -o vers=3,proto=tcp,nolock {SERVER}:/ /nfs");
    nfs::mount(&mut guest, "/", "/nfs", ",nolock").with_context(|| server.log())?;
    typed(&mut guest, &format!("mount -t virtiofs {TAG} /mnt"))?;
    typed(&mut guest, "grep -E ' (nfs|virtiofs) ' /proc/mounts")?;

    heading("What is written one way is read the other");
    typed(&mut guest, "echo 'Ahoy by NFS!' >/nfs/ahoy.txt")?;
    let read = typed(&mut guest, "cat /mnt/ahoy.txt")?;
    host(&format!("cat {}/ahoy.txt", share.display()));
    let on_host = fs::read_to_string(share.join("ahoy.txt"))?;
    said(&on_host);
    ensure!(read == "Ahoy by NFS!\n" && on_host == read, "read: {read}");

    typed(&mut guest, "umount /nfs && umount /mnt")?;
    guest.power_off()?;
    server.end()?;
    Ok(())
}

/// Runs `command` in the guest and shows it with what it printed.
fn typed(guest: &mut Guest, command: &str) -> Result<String> {
    println!("   guest# {command}");
    let output = during("the guest works", || guest.sh(command))?;
    said(&output);
    Ok(output)
}
