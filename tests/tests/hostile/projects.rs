//! A guest that tries to leave the project of its share, by which the host limits what it takes.
//! XFS keeps projects without counting them, so the host's kernel needs no quotas for this.

use std::process::Command;

use anyhow::{Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::daemon::{Daemon, Options};
use gangplank_tests::disk::{Disk, Kind};
use gangplank_tests::driver::{Driver, NodeAndFile, Setup};
use gangplank_tests::packages;
use gangplank_tests::process::User;
use rustix::io::Errno;

/// `FS_IOC_SETFLAGS`, `FS_IOC_FSGETXATTR` and `FS_IOC_FSSETXATTR`.
const SET_FLAGS: u32 = 0x4008_6602;
const GET: u32 = 0x801c_581f;
const SET: u32 = 0x401c_5820;

/// `struct fsxattr`: where the project is.
const PROJECT: std::ops::Range<usize> = 12..16;

/// `FS_XFLAG_PROJINHERIT`.
const PASSED_ON: u32 = 0x200;

struct Guest(Driver);

impl Guest {
    /// What becomes of an attempt to change the attributes of a file.
    fn changes(
        &mut self,
        what: NodeAndFile,
        change: impl FnOnce(&mut [u8]),
    ) -> Result<Option<Errno>> {
        let mut attributes = self.0.ioctl(what, GET, &[], 28)?;
        ensure!(attributes.len() == 28, "{attributes:?}");
        change(&mut attributes);
        match self.0.ioctl(what, SET, &attributes, 0) {
            Ok(_) => Ok(None),
            Err(error) if error.errno().is_some() => Ok(error.errno()),
            Err(error) => Err(error.into()),
        }
    }

    fn directory(&mut self, name: &std::ffi::CStr) -> Result<NodeAndFile> {
        let node = NodeId::new(self.0.mkdir(NodeId::ROOT, name)?.nodeid);
        let file = self.0.opendir(node)?;
        Ok(NodeAndFile { node, file })
    }
}

fn project(number: u32) -> impl FnOnce(&mut [u8]) {
    move |attributes| attributes[PROJECT].copy_from_slice(&number.to_ne_bytes())
}

fn not_passed_on(attributes: &mut [u8]) {
    let flags = u32::from_ne_bytes([attributes[0], attributes[1], attributes[2], attributes[3]]);
    attributes[..4].copy_from_slice(&(flags & !PASSED_ON).to_ne_bytes());
}

#[test]
fn a_guest_cannot_leave_the_project_of_its_share() -> Result<()> {
    if !User::is_root() {
        eprintln!("SKIPPED: only root can mount a file system");
        return Ok(());
    }
    let disk = Disk::new(Kind::Xfs)?;
    let daemon = Daemon::start(&Options::new(disk.path()))?;
    let mut guest = Guest(Driver::mount(daemon.socket(), &Setup::default())?);
    let root = NodeAndFile {
        node: NodeId::ROOT,
        file: guest.0.opendir(NodeId::ROOT)?,
    };

    // In a share without a project, a guest has its own. That of the share is the host's affair.
    let before = guest.directory(c"before")?;
    ensure!(guest.changes(before, project(7))?.is_none());
    ensure!(guest.changes(root, project(7))? == Some(Errno::PERM));

    let mut command = Command::new("xfs_io");
    command.args(["-c", "chproj 42", "-c", "chattr +P"]);
    packages::run(command.arg(disk.path()))?;
    let inside = guest.directory(c"inside")?;
    let attributes = guest.0.ioctl(inside, GET, &[], 28)?;
    ensure!(attributes[PROJECT] == 42u32.to_ne_bytes(), "{attributes:?}");
    let file = guest.0.create(inside.node, c"file", 0o600)?;
    for (what, name) in [(root, "root"), (inside, "directory"), (file, "file")] {
        for number in [0, 7] {
            let refused = guest.changes(what, project(number))?;
            ensure!(
                refused == Some(Errno::PERM),
                "{name}, {number}: {refused:?}"
            );
        }
        ensure!(guest.changes(what, |_| {})?.is_none(), "{name} as it is");
    }
    for (what, name) in [(root, "root"), (inside, "directory")] {
        let refused = guest.changes(what, not_passed_on)?;
        ensure!(refused == Some(Errno::PERM), "{name}: {refused:?}");
        let refused = guest
            .0
            .ioctl(what, SET_FLAGS, &[0; 4], 0)
            .map_err(|error| error.errno());
        ensure!(
            matches!(refused, Ok(_) | Err(Some(Errno::PERM | Errno::OPNOTSUPP))),
            "{name}: {refused:?}"
        );
    }
    let attributes = guest.0.ioctl(root, GET, &[], 28)?;
    ensure!(
        attributes[PROJECT] == 42u32.to_ne_bytes() && attributes[1] & 2 != 0,
        "{attributes:?}"
    );

    // A file that is not in the project does not come in by a rename, so it does not go out again.
    let outside = guest.0.create(before.node, c"outside", 0o600)?;
    guest.0.release(outside)?;
    let moved = guest
        .0
        .rename((before.node, c"outside"), (inside.node, c"in"), 0);
    let moved = moved.map_err(|error| error.errno());
    ensure!(moved == Err(Some(Errno::XDEV)), "{moved:?}");
    Ok(())
}
