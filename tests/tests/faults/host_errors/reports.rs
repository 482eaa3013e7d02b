//! Errors that a host reports late, or in the middle of a directory.

use std::ffi::CString;

use anyhow::{Context, Result, bail, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::{Driver, Error, NodeAndFile};
use gangplank_tests::faulty_fs::rules::{Call, Fault, Lasting, Rule};
use gangplank_tests::faulty_fs::{HostCache, HostWrites};
use rustix::io::Errno;

use crate::fixture::{self, Fixture, Kind, Range, Reply, errno_of, failing};

/// A test with a fixture of its own.
type Test = fn() -> Result<()>;

/// The tests by name.
pub(crate) const TESTS: [(&str, Test); 6] = [
    (
        "fsync_tells_once",
        each_open_file_gets_a_writeback_error_once,
    ),
    ("close_tells", closing_tells_a_writeback_error),
    ("fsync_fails_once", an_error_of_fsync_alone_is_told_once),
    ("flush_fails", an_error_of_close_alone_is_told),
    (
        "readdir",
        a_directory_fails_after_its_entries_and_never_ends_early,
    ),
    (
        "lookup_in_readdirplus",
        a_name_that_cannot_be_looked_up_is_listed,
    ),
];

/// The errno of the host's writeback, and the errno that close reports: the host's kernel keeps for
/// close only whether it was ENOSPC.
const WRITEBACK_ERRNOS: [(Errno, Errno); 3] = [
    (Errno::IO, Errno::IO),
    (Errno::NOSPC, Errno::NOSPC),
    (Errno::DQUOT, Errno::IO),
];

/// Writes into the host's page cache, whose writeback fails.
fn write_into_cache(fixture: &mut Fixture, file: NodeAndFile, errno: Errno) -> Result<()> {
    fixture
        .control()
        .set(failing(Call::Write, errno, Lasting::Always));
    let range = Range {
        offset: 0,
        size: 10_000,
    };
    match fixture.transfer(file, Kind::ThroughWrite, range, &[3; 10_000])? {
        Reply::Written(10_000) => Ok(()),
        _ => bail!("the host does not take the write into its page cache"),
    }
}

/// Each open file of each guest gets the error of the host's writeback at its next fsync, even if
/// others got it already, and only once. A file opened later does not get it.
fn each_open_file_gets_a_writeback_error_once() -> Result<()> {
    for (errno, _) in WRITEBACK_ERRNOS {
        let mut fixture = Fixture::new(HostCache::Pages, HostWrites::Back, 1, &[])?;
        fixture.control().put("file", b"")?;
        let writer = fixture.open("file")?;
        let reader = fixture.open("file")?;
        let mut other = fixture::guest(&fixture.daemon, 1)?;
        let others = fixture::open(&mut other, "file")?;
        write_into_cache(&mut fixture, writer, errno)?;
        let asked: [(&mut Driver, NodeAndFile, &str); 2] = [
            (&mut fixture.driver, writer, "the writer"),
            (&mut other, others, "another guest"),
        ];
        for (driver, file, who) in asked {
            let told = [(); 3].map(|()| errno_of(driver.fsync(file)));
            let told = told.into_iter().collect::<Result<Vec<_>>>()?;
            ensure!(
                told == [Some(errno), None, None],
                "three times fsync tell {who} {told:?} of {errno}"
            );
        }
        let told = errno_of(fixture.driver.fsync(reader))?;
        ensure!(told == Some(errno), "fsync tells the second file {told:?}");
        let late = fixture.open("file")?;
        let told = errno_of(fixture.driver.fsync(late))?;
        ensure!(told.is_none(), "fsync tells a file opened later {told:?}");
    }
    Ok(())
}

/// FLUSH, which a guest's close sends, writes back on the host and reports the failure. A later
/// fsync still reports it, as on the host.
fn closing_tells_a_writeback_error() -> Result<()> {
    for (errno, at_close) in WRITEBACK_ERRNOS {
        let mut fixture = Fixture::new(HostCache::Pages, HostWrites::Back, 1, &[])?;
        fixture.control().put("file", b"")?;
        let file = fixture.open("file")?;
        write_into_cache(&mut fixture, file, errno)?;
        let told = errno_of(fixture.driver.flush(file))?;
        ensure!(
            told == Some(at_close),
            "close tells {told:?} of {errno}, and the host's tells {at_close}"
        );
        let told = errno_of(fixture.driver.fsync(file))?;
        ensure!(told == Some(errno), "fsync tells {told:?} after close");
    }
    Ok(())
}

/// FSYNC itself fails: the guest's fsync fails with the same error, and the next succeeds. The
/// daemon repeats an interrupted call.
fn an_error_of_fsync_alone_is_told_once() -> Result<()> {
    let mut fixture = Fixture::new(HostCache::None, HostWrites::Through, 1, &[])?;
    fixture.control().put("file", b"")?;
    let file = fixture.open("file")?;
    for errno in [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::INTR] {
        let rule = failing(Call::Fsync, errno, Lasting::Once);
        fixture.control().set(rule);
        let told = [(); 2].map(|()| errno_of(fixture.driver.fsync(file)));
        let told = told.into_iter().collect::<Result<Vec<_>>>()?;
        let expected = Some(errno).filter(|errno| *errno != Errno::INTR);
        ensure!(
            told == [expected, None],
            "fsync tells {told:?} where the host's tells {errno}"
        );
        fixture.control().clear();
    }
    Ok(())
}

/// The host's close fails, and so does the guest's.
fn an_error_of_close_alone_is_told() -> Result<()> {
    let mut fixture = Fixture::new(HostCache::None, HostWrites::Through, 1, &[])?;
    fixture.control().put("file", b"")?;
    let file = fixture.open("file")?;
    for errno in [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::STALE] {
        let rule = failing(Call::Flush, errno, Lasting::Once);
        fixture.control().set(rule);
        let told = [(); 2].map(|()| errno_of(fixture.driver.flush(file)));
        let told = told.into_iter().collect::<Result<Vec<_>>>()?;
        ensure!(told == [Some(errno), None], "close tells {told:?}");
        fixture.control().clear();
    }
    Ok(())
}

/// Files of the directory that is listed.
const FILES: usize = 60;

/// READDIR and READDIRPLUS of a directory that fails after some entries return the entries, then
/// the error, and never an end. When the host recovers, the listing continues.
fn a_directory_fails_after_its_entries_and_never_ends_early() -> Result<()> {
    let mut fixture = Fixture::new(HostCache::None, HostWrites::Through, 1, &[])?;
    fixture.control().put_directory("dir", FILES)?;
    let node = fixture.driver.lookup(NodeId::ROOT, c"dir")?.nodeid;
    let node = NodeId::new(node);
    let all: Vec<Vec<u8>> = [".", ".."]
        .into_iter()
        .map(str::to_owned)
        .chain((0..FILES).map(|number| format!("entry-{number:04}")))
        .map(String::into_bytes)
        .collect();
    for entries in [0, 1, 2, 3, 31, FILES + 1] {
        for (plus, size) in [(false, 512), (false, 4096), (true, 1024), (true, 32_768)] {
            for errno in [Errno::IO, Errno::STALE] {
                let fault = Fault::AfterEntries {
                    entries: entries as u64,
                    errno,
                };
                let rule = Rule::new(Call::Readdir, fault).of("dir");
                fixture.control().set(rule);
                let result = list_twice(&mut fixture, node, plus, size, &all[..entries], errno);
                fixture.control().clear();
                let what = || format!("{entries} entries, {size} bytes a time, plus: {plus}");
                let (handle, offset) = result.with_context(what)?;
                let (rest, end) = list(&mut fixture.driver, (node, handle), plus, offset, size)?;
                ensure!(
                    end.is_none() && rest == all[entries..],
                    "the listing goes on with {} entries and {end:?}: {}",
                    rest.len(),
                    what()
                );
                fixture.driver.releasedir(node, handle)?;
            }
        }
    }
    Ok(())
}

/// Opens and lists a directory up to its error, and repeats the failed request.
fn list_twice(
    fixture: &mut Fixture,
    node: NodeId,
    plus: bool,
    size: u32,
    expected: &[Vec<u8>],
    errno: Errno,
) -> Result<(gangplank_fuse::Handle, u64)> {
    let handle = fixture.driver.opendir(node)?;
    let (names, end) = list(&mut fixture.driver, (node, handle), plus, 0, size)?;
    ensure!(names == expected, "{} entries are listed", names.len());
    let (offset, told) = end.context("the listing ends without an error")?;
    ensure!(told == errno, "the listing fails with {told}, not {errno}");
    let (names, end) = list(&mut fixture.driver, (node, handle), plus, offset, size)?;
    ensure!(
        names.is_empty() && end == Some((offset, errno)),
        "asked again, the listing has {} entries and {end:?}",
        names.len()
    );
    Ok((handle, offset))
}

/// Names that were listed, and the offset and errno at which that failed.
type Listed = (Vec<Vec<u8>>, Option<(u64, Errno)>);

/// The names from `offset` on, up to the end or to an error.
fn list(
    driver: &mut Driver,
    (node, handle): (NodeId, gangplank_fuse::Handle),
    plus: bool,
    mut offset: u64,
    size: u32,
) -> Result<Listed> {
    let mut all = Vec::new();
    loop {
        let part = if plus {
            driver
                .readdirplus(node, handle, offset, size)
                .map(|(names, next)| (names.into_iter().map(|(name, _)| name).collect(), next))
        } else {
            driver.readdir(node, handle, offset, size)
        };
        let (names, next): (Vec<_>, u64) = match part {
            Ok(part) => part,
            Err(Error::Errno(errno)) => return Ok((all, Some((offset, errno)))),
            Err(error) => return Err(error.into()),
        };
        if names.is_empty() {
            return Ok((all, None));
        }
        all.extend(names);
        offset = next;
    }
}

/// A name that cannot be looked up is listed by READDIRPLUS without a node, and the guest that
/// looks it up by itself gets the error.
fn a_name_that_cannot_be_looked_up_is_listed() -> Result<()> {
    let mut fixture = Fixture::new(HostCache::None, HostWrites::Through, 1, &[])?;
    fixture.control().put_directory("dir", 5)?;
    let node = NodeId::new(fixture.driver.lookup(NodeId::ROOT, c"dir")?.nodeid);
    let fault = Fault::Call {
        after: 0,
        errno: Errno::IO,
        lasting: Lasting::Always,
    };
    let name = "entry-0003";
    fixture
        .control()
        .set(Rule::new(Call::Lookup, fault).of(name));
    let handle = fixture.driver.opendir(node)?;
    let (names, _) = fixture.driver.readdirplus(node, handle, 0, 32_768)?;
    ensure!(names.len() == 7, "{} names are listed", names.len());
    let found = names.iter().find(|(found, _)| found == name.as_bytes());
    let (_, id) = found.context("the name is not listed")?;
    ensure!(id.get() == 0, "the name has a node");
    let name = CString::new(name)?;
    let told = errno_of(fixture.driver.lookup(node, &name).map(drop))?;
    ensure!(told == Some(Errno::IO), "looking it up tells {told:?}");
    Ok(())
}
