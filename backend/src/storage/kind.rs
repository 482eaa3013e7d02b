//! What is known of a file system by its type.

use serde::{Deserialize, Serialize};

/// Who has the files of a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// Processes of this host alone.
    #[default]
    ThisHost,
    /// Other hosts too.
    Hosts,
    /// Perhaps other hosts too: the type does not say.
    Unknown,
}

/// Local types (`/proc/filesystems`, and those of FUSE by their subtype).
const LOCAL: &[&str] = &[
    "adfs",
    "affs",
    "autofs",
    "bcachefs",
    "bfs",
    "binfmt_misc",
    "bpf",
    "btrfs",
    "cgroup",
    "cgroup2",
    "configfs",
    "cramfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "ecryptfs",
    "efivarfs",
    "efs",
    "erofs",
    "exfat",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "fuse.bindfs",
    "fuse.encfs",
    "fuse.fuse-overlayfs",
    "fuse.gocryptfs",
    "fuse.lxcfs",
    "fuse.mergerfs",
    "fuse.ntfs-3g",
    "fuse.portal",
    "fuse.squashfuse",
    "fuse.unionfs",
    "fuseblk",
    "fusectl",
    "hfs",
    "hfsplus",
    "hostfs",
    "hpfs",
    "hugetlbfs",
    "iso9660",
    "jffs2",
    "jfs",
    "minix",
    "mqueue",
    "msdos",
    "nilfs2",
    "nsfs",
    "ntfs",
    "ntfs3",
    "overlay",
    "proc",
    "pstore",
    "ramfs",
    "reiserfs",
    "romfs",
    "rootfs",
    "securityfs",
    "squashfs",
    "sysfs",
    "sysv",
    "tmpfs",
    "tracefs",
    "ubifs",
    "udf",
    "ufs",
    "vfat",
    "xfs",
    "zfs",
    "zonefs",
];

/// Types that are shared between hosts.
const SHARED: &[&str] = &[
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "coda",
    "fuse.beegfs",
    "fuse.ceph",
    "fuse.ceph-fuse",
    "fuse.glusterfs",
    "fuse.juicefs",
    "fuse.lizardfs",
    "fuse.mfs",
    "fuse.mfsmount",
    "fuse.moosefs",
    "fuse.s3fs",
    "fuse.saunafs",
    "fuse.seaweedfs",
    "fuse.sfs",
    "fuse.sshfs",
    "gfs2",
    "gpfs",
    "lustre",
    "nfs",
    "nfs4",
    "ocfs2",
    "orangefs",
    "pvfs2",
    "smb3",
    "smbfs",
    "virtiofs",
];

/// Who has the files of a mount of type `name` with this source.
#[must_use]
pub fn reach(name: &str, source: &str) -> Reach {
    // MooseFS and its relatives set no subtype, but begin the source with a name.
    let mut of_source = ["mfs#", "lizardfs#", "sfs#", "saunafs#"].iter();
    if SHARED.contains(&name) || of_source.any(|begin| source.starts_with(begin)) {
        return Reach::Hosts;
    }
    match LOCAL.contains(&name) {
        true => Reach::ThisHost,
        false => Reach::Unknown,
    }
}

/// Whether locks reach other hosts, according to the mount's options.
#[must_use]
pub fn locks_reach_other_hosts(name: &str, options: &str) -> bool {
    let has = |wanted: &str| options.split(',').any(|option| option == wanted);
    match name {
        "nfs" | "nfs4" => {
            let local = [
                "nolock",
                "local_lock=all",
                "local_lock=posix",
                "local_lock=flock",
            ];
            !local.into_iter().any(has)
        }
        "cifs" | "smb3" | "smbfs" => !has("nobrl"),
        "lustre" => has("flock"),
        "gfs2" | "ocfs2" => !has("localflocks"),
        // sshfs has no requests for locks: the host's kernel keeps them.
        "fuse.sshfs" | "fuse.s3fs" => false,
        _ => true,
    }
}

/// Whether the file system is one of FUSE, of whatever subtype (`FUSE_SUPER_MAGIC`,
/// `linux/magic.h`). virtiofs is.
///
/// Its file handles name an inode that the host's kernel has in memory. After that, the kernel asks
/// the server for the node's id, which the server may have given up, or given to another file
/// (`fuse_get_dentry`, `fs/fuse/inode.c`).
#[must_use]
pub fn is_fuse(magic: u64) -> bool {
    const FUSE_SUPER_MAGIC: u64 = 0x6573_5546;
    magic == FUSE_SUPER_MAGIC
}

/// Whether another process or machine answers for the files of a file system, as far as the magic
/// number says.
#[must_use]
pub fn has_server(magic: u64) -> bool {
    is_fuse(magic) || reach(name_of(magic), "") == Reach::Hosts
}

/// The type's name, if nothing but the magic number is known.
#[must_use]
pub fn name_of(magic: u64) -> &'static str {
    match magic {
        0xEF53 => "ext2, ext3 or ext4",
        0x5846_5342 => "xfs",
        0x9123_683E => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794C_7630 => "overlay",
        0x6573_5546 => "fuse",
        0x6969 => "nfs",
        0xFF53_4D42 => "cifs",
        0xFE53_4D42 => "smb3",
        0x00C3_6400 => "ceph",
        0x0102_1997 => "9p",
        0x0116_1970 => "gfs2",
        0x7461_636F => "ocfs2",
        0x0BD0_0BD0 => "lustre",
        0x5346_414F => "afs",
        0x9FA0 => "proc",
        0x6265_6572 => "sysfs",
        _ => "another file system",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_say_who_has_the_files() {
        for (name, source, expected) in [
            ("ext4", "/dev/sda1", Reach::ThisHost),
            ("fuse.mergerfs", "a:b", Reach::ThisHost),
            ("nfs4", "server:/", Reach::Hosts),
            ("fuse", "mfs#10.0.0.1:9421/", Reach::Hosts),
            ("fuse.glusterfs", "server:vol", Reach::Hosts),
            ("fuse", "something", Reach::Unknown),
            ("wekafs", "cluster/fs", Reach::Unknown),
        ] {
            assert_eq!(reach(name, source), expected, "{name} from {source}");
        }
    }

    #[test]
    fn mount_options_keep_locks_on_the_host() {
        for (name, options, expected) in [
            ("nfs", "rw,vers=3,nolock", false),
            ("nfs", "rw,vers=3,local_lock=none", true),
            ("nfs4", "rw,local_lock=posix", false),
            ("cifs", "rw,nobrl", false),
            ("lustre", "rw", false),
            ("lustre", "rw,flock", true),
            ("ceph", "rw", true),
        ] {
            let found = locks_reach_other_hosts(name, options);
            assert_eq!(found, expected, "{name} with {options}");
        }
    }

    #[test]
    fn a_magic_number_says_who_answers_for_the_files() {
        for (magic, expected) in [
            (0x6573_5546, true),
            (0x6969, true),
            (0xFF53_4D42, true),
            (0xFE53_4D42, true),
            (0x0102_1997, true),
            (0x00C3_6400, true),
            (0x0102_1994, false),
            (0xEF53, false),
            // HUGETLBFS_MAGIC, which has no name here.
            (0x9584_58F6, false),
        ] {
            assert_eq!(has_server(magic), expected, "{magic:x}");
        }
    }

    #[test]
    fn no_type_is_in_both_lists() {
        assert!(LOCAL.iter().all(|name| !SHARED.contains(name)));
    }
}
