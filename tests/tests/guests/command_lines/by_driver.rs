//! Command lines of further managers, whose options the other lines have in other combinations. A
//! driver takes the guest's place: what may fail is the start, and whose the guest's files are.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::{Driver, Setup};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::launch::{As, Launched};

/// A command line, as in [`crate::LINES`], and the guest's user for whom it makes a file.
pub(crate) struct Line {
    pub(crate) name: &'static str,
    who: As,
    words: &'static [&'static str],
    guest_user: u32,
}

const READ_ONLY: &str = "--readonly";

pub(crate) const LINES: &[Line] = &[
    // A read-only share of a user who is not root in the namespace.
    Line {
        name: "workspace_of_a_user",
        who: As::User,
        words: &[
            "--socket-path=S",
            "--shared-dir=P",
            READ_ONLY,
            "--sandbox=namespace",
            "--cache=never",
            "--uid-map=:1000:65534:1:",
            "--gid-map=:1000:65534:1:",
        ],
        guest_user: 1000,
    },
    // Owners are translated outside of the namespace and in it.
    Line {
        name: "unit_of_a_user",
        who: As::User,
        words: &[
            "--socket-path",
            "S",
            "--shared-dir",
            "P",
            "--announce-submounts",
            "--uid-map",
            ":0:65534:1:",
            "--gid-map",
            ":0:65534:1:",
            "--translate-uid",
            "map:1000:0:1",
            "--translate-gid",
            "map:1000:0:1",
        ],
        guest_user: 1000,
    },
    // Everybody in the guest is one user on the host, and the other way round.
    Line {
        name: "squashed_both_ways",
        who: As::User,
        words: &[
            "--socket-path",
            "S",
            "--shared-dir",
            "P",
            "--sandbox",
            "namespace",
            "--cache",
            "never",
            "--tag",
            "myfs",
            "--translate-uid",
            "squash-guest:0:0:4294967295",
            "--translate-gid",
            "squash-guest:0:0:4294967295",
            "--translate-uid",
            "squash-host:0:1000:4294967295",
            "--translate-gid",
            "squash-host:0:1000:4294967295",
        ],
        guest_user: 1000,
    },
    Line {
        name: "squashed_and_shown_to_one",
        who: As::Root,
        words: &[
            "--socket-path=S",
            "--shared-dir=P",
            "--sandbox=namespace",
            "--cache=auto",
            "--translate-uid=squash-guest:0:0:4294967295",
            "--translate-gid=squash-guest:0:0:4294967295",
            "--translate-uid=host:0:1000:1",
            "--translate-gid=host:0:1000:1",
        ],
        guest_user: 1000,
    },
    Line {
        name: "vagrant_qemu",
        who: As::User,
        words: &[
            "--socket-path=S",
            "--shared-dir=P",
            "--sandbox=none",
            "--inode-file-handles=never",
            "--translate-uid",
            "map:1000:65534:1",
            "--translate-gid",
            "map:1000:65534:1",
        ],
        guest_user: 1000,
    },
    Line {
        name: "hermit",
        who: As::User,
        words: &[
            "--socket-path=./fs.sock",
            "--shared-dir",
            "./share",
            "--announce-submounts",
            "--sandbox",
            "none",
            "--seccomp",
            "none",
            "--inode-file-handles=never",
        ],
        guest_user: 65534,
    },
    Line {
        name: "vmtest",
        who: As::Root,
        words: &[
            "--socket-path=S",
            "--shared-dir",
            "P",
            "--cache",
            "always",
            "--sandbox=none",
            "--xattr",
            "--security-label",
        ],
        guest_user: 1000,
    },
    Line {
        name: "vmtest_readonly",
        who: As::Root,
        words: &[
            "--socket-path=S",
            "--shared-dir",
            "P",
            "--cache",
            "always",
            "--sandbox=none",
            "--xattr",
            "--security-label",
            READ_ONLY,
        ],
        guest_user: 0,
    },
    Line {
        name: "cloud_hypervisor_root",
        who: As::Root,
        words: &[
            "--socket-path=S",
            "--shared-dir=P",
            "--cache=never",
            "--posix-acl",
        ],
        guest_user: 1000,
    },
    // The C daemon's form, which scripts for older hosts still have.
    Line {
        name: "boot_qemu",
        who: As::Root,
        words: &[
            "--socket-group=root",
            "--socket-path=S",
            "-o",
            "source=P",
            "-o",
            "cache=always",
        ],
        guest_user: 1000,
    },
    Line {
        name: "c_daemon_direct",
        who: As::Root,
        words: &[
            "--socket-path=S",
            "--socket-group=root",
            "-o",
            "source=P",
            "-o",
            "allow_direct_io",
            "-o",
            "cache=always",
        ],
        guest_user: 1000,
    },
    Line {
        name: "c_daemon_debug",
        who: As::Root,
        words: &[
            "--socket-path=S",
            "-o",
            "source=P",
            "-o",
            "cache=always",
            "-o",
            "debug",
        ],
        guest_user: 1000,
    },
    Line {
        name: "c_daemon_log_level",
        who: As::Root,
        words: &["--socket-path=S", "-o", "source=P,log_level=err"],
        guest_user: 1000,
    },
];

/// The daemon serves, and the file of the guest's user is that user's for the guest.
pub(crate) fn works(line: &Line) -> Result<()> {
    let launched = Launched::start(line.words, line.who, "share")?;
    fs::write(launched.share().join("from-host"), "of the host")?;
    let owner = fs::metadata(launched.share())?;
    std::os::unix::fs::chown(
        launched.share().join("from-host"),
        Some(owner.uid()),
        Some(owner.gid()),
    )?;
    let mut guest =
        Driver::mount(&launched.socket(), &Setup::default()).with_context(|| launched.log())?;
    let found = guest.lookup(NodeId::ROOT, c"from-host")?;
    let is_read_only = line.words.contains(&READ_ONLY);
    if !is_read_only {
        // A guest reads a share that is read-only and cached without OPEN.
        guest.open(NodeId::new(found.nodeid), OFlags::RDONLY)?;
    }
    guest.header.uid = line.guest_user;
    guest.header.gid = line.guest_user;
    let made = guest.create(NodeId::ROOT, c"made", 0o640);
    if is_read_only {
        let error = made.map(drop).map_err(|error| error.errno());
        ensure!(error == Err(Some(Errno::ROFS)), "{error:?}");
        return Ok(());
    }
    let made = made.with_context(|| launched.log())?;
    guest.write(made, 0, b"of the guest")?;
    let seen = guest.getattr(made.node, Some(made.file))?.attr;
    ensure!(
        (seen.uid, seen.gid) == (line.guest_user, line.guest_user),
        "the guest sees {}:{}",
        seen.uid,
        seen.gid
    );
    let content = fs::read_to_string(launched.share().join("made"))?;
    ensure!(content == "of the guest", "{content}");
    Ok(())
}
