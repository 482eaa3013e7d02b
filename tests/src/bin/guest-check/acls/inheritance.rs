//! What new files and directories get from the directory in which they are made, and from umask.

use std::fs::{self, Permissions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use anyhow::Result;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, linkat, mkdirat, mknodat, open};
use rustix::io::Errno;

use super::list::{ACCESS, DEFAULT, outcome, set, shown};
use super::{OTHER_GROUP, OWNER, Report};

type Made = fn(&Path) -> Result<(), Errno>;

/// The ways to make something, and whether it is a directory.
const WAYS: &[(&str, Made)] = &[
    ("create 666", |path| create(path, 0o666).map(drop)),
    ("create 777", |path| create(path, 0o777).map(drop)),
    ("create 2770", |path| create(path, 0o2770).map(drop)),
    ("mkdir 777", |path| mkdirat(CWD, path, Mode::from(0o777))),
    ("mkdir 1700", |path| mkdirat(CWD, path, Mode::from(0o1700))),
    ("fifo 666", |path| node(path, FileType::Fifo, 0o666)),
    ("node 644", |path| node(path, FileType::RegularFile, 0o644)),
    ("symlink", |path| {
        symlink("nowhere", path).map_err(|error| super::errno(&error))
    }),
    (NAMELESS, nameless),
];

/// The way that FUSE has from Linux 6.2 on.
const NAMELESS: &str = "nameless 666";

const LISTS: [&str; 4] = [
    "",
    "u::7,g::5,o::4",
    "u::6,u:1:7,g::7,m::6,o::2",
    "u::0,u:1:7,g::0,g:60:7,m::7,o::0",
];

fn create(path: &Path, mode: u32) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    open(path, flags, Mode::from(mode))
}

fn node(path: &Path, kind: FileType, mode: u32) -> Result<(), Errno> {
    mknodat(CWD, path, kind, Mode::from(mode), 0)
}

/// Makes a file without a name (`O_TMPFILE`), and gives it one.
fn nameless(path: &Path) -> Result<(), Errno> {
    let directory = path.parent().ok_or(Errno::INVAL)?;
    let file = open(
        directory,
        OFlags::TMPFILE | OFlags::WRONLY,
        Mode::from(0o666),
    )?;
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, source, CWD, path, AtFlags::SYMLINK_FOLLOW)
}

/// Each way with each umask, below each default list.
pub(super) fn by_umask(report: &Report) -> Result<()> {
    for list in LISTS {
        for umask in [0o000, 0o022, 0o027, 0o777] {
            let directory = report.path(&format!("{list} {umask:03o}"));
            fs::create_dir(&directory)?;
            if !list.is_empty() {
                report.say(list, &set(&directory, DEFAULT, list)?);
            }
            makes(
                report,
                &directory,
                &format!("below {list:?}, umask {umask:03o}"),
                umask,
            )?;
        }
    }
    Ok(())
}

/// Each way in a directory that gives its group to what is made in it, as a user who is not in that
/// group.
pub(super) fn in_set_group_id_directories(report: &Report) -> Result<()> {
    for list in LISTS {
        let directory = report.path(&format!("{list} group"));
        fs::create_dir(&directory)?;
        chown(&directory, Some(OWNER.uid), Some(OTHER_GROUP))?;
        if !list.is_empty() {
            set(&directory, DEFAULT, list)?;
        }
        set(&directory, ACCESS, "u::7,u:1:7,g::7,m::7,o::7")?;
        fs::set_permissions(&directory, Permissions::from_mode(0o2777))?;
        report.show("directory", &directory)?;
        let step = format!("below {list:?}");
        OWNER.act(|| makes(report, &directory, &step, 0o022))??;
    }
    Ok(())
}

fn makes(report: &Report, directory: &Path, step: &str, umask: u32) -> Result<()> {
    for (way, make) in WAYS {
        let path = directory.join(way);
        let before = rustix::process::umask(Mode::from(umask));
        let made = make(&path);
        rustix::process::umask(before);
        let what = match made {
            Ok(()) => shown(&path)?,
            Err(_) => outcome(made),
        };
        report.say(&format!("{step}, {way}"), &what);
    }
    Ok(())
}
