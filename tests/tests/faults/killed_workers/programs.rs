//! What works in the guest while workers are killed.

use gangplank_tests::guest_work::{APPEND, FSX, NAMES, Program};

/// Programs that work at the same time.
pub(crate) struct Group {
    /// Their name in the log.
    pub(crate) name: &'static str,
    /// Of each ten kills, those that this group gets.
    pub(crate) tenths: usize,
    /// The programs.
    pub(crate) programs: &'static [Program],
}

/// Counts under a lock that another program takes as well: a directory, which one can make.
macro_rules! lock {
    ($name:literal) => {
        concat!(
            "n=0; while ! test -e /dev/shm/end; do \
               until mkdir /mnt/lock 2>/dev/null; do test -d /mnt || exit 1; done; \
               c=$(cat /mnt/counter) && echo $((c+1)) >/mnt/counter && rmdir /mnt/lock || exit 1; \
               n=$((n+1)); done; echo $n >/dev/shm/",
            $name
        )
    };
}

/// A script of the Debian tree, which `write_scripts` in `debian.rs` writes, with an argument.
macro_rules! script {
    ($script:literal, $argument:literal) => {
        concat!(
            "chroot /mnt/debian /bin/sh /work/",
            $script,
            " ",
            $argument,
            " || exit 1"
        )
    };
}

/// All groups, one after another.
pub(crate) const GROUPS: [Group; 3] = [
    Group {
        name: "files",
        tenths: 4,
        programs: &[
            APPEND,
            (
                "reopen",
                "i=0; while ! test -e /dev/shm/end; do \
                   echo line $i >>/mnt/reopened || exit 1; i=$((i+1)); done; \
                 echo $i >/dev/shm/reopened",
            ),
            NAMES,
            ("lock-one", lock!("one")),
            ("lock-two", lock!("two")),
            FSX,
        ],
    },
    Group {
        name: "locks and databases",
        tenths: 3,
        programs: &[
            ("fio", script!("fio.sh", "/work")),
            ("sqlite-one", script!("sqlite.sh", "one")),
            ("sqlite-two", script!("sqlite.sh", "two")),
            ("flock-one", script!("flock.sh", "one")),
            ("flock-two", script!("flock.sh", "two")),
        ],
    },
    Group {
        name: "git and pjdfstest",
        tenths: 3,
        programs: &[
            ("git", script!("git.sh", "")),
            ("pjdfstest", script!("pjdfstest.sh", "")),
        ],
    },
];
