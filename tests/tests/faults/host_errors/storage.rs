//! Storage with a server: one that calls inodes stale, has not all operations, or does not answer.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{NodeId, Operation, SetattrIn, SetattrValid};
use gangplank_tests::daemon::{Daemon, Options};
use gangplank_tests::driver::Driver;
use gangplank_tests::driver::fixture::{acceptor_of, wait_for_log};
use gangplank_tests::faulty_fs::rules::{Call, Fault, Lasting, Rule};
use gangplank_tests::faulty_fs::{FaultyFs, HostCache, HostWrites};
use gangplank_tests::tools;
use gangplank_tests::wait;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::fixture::{self, Fixture, errno_of, failing};

/// A test with a fixture of its own.
type Test = fn() -> Result<()>;

/// The tests by name.
pub(crate) const TESTS: [(&str, Test); 7] = [
    ("probed", the_storage_is_told_and_nothing_stays),
    (
        "below",
        a_mount_below_the_share_is_told_when_a_guest_comes_to_it,
    ),
    ("stale", a_stale_inode_is_looked_up_once_by_name),
    (
        "not_implemented",
        what_the_storage_lacks_stays_on_for_others,
    ),
    (
        "hidden_names",
        a_directory_is_removed_when_its_hidden_names_are_gone,
    ),
    ("hangs", a_server_that_hangs_stops_what_touches_it_alone),
    (
        "silent_at_start",
        a_directory_that_does_not_answer_ends_the_start,
    ),
];

/// Requests that the server does not answer.
const HUNG: usize = 3;

/// Limit for a request that the server answers.
const ANSWERED: Duration = Duration::from_secs(20);

fn new(arguments: &[&str]) -> Result<Fixture> {
    Fixture::new(HostCache::None, HostWrites::Through, 1, arguments)
}

fn status(control: &str) -> Result<serde_json::Value> {
    let mut command = Command::new(tools::gangplankd()?);
    let output = command
        .args(["status", "--json", "--control", control])
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// What the daemon finds out about a file system of FUSE, and that it refuses handles there.
fn the_storage_is_told_and_nothing_stays() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let control = dir.path().join("control").display().to_string();
    let fixture = new(&[&format!("--control={control}")])?;
    for words in [
        "storage: fuse.faulty from \"faulty-fs\", perhaps shared between hosts",
        "so: locks are kept on the host",
        "up to 32 threads",
    ] {
        wait_for_log(&fixture.daemon, words)?;
    }
    let storage = &status(&control)?["storage"];
    ensure!(storage["file_system"] == "fuse.faulty", "{storage}");
    ensure!(storage["reach"] == "unknown", "{storage}");
    ensure!(
        storage["abilities"]["lasting_handles"] == false,
        "{storage}"
    );
    ensure!(std::fs::read_dir(fixture.fs.path())?.next().is_none());
    let options = Options::new(fixture.fs.path()).arguments(&["--inode-file-handles=mandatory"]);
    let error = Daemon::start(&options)
        .err()
        .context("handles are accepted")?;
    let error = format!("{error:#}");
    ensure!(
        error.contains("fuse.faulty is a file system of FUSE"),
        "{error}"
    );
    Ok(())
}

fn a_mount_below_the_share_is_told_when_a_guest_comes_to_it() -> Result<()> {
    let fs = FaultyFs::mount(HostCache::None, HostWrites::Through)?;
    let share = fs
        .path()
        .parent()
        .context("a mount point in no directory")?;
    let daemon = Daemon::start(&Options::new(share))?;
    wait_for_log(&daemon, "below it: fuse.faulty on \"mount\"")?;
    wait_for_log(&daemon, "waiting for guests")?;
    let mut driver = fixture::guest(&daemon, 1)?;
    let met = "a guest has come to a mount below the share: fuse";
    ensure!(!daemon.log().contains(met), "{}", daemon.log());
    driver.lookup(NodeId::ROOT, c"mount")?;
    wait_for_log(&daemon, met)
}

