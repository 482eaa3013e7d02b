//! What a guest sees: of the server's network, of the share, and of deaths.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use gangplank_tests::guest::initramfs::AGENT;
use gangplank_tests::guest::{Guest, Machine, Options, Role};
use gangplank_tests::nfs::{self, CLIENT_MODULES, SERVER};
use gangplank_tests::wait;
use gangplank_tests::{debian_tree, packages};

use crate::{Fixture, daemon_options};

/// Limit for commands that wait for a server or a daemon to return.
const PATIENT: Duration = Duration::from_secs(300);

pub(crate) fn the_server_answers_pings(fixture: &mut Fixture) -> Result<()> {
    fixture
        .guest
        .sh(&format!(
            "ping -c 3 -w 30 {SERVER} && ping -c 1 -w 30 -s 1400 {SERVER}"
        ))
        .map(drop)
}

/// showmount, rpcinfo and mount.nfs of Debian find the server by its port mapper.
pub(crate) fn stock_programs_find_and_mount_the_share(fixture: &mut Fixture) -> Result<()> {
    let tree = fixture.host_path("client");
    if !tree.exists() {
        debian_tree::copy_nfs_client(&tree, fixture.guest.machine().arch())?;
    }
    let exports = nfs::ask_by_stock_programs(&mut fixture.guest, "/mnt/client", SERVER)?;
    ensure!(exports.contains("/ *"), "{exports}");
    Ok(())
}

/// Names that are no UTF-8, links, sizes and owners are the same by NFS, by virtio-fs and on the
/// host.
pub(crate) fn both_mounts_show_the_same(fixture: &mut Fixture) -> Result<()> {
    fixture.guest.sh("cd /nfs && mkdir both && cd both && \
         printf one >one && ln one two && ln -s one link && mkfifo fifo && \
         mknod device c 1 3 && printf bytes >\"$(printf 'no\\377utf8')\" && \
         chown 1000:100 one && chmod 4751 one && mkdir -p a/b/c && mv a/b/c moved && \
         touch -d '2001-02-03 04:05:06' link moved && \
         truncate -s 5000000000 sparse && mv two three && rm -r a")?;
    let shown = |directory: &str| {
        format!(
            "cd {directory}/both && find . | sort | while read -r name; do \
                 stat -c '%n %F %a %u:%g %h %s %i %Y' \"$name\"; done; \
                 readlink link; cat three no*"
        )
    };
    let by_nfs = fixture.guest.sh(&shown("/nfs"))?;
    let by_virtiofs = fixture.guest.sh(&shown("/mnt"))?;
    ensure!(by_nfs == by_virtiofs, "{by_nfs}\n{by_virtiofs}");
    ensure!(by_nfs.lines().count() > 9, "{by_nfs}");
    let one = fs::metadata(fixture.host_path("both/three"))?;
    ensure!((one.uid(), one.gid(), one.nlink()) == (1000, 100, 2));
    ensure!(one.permissions().mode() & 0o7777 == 0o4751);
    ensure!(fs::metadata(fixture.host_path("both/sparse"))?.len() == 5_000_000_000);
    fixture.guest.sh("rm -r /nfs/both").map(drop)
}

/// 64 MiB are the same on both sides, in both directions.
pub(crate) fn large_file_arrives_whole(fixture: &mut Fixture) -> Result<()> {
    let sum = |fixture: &mut Fixture, path: &str| -> Result<String> {
        let told = fixture
            .guest
            .sh_within(&format!("sha256sum <{path}"), PATIENT)?;
        Ok(told)
    };
    fixture.guest.sh_within(
        "dd if=/dev/urandom of=/nfs/large bs=1M count=64 && sync",
        PATIENT,
    )?;
    let written = sum(fixture, "/mnt/large")?;
    fixture.guest.sh("umount /nfs && mount -i -t nfs -o \
        vers=3,proto=tcp,mountproto=tcp,nolock,addr=10.0.2.1 10.0.2.1:/ /nfs")?;
    let read = sum(fixture, "/nfs/large")?;
    ensure!(written == read, "{written} {read}");
    ensure!(fs::metadata(fixture.host_path("large"))?.len() == 64 << 20);
    fixture.guest.sh("rm /nfs/large").map(drop)
}

/// git creates its files with mode 0444 and writes them.
pub(crate) fn an_owner_writes_a_file_of_mode_0444(fixture: &mut Fixture) -> Result<()> {
    fixture
        .guest
        .sh("mkdir -m 777 /nfs/mine && cd /nfs/mine && \
         su nobody -s /bin/sh -c 'umask 222 && dd if=/dev/zero of=file bs=64k count=20' && \
         test \"$(stat -c '%a %s %U' file)\" = '444 1310720 nobody' && \
         if su nobody -s /bin/sh -c 'echo >>file'; then exit 1; fi && \
         rm -r /nfs/mine")?;
    Ok(())
}

