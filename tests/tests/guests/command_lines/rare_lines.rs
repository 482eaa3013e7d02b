//! Command lines whose options other lines have, too. `scripts/test --long` tries them.

use gangplank_tests::promises;

use crate::launch::As;
use crate::{Line, USUAL};

pub(crate) const LINES: &[Line] = &[
    Line {
        name: "bcvk",
        who: As::Restricted,
        words: &[
            "--socket-path",
            "S",
            "--shared-dir",
            "P",
            "--cache=never",
            "--allow-mmap",
            "--sandbox=none",
            "--readonly",
            "--inode-file-handles=fallback",
        ],
        promises: &[promises::is_read_only],
        ..USUAL
    },
    Line {
        name: "volume_with_mappings",
        who: As::Root,
        words: &[
            "--shared-dir",
            "P",
            "--socket-path",
            "S",
            "--cache",
            "never",
            "--allow-direct-io",
            "--allow-mmap",
            "--thread-pool-size",
            "8",
            "--sandbox",
            "chroot",
        ],
        promises: &[promises::shares_files, promises::users_own_files],
        ..USUAL
    },
    Line {
        name: "few_capabilities",
        who: As::Root,
        words: &[
            "--socket-path=S",
            "--socket-group=kvm",
            "--shared-dir=P",
            "--thread-pool-size=1",
            "--sandbox=chroot",
            "--inode-file-handles=never",
            "--cache=auto",
            "--modcaps=-chown:-dac_override:-fowner:-fsetid:-setuid:-setgid:-mknod:-setfcap",
            "--readonly",
        ],
        promises: &[promises::is_read_only],
        ..USUAL
    },
    Line {
        name: "container_of_docker",
        who: As::Root,
        words: &[
            "--socket-path",
            "S",
            "--shared-dir",
            "P",
            "--sandbox",
            "chroot",
            "--modcaps=-DAC_READ_SEARCH",
            "--inode-file-handles=never",
        ],
        promises: &[promises::shares_files, promises::users_own_files],
        ..USUAL
    },
    Line {
        name: "squashed_without_devices",
        who: As::Root,
        words: &[
            "--socket-path=S",
            "--shared-dir=P",
            "--thread-pool-size",
            "1",
            "--cache=auto",
            "--inode-file-handles=prefer",
            "--translate-uid=squash-guest:0:1000:4294967295",
            "--translate-gid=squash-guest:0:1000:4294967295",
            "--modcaps=-mknod",
        ],
        promises: &[promises::all_files_are_user_1000s],
        ..USUAL
    },
    Line {
        name: "sandbox_of_a_user",
        who: As::User,
        words: &[
            "--socket-path=S",
            "--shared-dir=P",
            "--sandbox=namespace",
            "--uid-map",
            ":0:65534:1:",
            "--gid-map",
            ":0:65534:1:",
            "--translate-uid",
            "map:1000:0:1",
            "--translate-gid",
            "map:1000:0:1",
            "--socket-group=nogroup",
            "--xattr",
        ],
        promises: &[promises::user_1000_owns_files, promises::has_xattrs],
        ..USUAL
    },
    Line {
        name: "unit_of_nixos",
        who: As::Root,
        words: &[
            "--shared-dir",
            "P",
            "--socket-path",
            "S",
            "--socket-group",
            "users",
            "--sandbox",
            "none",
            "--cache",
            "auto",
            "--thread-pool-size",
            "8",
            "--rlimit-nofile",
            "524288",
            "--inode-file-handles=never",
            "--log-level",
            "warn",
        ],
        promises: &[promises::shares_files, promises::users_own_files],
        ..USUAL
    },
    Line {
        name: "root_of_a_user",
        who: As::User,
        words: &[
            "--shared-dir",
            "P",
            "--readonly",
            "--tag",
            "rootfs",
            "--socket-path",
            "S",
            "--announce-submounts",
            "--sandbox=none",
            "--rlimit-nofile=0",
            "--translate-uid=squash-host:0:65534:4294967295",
            "--translate-gid=squash-host:0:65534:4294967295",
        ],
        promises: &[promises::is_read_only],
        ..USUAL
    },
    Line {
        name: "migrated_readonly",
        who: As::Root,
        words: &[
            "--shared-dir",
            "P",
            "--socket-path",
            "S",
            "--readonly",
            "--no-announce-submounts",
            "--sandbox",
            "namespace",
            "--inode-file-handles=never",
            "--migration-mode",
            "find-paths",
            "--migration-on-error",
            "abort",
        ],
        promises: &[promises::is_read_only],
        ..USUAL
    },
    Line {
        name: "kata_migrated",
        who: As::Root,
        words: &[
            "--socket-path=S",
            "--shared-dir=P",
            "--cache=auto",
            "--thread-pool-size=1",
            "--announce-submounts",
            "--sandbox=none",
            "--migration-on-error=guest-error",
        ],
        promises: &[promises::shares_files, promises::users_own_files],
        ..USUAL
    },
    Line {
        name: "proxmox_metadata",
        who: As::Root,
        words: &[
            "--fd=3",
            "--shared-dir=P",
            "--cache=metadata",
            "--announce-submounts",
            "--syslog",
        ],
        promises: &[promises::shares_files, promises::users_own_files],
        ..USUAL
    },
    Line {
        name: "c_daemon_locks",
        who: As::Root,
        words: &[
            "-f",
            "-o",
            "cache=none,flock,posix_lock,xattr,allow_direct_io,source=P",
            "--socket-path=S",
        ],
        promises: &[promises::has_xattrs, promises::has_locks_of_the_host],
        ..USUAL
    },
    Line {
        name: "c_daemon_writeback",
        who: As::Root,
        words: &[
            "-o",
            "source=P,cache=auto,timeout=1.5,flock,posix_lock,writeback,xattr",
            "--thread-pool-size=1",
            "--socket-path=S",
        ],
        promises: &[promises::shares_files, promises::has_locks_of_the_host],
        ..USUAL
    },
    Line {
        name: "c_daemon_warnings",
        who: As::Root,
        words: &[
            "--socket-path=S",
            "-o",
            "source=P",
            "-o",
            "log_level=warn",
            "-o",
            "no_writeback",
        ],
        promises: &[promises::shares_files],
        ..USUAL
    },
];
