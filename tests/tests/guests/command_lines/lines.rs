//! The command lines of managers of virtual machines, as their sources have them.

use gangplank_tests::promises;

use crate::launch::As;
use crate::{Line, USUAL};

pub(crate) const LINES: &[Line] = &[
    Line {
        name: "incus",
        who: As::Root,
        words: &[
            "--fd=3",
            "--cache=never",
            "--shared-dir=P",
            "--posix-acl=auto",
        ],
        promises: &[
            promises::shares_files,
            promises::has_xattrs,
            promises::has_acls,
            promises::acls_keep_set_group_id,
            promises::users_own_files,
        ],
        ..USUAL
    },
    Line {
        name: "incus_older",
        who: As::Root,
        words: &["--fd=3", "--cache=never", "--shared-dir=P", "--posix-acl"],
        promises: &[
            promises::shares_files,
            promises::has_acls,
            promises::acls_keep_set_group_id,
        ],
        ..USUAL
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
        promises: &[
            promises::shares_files,
            promises::has_xattrs,
            promises::users_own_files,
        ],
        ..USUAL
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
        promises: &[promises::shares_files, promises::users_own_files],
        ..USUAL
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
        promises: &[promises::shares_files, promises::nobody_else_owns_files],
        ..USUAL
    },
    Line {
        name: "libvirt_system",
        who: As::Root,
        words: &[
            "--fd=3",
            "--shared-dir",
            "P",
            "--cache",
            "never",
            "--sandbox",
            "namespace",
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
        ..USUAL
    },
    Line {
        name: "libvirt_system_always",
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
        ..USUAL
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
        ..USUAL
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
        promises: &[promises::shares_files, promises::root_is_the_user],
        ..USUAL
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
        promises: &[promises::root_is_the_user, promises::has_locks_of_the_host],
        ..USUAL
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
        promises: &[promises::shares_files, promises::nobody_else_owns_files],
        ..USUAL
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
        promises: &[promises::shares_files, promises::users_own_files],
        ..USUAL
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
        promises: &[promises::shares_files, promises::has_xattrs],
        ..USUAL
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
        promises: &[promises::shares_files, promises::nobody_else_owns_files],
        ..USUAL
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
        environment: &[("RUST_LOG", "ERROR")],
        promises: &[promises::shares_files, promises::nobody_else_owns_files],
        ..USUAL
    },
    Line {
        name: "lima",
        who: As::User,
        words: &["--socket-path", "S", "--shared-dir", "P"],
        promises: &[promises::shares_files, promises::nobody_else_owns_files],
        ..USUAL
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
        promises: &[promises::shares_files, promises::users_own_files],
        ..USUAL
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
        promises: &[
            promises::shares_files,
            promises::has_xattrs,
            promises::has_acls,
            promises::acls_keep_set_group_id,
        ],
        ..USUAL
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
        promises: &[
            promises::shares_files,
            promises::has_xattrs,
            promises::has_acls,
            promises::acls_keep_set_group_id,
            promises::users_own_files,
        ],
        ..USUAL
    },
    Line {
        name: "file_flags",
        who: As::Root,
        words: &[
            "--socket-path=S",
            "--shared-dir=P",
            "--modcaps=+linux_immutable",
        ],
        promises: &[promises::has_file_flags],
        ..USUAL
    },
    Line {
        name: "xattrmap_as_root",
        who: As::Root,
        words: &[
            "--socket-path=S",
            "--shared-dir=P",
            "--xattrmap=:map::user.virtiofs.:",
        ],
        promises: &[promises::shares_files, promises::hides_the_hosts_xattrs],
        ..USUAL
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
        promises: &[promises::keeps_trusted_xattrs],
        ..USUAL
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
        promises: &[
            promises::has_translated_owners,
            promises::forbids_other_owners,
        ],
        ..USUAL
    },
    Line {
        name: "microvm_nix",
        who: As::Root,
        words: &[
            "--socket-path=S",
            "--socket-group=kvm",
            "--shared-dir=P",
            "--rlimit-nofile",
            "1048576",
            "--thread-pool-size",
            "2",
            "--posix-acl",
            "--xattr",
            "--cache=auto",
        ],
        promises: &[
            promises::shares_files,
            promises::has_xattrs,
            promises::has_acls,
            promises::acls_keep_set_group_id,
            promises::users_own_files,
        ],
        ..USUAL
    },
    Line {
        name: "microvm_nix_readonly",
        who: As::Root,
        words: &[
            "--socket-path=S",
            "--socket-group=kvm",
            "--shared-dir=P",
            "--rlimit-nofile",
            "1048576",
            "--thread-pool-size",
            "4",
            "--posix-acl",
            "--xattr",
            "--cache=auto",
            "--inode-file-handles=prefer",
            "--tag=ro-store",
            "--readonly",
        ],
        promises: &[promises::is_read_only],
        ..USUAL
    },
];