fn a_stale_inode_is_looked_up_once_by_name() -> Result<()> {
    let mut fixture = new(&[])?;
    fixture.control().put("file", b"content")?;
    let node = NodeId::new(fixture.driver.lookup(NodeId::ROOT, c"file")?.nodeid);
    for errno in [Errno::STALE, Errno::NOENT] {
        fixture
            .control()
            .replace(failing(Call::Getattr, errno, Lasting::Always));
        let told = errno_of(fixture.driver.getattr(node, None))?;
        ensure!(told == Some(Errno::STALE), "{errno} is told as {told:?}");
    }
    fixture
        .control()
        .replace(failing(Call::Getattr, Errno::STALE, Lasting::Once));
    fixture.control().reset_calls();
    fixture.driver.getattr(node, None)?;
    ensure!(
        fixture.control().calls(Call::Lookup) > 0,
        "no name was asked for"
    );
    // The node has a descriptor that works.
    fixture.control().clear();
    let attributes = fixture.driver.getattr(node, None)?.attr;
    ensure!(attributes.size == 7, "{attributes:?}");
    fixture
        .control()
        .replace(failing(Call::Open, Errno::STALE, Lasting::Once));
    fixture.driver.open(node, OFlags::RDONLY)?;
    // Another file has the name now.
    fixture.control().remove("file");
    fixture.control().put("file", b"another")?;
    fixture
        .control()
        .replace(failing(Call::Getattr, Errno::STALE, Lasting::Once));
    let told = errno_of(fixture.driver.getattr(node, None))?;
    ensure!(
        told == Some(Errno::STALE),
        "another file is told as {told:?}"
    );
    Ok(())
}

/// ENOSYS of the storage would switch the operation off in the guest's kernel.
fn what_the_storage_lacks_stays_on_for_others() -> Result<()> {
    let mut fixture = new(&["--xattr"])?;
    fixture.control().put("file", b"content")?;
    let file = fixture.open("file")?;
    let calls = [
        Call::Getattr,
        Call::Setattr,
        Call::Lookup,
        Call::Open,
        Call::Read,
        Call::Write,
        Call::Mkdir,
        Call::Unlink,
        Call::Rmdir,
        Call::Rename,
        Call::Fsync,
        Call::Flush,
    ];
    for call in calls {
        fixture
            .control()
            .set(Rule::new(call, failing_always(Errno::NOSYS)));
    }
    let driver = &mut fixture.driver;
    let chmod = SetattrIn {
        valid: SetattrValid::MODE.bits(),
        mode: 0o600,
        ..SetattrIn::default()
    };
    let told = [
        errno_of(driver.getattr(file.node, None))?,
        errno_of(driver.setattr(file.node, chmod))?,
        errno_of(driver.lookup(NodeId::ROOT, c"file"))?,
        errno_of(driver.open(file.node, OFlags::RDONLY))?,
        errno_of(driver.read(file, 0, 4))?,
        errno_of(driver.write(file, 0, b"data"))?,
        errno_of(driver.mkdir(NodeId::ROOT, c"directory"))?,
        errno_of(driver.unlink(NodeId::ROOT, c"file"))?,
        errno_of(driver.rmdir(NodeId::ROOT, c"directory"))?,
    ];
    ensure!(
        told.iter().all(|errno| *errno == Some(Errno::IO)),
        "{told:?}"
    );
    for told in [errno_of(driver.fsync(file))?, errno_of(driver.flush(file))?] {
        // The host's kernel takes ENOSYS for success here.
        ensure!(told != Some(Errno::NOSYS));
    }
    Ok(())
}

const fn failing_always(errno: Errno) -> Fault {
    Fault::Call {
        after: 0,
        errno,
        lasting: Lasting::Always,
    }
}

fn a_directory_is_removed_when_its_hidden_names_are_gone() -> Result<()> {
    let mut fixture = new(&[])?;
    let dir = fixture.fs.path().join("directory");
    let hidden = dir.join(".fuse_hidden0000001a00000001");
    std::fs::create_dir(&dir)?;
    std::fs::write(&hidden, "removed")?;
    // It stays: the guest is told so.
    let told = errno_of(fixture.driver.rmdir(NodeId::ROOT, c"directory"))?;
    ensure!(told == Some(Errno::NOTEMPTY), "{told:?}");
    fixture.control().reset_calls();
    let control = fixture.control().clone();
    let removing = std::thread::spawn(move || {
        let deadline = Instant::now() + ANSWERED;
        while control.calls(Call::Rmdir) == 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::fs::remove_file(hidden)
    });
    let removed = fixture.driver.rmdir(NodeId::ROOT, c"directory");
    removing.join().ok().context("removing panicked")??;
    removed.context("the directory is empty soon after")?;
    Ok(())
}

