//! Access control lists, case by case, as xfstests has them (generic/026, 053, 077, 099, 105, 237,
//! 319, 375, 389, 444). Needs root. Each line of the report is what became of one step. So the same
//! cases on two file systems can be compared, of which one is known to be right.

mod inheritance;
mod list;

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::Result;
use gangplank_tests::process::User;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use list::{ACCESS, DEFAULT, encoded, names, outcome, remove, set, shown};

/// The word that asks for the report instead of checks.
pub(crate) const ACLS: &str = "--acls";

/// `games`, who owns files here.
const OWNER: User = User { uid: 5, gid: 60 };

/// `daemon`, who owns none.
const STRANGER: User = User { uid: 1, gid: 1 };

/// A group in which neither is.
const OTHER_GROUP: u32 = 100;

/// A list with all kinds of entries.
const FULL: &str = "u::7,u:1:6,g::5,g:1:4,m::7,o::1";

/// One line of the report for each step.
struct Report {
    directory: PathBuf,
    case: &'static str,
}

impl Report {
    /// Begins a case, in a directory of its own.
    fn case(&mut self, directory: &Path, case: &'static str) -> Result<()> {
        self.directory = directory.join(case);
        self.case = case;
        fs::create_dir(&self.directory)?;
        Ok(fs::set_permissions(
            &self.directory,
            Permissions::from_mode(0o777),
        )?)
    }

    fn say(&self, step: &str, what: &str) {
        println!("{}, {step}: {what}", self.case);
    }

    fn show(&self, step: &str, path: &Path) -> Result<()> {
        self.say(step, &shown(path)?);
        Ok(())
    }

    /// A path in the case's directory.
    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A new file of [`OWNER`], whose group is `group`.
    fn file(&self, name: &str, group: u32, mode: u32) -> Result<PathBuf> {
        let path = self.path(name);
        File::create(&path)?.write_all(b"content")?;
        chown(&path, Some(OWNER.uid), Some(group))?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        Ok(path)
    }
}

/// Tries all cases in `directory`, and prints what became of them.
pub(crate) fn report(directory: &Path) -> Result<()> {
    rustix::process::umask(0o022.into());
    let mut report = Report {
        directory: directory.to_owned(),
        case: "",
    };
    type Case = fn(&Report) -> Result<()>;
    let cases: [(&str, Case); 10] = [
        ("mask", mask),
        ("inheritance", inheritance::by_umask),
        (
            "set-group-id directory",
            inheritance::in_set_group_id_directories,
        ),
        ("set-group-id file", set_group_id),
        ("many entries", many_entries),
        ("names", keeps_with_names),
        ("owner", owner),
        ("symbolic link", symbolic_link),
        ("removal", removal),
        ("wrong lists", wrong_lists),
    ];
    for (case, tried) in cases {
        report.case(directory, case)?;
        tried(&report)?;
    }
    report.case(directory, "access")?;
    access(&report)
}

/// The mask is the group's part of the mode, and the other way round.
fn mask(report: &Report) -> Result<()> {
    let file = report.file("file", OWNER.gid, 0o644)?;
    report.say("set", &set(&file, ACCESS, FULL)?);
    report.show("with a list", &file)?;
    for mode in [0o640, 0o600, 0o777, 0o4755, 0o020] {
        fs::set_permissions(&file, Permissions::from_mode(mode))?;
        report.show(&format!("chmod {mode:o}"), &file)?;
    }
    for list in [
        "u::6,g::4,m::0,o::0",
        "u::6,u:1:7,g::7,m::5,o::0",
        // No list at all: the mode says as much.
        "u::7,g::5,o::4",
    ] {
        report.say(list, &set(&file, ACCESS, list)?);
        report.show(list, &file)?;
    }
    fs::set_permissions(&file, Permissions::from_mode(0o604))?;
    report.show("chmod without a list", &file)
}

/// A file loses its set-group-id bit where its owner is not in its group.
fn set_group_id(report: &Report) -> Result<()> {
    for (step, group, user) in [
        ("owner in the group", OWNER.gid, Some(OWNER)),
        ("owner not in the group", OTHER_GROUP, Some(OWNER)),
        ("root", OTHER_GROUP, None),
    ] {
        let made = |name: &str| report.file(&format!("{step} {name}"), group, 0o2775);
        let acts = |work: &mut dyn FnMut() -> Result<String>| match user {
            Some(user) => user.act(work)?,
            None => work(),
        };
        let file = made("list")?;
        report.say(step, &acts(&mut || set(&file, ACCESS, FULL))?);
        report.show(step, &file)?;
        let file = made("mode alone")?;
        report.say(step, &acts(&mut || set(&file, ACCESS, "u::7,g::7,o::5"))?);
        report.show(&format!("{step}, the mode alone"), &file)?;
        let file = made("chmod")?;
        set(&file, ACCESS, FULL)?;
        fs::set_permissions(&file, Permissions::from_mode(0o2775))?;
        let mut chmod = || {
            let done = fs::set_permissions(&file, Permissions::from_mode(0o2755));
            Ok(outcome(done.map_err(|error| errno(&error))))
        };
        report.say(step, &acts(&mut chmod)?);
        report.show(&format!("{step}, chmod"), &file)?;
    }
    let file = report.file("written", OTHER_GROUP, 0o6777)?;
    set(&file, ACCESS, "u::7,u:1:7,g::7,m::7,o::7")?;
    fs::set_permissions(&file, Permissions::from_mode(0o6777))?;
    STRANGER.act(|| File::options().append(true).open(&file)?.write_all(b"x"))??;
    report.show("written by a stranger", &file)
}

