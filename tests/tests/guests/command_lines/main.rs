//! The command lines with which managers of virtual machines run virtiofsd, each with the user, the
//! namespaces and the socket as the manager has them. A User Mode Linux guest mounts the share and
//! tries what the options promise; for lines that differ little from those, a driver does.
//!
//! An argument selects lines by a part of their name: `cargo test -p gangplank-tests --test
//! command_lines -- libvirt`.

mod by_driver;
mod idmapped;
mod launch;
mod mapped_apt;
mod mapped_root;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use gangplank_tests::daemon::TAG;
use gangplank_tests::guest::{self, Guest, Machine};
use gangplank_tests::process::User;
use gangplank_tests::promises::{self, Programs, Promise, Tried};
use gangplank_tests::runner::Runner;

use self::launch::{As, Launched};

/// Limit for unpacking a system.
const LONG: Duration = Duration::from_secs(400);

/// A command line. `P` stands for the share and `S` for the socket.
struct Line {
    name: &'static str,
    who: As,
    words: &'static [&'static str],
    share: &'static str,
    promises: &'static [Promise],
}

const LINES: &[Line] = &[
    Line {
        name: "incus",
        who: As::Root,
        words: &[
            "--fd=3",
            "--cache=never",
            "--shared-dir=P",
            "--posix-acl=auto",
        ],
        share: "share",
        promises: &[
            promises::shares_files,
            promises::has_xattrs,
            promises::has_acls,
            promises::acls_keep_set_group_id,
            promises::users_own_files,
        ],
    },
    Line {
        name: "incus_older",
        who: As::Root,
        words: &["--fd=3", "--cache=never", "--shared-dir=P", "--posix-acl"],
        share: "share",
        promises: &[
            promises::shares_files,
            promises::has_acls,
            promises::acls_keep_set_group_id,
        ],
    },
    Line {
        name: "lxd",
        who: As::Root,
        words: &[
            "--fd=3",
            "--shared-dir",
            "P",
            "--xattr",
            "--allow-direct-io",
        ],
        share: "share",
        promises: &[
            promises::shares_files,
            promises::has_xattrs,
            promises::users_own_files,
        ],
    },
    Line {
        name: "lxd_raw_idmap",
        who: As::Container,
        words: &[
            "--fd=3",
            "--shared-dir",
            "P",
            "--xattr",
            "--allow-direct-io",
            "--thread-pool-size=4",
        ],
        share: "share",
        promises: &[promises::shares_files, promises::users_own_files],
    },
    Line {
        name: "kubevirt_restricted",
        who: As::Restricted,
        words: &[
            "--socket-path=S",
            "--shared-dir=P",
            "--sandbox=none",
            "--cache=auto",
        ],
        share: "share",
        promises: &[promises::shares_files, promises::nobody_else_owns_files],
    },
    Line {
        name: "libvirt_system",
        who: As::Root,
        words: &[
            "--fd=3",
            "--shared-dir",
            "P",
            "--cache",
            "always",
            "--sandbox",
            "chroot",
            "--xattr",
            "--thread-pool-size=16",
            "--rlimit-nofile=4096",
            "--log-level",
            "debug",
        ],
        share: "share,with,commas",
        promises: &[
            promises::shares_files,
            promises::has_xattrs,
            promises::users_own_files,
        ],
    },
    Line {
        name: "libvirt_system_older",
        who: As::Root,
        words: &[
            "--fd=3",
            "-o",
            "source=P,cache=none,sandbox=namespace,xattr,flock,no_posix_lock",
            "--thread-pool-size=16",
            "-d",
        ],
        share: "share,with,,commas",
        promises: &[
            promises::shares_files,
            promises::has_xattrs,
            promises::has_locks_of_the_host,
        ],
    },
    Line {
        name: "libvirt_session",
        who: As::UserWithSubIds,
        words: &[
            "--fd=3",
            "--shared-dir",
            "P",
            "--uid-map=:0:65534:1:",
            "--uid-map=:1:200000:65536:",
            "--gid-map=:0:65534:1:",
            "--gid-map=:1:200000:65536:",
        ],
        share: "share",
        promises: &[promises::shares_files, promises::root_is_the_user],
    },
    Line {
        name: "libvirt_session_older",
        who: As::UserWithSubIds,
        words: &[
            "--fd=3",
            "-o",
            "source=P,no_xattr,no_flock,posix_lock",
            "--uid-map=:0:65534:1:",
            "--uid-map=:1:200000:65536:",
            "--gid-map=:0:65534:1:",
            "--gid-map=:1:200000:65536:",
        ],
        share: "share",
        promises: &[promises::root_is_the_user, promises::has_locks_of_the_host],
    },
    Line {
        name: "libvirt_session_own_id_alone",
        who: As::User,
        words: &[
            "--fd=3",
            "--shared-dir",
            "P",
            "--uid-map=:0:65534:1:",
            "--gid-map=:0:65534:1:",
        ],
        share: "share",
        promises: &[promises::shares_files, promises::nobody_else_owns_files],
    },
    Line {
        name: "kata_go",
        who: As::Root,
        words: &[
            "--syslog",
            "--cache=auto",
            "--shared-dir=P",
            "--fd=3",
            "--thread-pool-size=1",
            "--announce-submounts",
        ],
        share: "share",
        promises: &[promises::shares_files, promises::users_own_files],
    },
    Line {
        name: "kata_rust",
        who: As::Root,
        words: &[
            "--socket-path",
            "S",
            "--shared-dir",
            "P",
            "--cache",
            "auto",
            "--thread-pool-size=1",
            "-o",
            "announce_submounts",
            "--xattr",
        ],
        share: "share",
        promises: &[promises::shares_files, promises::has_xattrs],
    },
    Line {
        name: "kata_rust_rootless",
        who: As::User,
        words: &[
            "--socket-path",
            "fs.sock",
            "--shared-dir",
            "P",
            "--cache",
            "auto",
            "--thread-pool-size=1",
            "-o",
            "announce_submounts",
        ],
        share: "share",
        promises: &[promises::shares_files, promises::nobody_else_owns_files],
    },
    Line {
        name: "podman_machine",
        who: As::User,
        words: &[
            "--sandbox",
            "none",
            "--socket-path",
            "S",
            "--shared-dir",
            ".",
            "--seccomp=none",
        ],
        share: "share",
        promises: &[promises::shares_files, promises::nobody_else_owns_files],
    },
    Line {
        name: "lima",
        who: As::User,
        words: &["--socket-path", "S", "--shared-dir", "P"],
        share: "share",
        promises: &[promises::shares_files, promises::nobody_else_owns_files],
    },
    Line {
        name: "flintlock",
        who: As::Root,
        words: &[
            "--syslog",
            "--inode-file-handles=mandatory",
            "--announce-submounts",
            "--shared-dir=P",
            "--cache=never",
            "--sandbox=chroot",
            "--socket-path=S",
            "--thread-pool-size=32",
        ],
        share: "share",
        promises: &[promises::shares_files, promises::users_own_files],
    },
    Line {
        name: "proxmox",
        who: As::Root,
        words: &[
            "--fd=3",
            "--shared-dir=P",
            "--syslog",
            "--xattr",
            "--posix-acl",
            "--announce-submounts",
            "--allow-direct-io",
            "--cache=auto",
        ],
        share: "share",
        promises: &[
            promises::shares_files,
            promises::has_xattrs,
            promises::has_acls,
            promises::acls_keep_set_group_id,
        ],
    },
    Line {
        name: "mkosi",
        who: As::Container,
        words: &[
            "--fd=3",
            "--shared-dir=P",
            "--xattr",
            "--posix-acl",
            "--sandbox=chroot",
            "--inode-file-handles=prefer",
        ],
        share: "share",
        promises: &[
            promises::shares_files,
            promises::has_xattrs,
            promises::has_acls,
            promises::acls_keep_set_group_id,
            promises::users_own_files,
        ],
    },
    Line {
        name: "file_flags",
        who: As::Root,
        words: &[
            "--socket-path=S",
            "--shared-dir=P",
            "--modcaps=+linux_immutable",
        ],
        share: "share",
        promises: &[promises::has_file_flags],
    },
    Line {
        name: "xattrmap_as_root",
        who: As::Root,
        words: &[
            "--socket-path=S",
            "--shared-dir=P",
            "--xattrmap=:map::user.virtiofs.:",
        ],
        share: "share",
        promises: &[promises::shares_files, promises::hides_the_hosts_xattrs],
    },
    Line {
        name: "xattrmap_as_user",
        who: As::User,
        words: &[
            "--socket-path=S",
            "--shared-dir=P",
            "-o",
            "xattrmap=/map/trusted./user.vm./",
        ],
        share: "share",
        promises: &[promises::keeps_trusted_xattrs],
    },
    Line {
        name: "incus_translated",
        who: As::Root,
        words: &[
            "--fd=3",
            "--cache=never",
            "--shared-dir=P",
            "--translate-uid=forbid-guest:0:0",
            "--translate-gid=forbid-guest:0:0",
            "--translate-uid=map:0:200000:65536",
            "--translate-gid=map:0:200000:65536",
            "--translate-uid=forbid-guest:65536:4294901759",
            "--translate-gid=forbid-guest:65536:4294901759",
        ],
        share: "share",
        promises: &[promises::has_translated_owners],
    },
    Line {
        name: "microvm_nix",
        who: As::Root,
        words: &[
            "--socket-path=S",
            "--shared-dir=P",
            "--rlimit-nofile",
            "1048576",
            "--thread-pool-size",
            "2",
            "--posix-acl",
            "--xattr",
            "--cache=auto",
        ],
        share: "share",
        promises: &[
            promises::shares_files,
            promises::has_xattrs,
            promises::has_acls,
            promises::acls_keep_set_group_id,
            promises::users_own_files,
        ],
    },
    Line {
        name: "microvm_nix_readonly",
        who: As::Root,
        words: &[
            "--socket-path=S",
            "--socket-group=root",
            "--shared-dir=P",
            "--rlimit-nofile",
            "1048576",
            "--thread-pool-size",
            "4",
            "--posix-acl",
            "--xattr",
            "--cache=auto",
            "--inode-file-handles=prefer",
            "--tag=myfs",
            "--readonly",
        ],
        share: "share",
        promises: &[promises::is_read_only],
    },
];

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    for line in LINES {
        if !User::is_root() && !runner.lists_only() {
            runner.skip(line.name, "only root can run daemons as several users");
            continue;
        }
        runner.run(line.name, || works(line));
    }
    for line in by_driver::LINES {
        let name = format!("by_driver::{}", line.name);
        match User::is_root() || runner.lists_only() {
            true => runner.run(&name, || by_driver::works(line)),
            false => runner.skip(&name, "only root can run daemons as several users"),
        }
    }
    for (name, arguments) in [
        ("idmapped_mount", &["--xattr"][..]),
        (
            "idmapped_mount_with_acls",
            &["--posix-acl", "--killpriv-v2"][..],
        ),
    ] {
        match User::is_root() {
            true => runner.run(name, || idmapped::works(arguments)),
            false => runner.skip(name, "needs root"),
        }
    }
    match User::is_root() {
        true => {
            runner.run("ownership_mapped", mapped_root::boots);
            runner.run("ownership_mapped_apt", mapped_apt::installs);
        }
        false => {
            runner.skip("ownership_mapped", "needs root");
            runner.skip("ownership_mapped_apt", "needs root");
        }
    }
    runner.finish()
}

fn works(line: &Line) -> Result<()> {
    let mut launched = Launched::start(line.words, line.who, line.share)?;
    let programs = Programs::share(None)?;
    let options = guest::Options::new(Machine::Uml).share(&launched.socket(), TAG);
    let mut guest = Guest::boot(&programs.add_to(options)).with_context(|| launched.log())?;
    guest.mount(TAG, "/mnt").with_context(|| launched.log())?;
    Programs::mount(&mut guest)?;
    for promise in line.promises {
        let mut tried = Tried {
            guest: &mut guest,
            share: launched.share(),
            owner: line.who.owner(),
        };
        promise(&mut tried).with_context(|| launched.log())?;
    }
    guest.power_off()?;
    if line.words.contains(&"--fd=3") {
        launched.ends_with_its_guest()?;
    }
    Ok(())
}