/// Each of 5000 names is listed once, while others are made and removed on the host all the time.
pub(crate) fn a_large_directory_is_listed_whole(fixture: &mut Fixture) -> Result<()> {
    let directory = fixture.host_path("many");
    fs::create_dir(&directory)?;
    for number in 0..5000 {
        fs::write(directory.join(format!("name-{number}")), "")?;
    }
    let is_listed = AtomicBool::new(false);
    let (rounds, listed) = thread::scope(|scope| {
        let churn = scope.spawn(|| -> Result<u64> {
            let mut rounds = 0;
            while !is_listed.load(Ordering::Relaxed) {
                for number in 0..500 {
                    fs::write(directory.join(format!("other-{number}")), "")?;
                }
                for number in 0..500 {
                    fs::remove_file(directory.join(format!("other-{number}")))?;
                }
                rounds += 1;
            }
            Ok(rounds)
        });
        let listed = fixture.guest.sh_within(
            "cd /nfs/many && for i in 1 2 3; do ls >/tmp/listed 2>/dev/null; \
             test $(grep -c ^name- /tmp/listed) = 5000 && \
             test $(grep ^name- /tmp/listed | sort -u | wc -l) = 5000 || exit 1; done",
            PATIENT,
        );
        is_listed.store(true, Ordering::Relaxed);
        (churn.join(), listed)
    });
    listed?;
    let rounds = rounds.map_err(|_| anyhow!("the thread panicked"))??;
    ensure!(rounds > 3, "nothing changed meanwhile: {rounds}");
    fixture.guest.sh_within("rm -r /nfs/many", PATIENT)?;
    ensure!(!directory.exists());
    Ok(())
}

/// Another guest has an export as its root file system, from its initramfs on.
pub(crate) fn a_guest_has_its_root_by_nfs(fixture: &mut Fixture) -> Result<()> {
    let root = fixture.host_path("root");
    for name in ["bin", "dev", "proc", "sys", "run", "tmp"] {
        fs::create_dir_all(root.join(name))?;
    }
    let busybox = packages::unpacked("busybox-static", fixture.guest.machine().arch())?;
    fs::copy(busybox.join("bin/busybox"), root.join("bin/busybox"))?;
    fs::write(root.join("gangplank-agent"), AGENT)?;
    fixture
        .guest
        .sh("chroot /nfs/root /bin/busybox --install -s /bin")?;
    let mut options = Options::new(fixture.guest.machine());
    options.role = Role::NfsRoot(format!("{SERVER}:/root"), "10.0.2.16".to_owned());
    options.modules = CLIENT_MODULES.to_vec();
    options.switch = Some(match options.machine {
        Machine::Uml => fixture.server.packets(),
        _ => fixture.server.streams(),
    });
    let mut guest = Guest::boot(&options)?;
    let mounts = guest.sh("cat /proc/mounts")?;
    ensure!(
        mounts.contains(&format!("{SERVER}:/root / nfs rw")),
        "{mounts}"
    );
    guest.sh("echo booted >/tmp/state && sync && sed -n 1p /gangplank-agent")?;
    let state = fs::read_to_string(root.join("tmp/state"))?;
    ensure!(state == "booted\n", "{state}");
    guest.power_off()?;
    fixture.guest.sh("rm -r /nfs/root").map(drop)
}

/// The server is killed in the middle of a write, three times, and returns. The program in the
/// guest goes on, and the file is whole. Handles that the guest has from before are valid.
pub(crate) fn a_write_survives_the_servers_death(fixture: &mut Fixture) -> Result<()> {
    fixture.guest.sh(
        "cd /nfs && mkdir -p kept/deep && echo before >kept/deep/file && \
         exec 5<kept/deep/file && \
         dd if=/dev/urandom of=/tmp/source bs=1M count=64 && \
         (cp /tmp/source /nfs/copy && sync && echo done >/tmp/copied) >/dev/null 2>&1 &",
    )?;
    let copy = fixture.host_path("copy");
    for mib in [4, 20, 36] {
        let written = || fs::metadata(&copy).map_or(0, |copy| copy.len());
        let waited = wait::until("enough is written", PATIENT, || Ok(written() >= mib << 20));
        waited.with_context(|| format!("{} bytes written", written()))?;
        fixture.server.kill();
        ensure!(written() < 64 << 20, "the write was over before the death");
        fixture.server.restart()?;
        nfs::reconnect(&mut fixture.guest)?;
    }
    fixture.guest.sh_within(
        "while ! [ -e /tmp/copied ]; do sleep 1; done; \
         cmp /tmp/source /nfs/copy && cmp /tmp/source /mnt/copy && \
         cat /nfs/kept/deep/file && rm -r /nfs/kept /nfs/copy /tmp/copied",
        PATIENT,
    )?;
    Ok(())
}

/// The daemon is killed and returns. What the guest has open by NFS stays open, also a directory
/// that was renamed meanwhile.
pub(crate) fn open_files_survive_the_daemons_death(fixture: &mut Fixture) -> Result<()> {
    // The guest's virtio-fs mount does not survive it.
    fixture.guest.sh(
        "umount /mnt; cd /nfs && mkdir -p lost/inner && echo before >lost/inner/file && sync && \
         (exec 6<>lost/inner/file; cd lost/inner; : >/tmp/opened; \
          while ! [ -e /tmp/go ]; do sleep 0.1; done; \
          cat <&6 >/tmp/read && echo after >&6 && cat file >/tmp/all; echo $? >/tmp/ended) \
          >/dev/null 2>&1 &
         while ! [ -e /tmp/opened ]; do sleep 0.1; done",
    )?;
    let options = daemon_options(&fixture.share);
    fixture.daemon.replace(&options)?;
    fs::rename(fixture.host_path("lost"), fixture.host_path("found"))?;
    fixture.guest.sh_within(
        "touch /tmp/go; while ! [ -e /tmp/ended ]; do sleep 0.1; done; \
         test \"$(cat /tmp/ended /tmp/read)\" = \"$(printf '0\\nbefore')\" && cat /tmp/all",
        PATIENT,
    )?;
    let content = fs::read_to_string(fixture.host_path("found/inner/file"))?;
    ensure!(content == "before\nafter\n", "{content}");
    Ok(())
}