/// Lists of more entries than fit beside a file's inode.
fn many_entries(report: &Report) -> Result<()> {
    for count in [32, 100, 400, 9000] {
        let mut list = "u::7".to_owned();
        for user in 0..count {
            list += &format!(",u:{}:{}", 1000 + user, user % 8);
        }
        list += ",g::5,m::7,o::0";
        let file = report.file(&count.to_string(), OWNER.gid, 0o600)?;
        report.say(&count.to_string(), &set(&file, ACCESS, &list)?);
        report.show(&count.to_string(), &file)?;
        fs::set_permissions(&file, Permissions::from_mode(0o640))?;
        report.show("chmod", &file)?;
    }
    Ok(())
}

/// A file keeps its list with any name.
fn keeps_with_names(report: &Report) -> Result<()> {
    let file = report.file("file", OWNER.gid, 0o600)?;
    set(&file, ACCESS, FULL)?;
    let (moved, linked) = (report.path("moved"), report.path("linked"));
    fs::rename(&file, &moved)?;
    report.show("renamed", &moved)?;
    fs::hard_link(&moved, &linked)?;
    report.show("linked", &linked)?;
    set(&linked, ACCESS, "u::6,u:9:4,g::0,m::4,o::0")?;
    report.show("changed by the other name", &moved)?;
    let directory = report.path("directory");
    fs::create_dir(&directory)?;
    set(&directory, DEFAULT, FULL)?;
    let inside = directory.join("file");
    fs::rename(&moved, &inside)?;
    report.show("moved below a default list", &inside)?;
    let plain = report.file("plain", OWNER.gid, 0o640)?;
    renameat_with(CWD, &plain, CWD, &inside, RenameFlags::EXCHANGE)?;
    report.show("exchanged", &plain)?;
    report.show("exchanged, the other", &inside)?;
    let over = report.file("over", OWNER.gid, 0o604)?;
    fs::rename(&over, &plain)?;
    report.show("replaced", &plain)?;
    report.show("replaced, by its other name", &linked)?;
    let renamed = report.path("renamed directory");
    fs::rename(&directory, &renamed)?;
    report.show("renamed directory", &renamed)?;
    chown(inside_of(&renamed), Some(STRANGER.uid), None)?;
    report.show("chown", &inside_of(&renamed))
}

fn inside_of(directory: &Path) -> PathBuf {
    directory.join("file")
}

/// An owner without capabilities sets and removes lists, and nobody else does.
fn owner(report: &Report) -> Result<()> {
    let file = report.file("file", OWNER.gid, 0o644)?;
    let directory = report.path("directory");
    fs::create_dir(&directory)?;
    chown(&directory, Some(OWNER.uid), Some(OWNER.gid))?;
    for (user, who) in [(OWNER, "owner"), (STRANGER, "stranger")] {
        for (path, name) in [(&file, ACCESS), (&directory, ACCESS), (&directory, DEFAULT)] {
            // The stranger may write by it.
            let list = "u::7,u:1:7,g::5,m::7,o::5";
            report.say(who, &user.act(|| set(path, name, list))??);
            report.show(who, path)?;
        }
    }
    for (user, who) in [(STRANGER, "stranger"), (OWNER, "owner")] {
        for (path, name) in [(&file, ACCESS), (&directory, ACCESS), (&directory, DEFAULT)] {
            report.say(who, &user.act(|| remove(path, name))?);
            report.show(who, path)?;
        }
    }
    report.say("on another's file", &set(&file, ACCESS, FULL)?);
    report.show("on another's file", &file)
}

fn symbolic_link(report: &Report) -> Result<()> {
    let (target, link) = (report.file("file", OWNER.gid, 0o644)?, report.path("link"));
    symlink(&target, &link)?;
    for name in [ACCESS, DEFAULT] {
        report.say("set", &set(&link, name, FULL)?);
        report.say("remove", &remove(&link, name));
    }
    report.show("link", &link)?;
    // Below a default list, a link gets none.
    let directory = report.path("directory");
    fs::create_dir(&directory)?;
    set(&directory, DEFAULT, FULL)?;
    symlink("nowhere", directory.join("link"))?;
    report.show("link below a default list", &directory.join("link"))?;
    let through = rustix::fs::setxattr(
        &link,
        ACCESS,
        &encoded(FULL)?,
        rustix::fs::XattrFlags::empty(),
    );
    report.say("through the link", &outcome(through));
    report.show("target", &target)
}

