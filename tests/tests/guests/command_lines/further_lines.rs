//! Command lines of further managers, whose options the other lines have in other combinations.

use gangplank_tests::promises;

use crate::launch::As;
use crate::{Line, USUAL};

pub(crate) const LINES: &[Line] = &[
    // A read-only share of a user who is not root in the namespace.
    Line {
        name: "workspace_of_a_user",
        who: As::User,
        words: &[
            "--socket-path=S",
            "--shared-dir=P",
            "--readonly",
            "--sandbox=namespace",
            "--cache=never",
            "--uid-map=:1000:65534:1:",
            "--gid-map=:1000:65534:1:",
        ],
        promises: &[promises::is_read_only],
        ..USUAL
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
        promises: &[promises::user_1000_owns_files],
        ..USUAL
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
        promises: &[promises::user_1000_owns_files],
        ..USUAL
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
        promises: &[promises::user_1000_owns_files],
        ..USUAL
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
        promises: &[promises::user_1000_owns_files],
        ..USUAL
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
        promises: &[promises::nobody_owns_files],
        ..USUAL
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
        promises: &[promises::user_1000_owns_files],
        ..USUAL
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
            "--readonly",
        ],
        promises: &[promises::is_read_only],
        ..USUAL
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
        promises: &[promises::user_1000_owns_files],
        ..USUAL
    },
    Line {
        name: "systemd_vmspawn",
        who: As::Root,
        words: &[
            "--shared-dir",
            "P",
            "--xattr",
            "--fd",
            "3",
            "--no-announce-submounts",
            "--log-level=error",
            "--modcaps=-mknod",
            "--translate-uid",
            "map:0:200000:65536",
            "--translate-gid",
            "map:0:200000:65536",
        ],
        promises: &[promises::has_xattrs, promises::has_translated_owners],
        ..USUAL
    },
    // `unshare -Ur` around the daemon.
    Line {
        name: "root_of_its_own_namespace",
        who: As::UserInNamespace,
        words: &[
            "--shared-dir",
            "P",
            "--socket-path",
            "S",
            "--sandbox",
            "namespace",
            "--inode-file-handles=never",
            "--no-announce-submounts",
            "--rlimit-nofile=0",
        ],
        promises: &[promises::shares_files, promises::nobody_else_owns_files],
        ..USUAL
    },
    Line {
        name: "descriptor_budget",
        who: As::User,
        words: &[
            "--socket-path",
            "S",
            "--shared-dir",
            "P",
            "--sandbox",
            "namespace",
            "--seccomp",
            "kill",
            "--inode-file-handles=never",
            "--thread-pool-size",
            "4",
            "--cache",
            "never",
            "--rlimit-nofile=1000",
            "--translate-uid",
            "map:1000:65534:1",
            "--translate-gid",
            "map:1000:65534:1",
        ],
        promises: &[promises::user_1000_owns_files],
        ..USUAL
    },
];