fn a_server_that_hangs_stops_what_touches_it_alone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let control = dir.path().join("control").display().to_string();
    let mut fixture = new(&[&format!("--control={control}")])?;
    fixture.control().put("file", b"content")?;
    let file = fixture.open("file")?;
    fixture
        .control()
        .set(Rule::new(Call::Lookup, Fault::Unanswered).of("hung"));
    let begun = Instant::now();
    let hung = (0..HUNG).map(|_| {
        let name = c"hung";
        let operation = Operation::Lookup { name };
        fixture.driver.submit(1, NodeId::ROOT, operation, &[], 4096)
    });
    let hung = hung.collect::<Result<Vec<_>, _>>()?;
    // On the same ring.
    for _ in 0..50 {
        ensure!(fixture.driver.read(file, 0, 7)? == b"content");
        fixture.driver.getattr(file.node, None)?;
    }
    let told = status(&control)?;
    let guest = &told["guests"][0];
    ensure!(guest["oldest"]["opcode"] == "LOOKUP", "{guest}");
    ensure!(guest["rings"][1]["in_flight"] == HUNG, "{guest}");
    // Guests come and go meanwhile.
    let mut other = fixture::guest(&fixture.daemon, 1)?;
    other.destroy()?;
    drop(other);
    wait_for_warning(&fixture, begun)?;
    let acceptor = acceptor_of(&fixture.daemon)?;
    let reload = fixture.daemon.ask_to_reload()?;
    let said = String::from_utf8_lossy(&reload.stderr).into_owned();
    ensure!(
        said.contains("has not answered 3 of its requests"),
        "{said}\n{}",
        fixture.daemon.log()
    );
    ensure!(acceptor_of(&fixture.daemon)? == acceptor);
    ensure!(fixture.driver.read(file, 0, 7)? == b"content");
    ensure!(
        !hung
            .iter()
            .any(|ticket| finished(&mut fixture.driver, ticket))
    );
    // A session ends, too.
    fixture.driver.release(file)?;
    fixture.driver.destroy()?;
    fixture.control().clear();
    for ticket in hung {
        let told = errno_of(fixture.driver.finish_within(ticket, ANSWERED))?;
        ensure!(
            told.is_none() || told == Some(Errno::NOENT) || told == Some(Errno::IO),
            "{told:?}"
        );
    }
    let words = "the storage has answered guest";
    wait_for_log(&fixture.daemon, words).with_context(|| fixture.daemon.log())
}

fn finished(driver: &mut Driver, ticket: &gangplank_tests::driver::Ticket) -> bool {
    driver.is_finished(ticket).unwrap_or(true)
}

/// The log says so after ten seconds, and the status how old the request is.
fn wait_for_warning(fixture: &Fixture, begun: Instant) -> Result<()> {
    let words = "requests of guest 1 have waited for the storage";
    let waited = wait::until("the log has the warning", Duration::from_secs(60), || {
        Ok(fixture.daemon.log().contains(words))
    });
    waited.with_context(|| fixture.daemon.log())?;
    ensure!(begun.elapsed() >= Duration::from_secs(9), "too early");
    Ok(())
}

/// The daemon ends with a word, and does not wait for ever.
fn a_directory_that_does_not_answer_ends_the_start() -> Result<()> {
    let fs = FaultyFs::mount(HostCache::None, HostWrites::Through)?;
    fs.control()
        .set(Rule::new(Call::Opendir, Fault::Unanswered));
    let error = Daemon::start(&Options::new(fs.path())).err();
    let error = format!("{:#}", error.context("the daemon has started")?);
    ensure!(error.contains("has not answered for 10 seconds"), "{error}");
    Ok(())
}