fn removal(report: &Report) -> Result<()> {
    let directory = report.path("directory");
    fs::create_dir(&directory)?;
    report.say("none", &remove(&directory, ACCESS));
    report.say("no default", &remove(&directory, DEFAULT));
    set(&directory, ACCESS, "u::7,u:1:7,g::4,m::6,o::0")?;
    set(&directory, DEFAULT, FULL)?;
    report.say("names", &names(&directory)?);
    report.show("both", &directory)?;
    report.say("access", &remove(&directory, ACCESS));
    report.show("access", &directory)?;
    report.say("names", &names(&directory)?);
    report.say("default", &remove(&directory, DEFAULT));
    report.show("default", &directory)?;
    report.say("names", &names(&directory)?);
    fs::write(directory.join("file"), "")?;
    report.show("file after the default", &directory.join("file"))?;
    // An empty list is none.
    set(&directory, DEFAULT, FULL)?;
    report.say("empty", &set(&directory, DEFAULT, "")?);
    report.show("empty", &directory)?;
    let mut room = [0; 8];
    set(&directory, ACCESS, FULL)?;
    let small = rustix::fs::lgetxattr(&directory, ACCESS, &mut room[..]);
    report.say("too little room", &outcome(small));
    let size = rustix::fs::lgetxattr_query(&directory, ACCESS)?;
    report.say("size", &size.to_string());
    Ok(())
}

/// Lists that break the rules change nothing.
fn wrong_lists(report: &Report) -> Result<()> {
    let file = report.file("file", OWNER.gid, 0o640)?;
    for list in [
        "u::7,u:1:6,g::5,o::1",
        "u::7,g::5,u:1:6,m::7,o::1",
        "u::7,u:1:6,u:1:5,g::5,m::7,o::1",
        "u::8,g::5,o::1",
        "u::7,g::5",
        "g::5,o::1",
        "u::7,u::7,g::5,o::1",
        "u::7,g::5,m::7,m::7,o::1",
        "64:1:7",
        "u::7,u:4294967294:6,g::5,m::7,o::1",
    ] {
        report.say(list, &set(&file, ACCESS, list)?);
        report.show(list, &file)?;
    }
    report.say("default on a file", &set(&file, DEFAULT, FULL)?);
    for (step, bytes) in [
        ("no bytes", &[][..]),
        ("another version", &[1, 0, 0, 0]),
        ("half an entry", &[2, 0, 0, 0, 1, 0, 7, 0]),
    ] {
        let done = rustix::fs::lsetxattr(&file, ACCESS, bytes, rustix::fs::XattrFlags::empty());
        report.say(step, &outcome(done));
        report.show(step, &file)?;
    }
    Ok(())
}

/// Who may do what by a list.
fn access(report: &Report) -> Result<()> {
    let user = |uid, gid| User { uid, gid };
    for list in [
        "u::0,u:1:6,g::4,g:100:6,m::7,o::0",
        "u::6,u:1:6,g::6,g:100:6,m::4,o::6",
        "u::6,u:1:0,g::0,g:100:0,m::7,o::6",
        "u::6,u:1:7,g::7,m::1,o::0",
    ] {
        let file = report.file(list, OWNER.gid, 0o600)?;
        let directory = report.path(&format!("{list} directory"));
        fs::create_dir(&directory)?;
        chown(&directory, Some(OWNER.uid), Some(OWNER.gid))?;
        fs::write(directory.join("inside"), "")?;
        set(&file, ACCESS, list)?;
        set(&directory, ACCESS, list)?;
        for who in [
            OWNER,
            STRANGER,
            user(9, 60),
            user(9, OTHER_GROUP),
            user(9, 9),
            user(1, OTHER_GROUP),
        ] {
            let tried = who.act(|| {
                let inside = directory.join("inside");
                [
                    ("read", File::open(&file).map(drop)),
                    ("write", File::options().append(true).open(&file).map(drop)),
                    ("search", fs::metadata(&inside).map(drop)),
                    ("list", fs::read_dir(&directory).map(drop)),
                    ("make", File::create(directory.join("made")).map(drop)),
                ]
                .map(|(what, done)| {
                    let done = outcome(done.map_err(|error| errno(&error)));
                    format!("{what} {done}")
                })
                .join(", ")
            })?;
            report.say(&format!("{list} for {}:{}", who.uid, who.gid), &tried);
        }
    }
    Ok(())
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
