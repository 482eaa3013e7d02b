//! `gangplankd --trace` and `gangplank-frontend trace`: what a trace has of guests' requests.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::driver::fixture::{Fixture, wait_for_log};
use gangplank_tests::driver::{NodeAndFile, Setup};
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::tools;
use gangplank_tests::wait;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Limit for a record to be in the file.
const LIMIT: Duration = Duration::from_secs(30);

const F_WRLCK: u32 = 1;
const F_UNLCK: u32 = 2;

/// A place for a trace.
struct Trace {
    _dir: TempDir,
    path: PathBuf,
}

impl Trace {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("trace");
        Ok(Self { _dir: dir, path })
    }

    fn argument(&self) -> String {
        format!("--trace={}", self.path.display())
    }

    fn print(&self, options: &[&str]) -> Result<Output> {
        let mut command = Command::new(tools::frontend()?);
        command.arg("trace").args(options).arg(&self.path);
        Ok(command.output()?)
    }

    /// The objects that `--json` with `options` prints.
    fn objects(&self, options: &[&str]) -> Result<Vec<Value>> {
        let output = self.print(&[&["--json"], options].concat())?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{said}");
        objects(&output.stdout)
    }

    /// The same, when `is_there` finds what it looks for in them.
    fn wait_for(
        &self,
        options: &[&str],
        is_there: impl Fn(&[Value]) -> bool,
    ) -> Result<Vec<Value>> {
        let mut objects = Vec::new();
        let waited = wait::until("the objects are printed", LIMIT, || {
            objects = self.objects(options)?;
            Ok(is_there(&objects))
        });
        waited.with_context(|| format!("{objects:#?}"))?;
        Ok(objects)
    }
}

fn objects(lines: &[u8]) -> Result<Vec<Value>> {
    let lines = std::str::from_utf8(lines)?.lines();
    lines.map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn operations(objects: &[Value]) -> Vec<&str> {
    let names = objects.iter().filter_map(|object| object["op"].as_str());
    names.collect()
}

fn has_ended(objects: &[Value]) -> bool {
    objects
        .last()
        .is_some_and(|last| last["kind"] == "worker_ends")
}

/// The fields of `object` that `expected` has.
fn part(object: &Value, expected: &Value) -> Value {
    let names = expected
        .as_object()
        .into_iter()
        .flat_map(|fields| fields.keys());
    let fields = names.map(|name| (name.clone(), object[name].clone()));
    Value::Object(fields.collect())
}

#[test]
fn each_request_of_a_guest_is_recorded_with_its_result_and_without_data() -> Result<()> {
    let trace = Trace::new()?;
    let fixture = Fixture::quiet(&[&trace.argument()])?;
    let mut guest = fixture.guest(&Setup::default())?;
    let _ = guest.lookup(NodeId::ROOT, c"missing");
    let file = guest.create(NodeId::ROOT, c"file", 0o640)?;
    guest.write(file, 5, b"SECRET CONTENT")?;
    guest.read(file, 5, 100)?;
    guest.symlink(NodeId::ROOT, c"link", c"file")?;
    guest.release(file)?;
    guest.unlink(NodeId::ROOT, c"file")?;
    guest.forget(file.node, 1)?;
    guest.getattr(NodeId::ROOT, None)?;
    let (node, fh) = (file.node.get(), file.file.get());
    drop(guest);
    let objects = trace.wait_for(&[], has_ended)?;
    let expected = [
        json!({"kind": "worker_begins", "guest": 1}),
        json!({"op": "INIT", "errno": 0, "guest": 1, "ring": 1}),
        json!({"op": "LOOKUP", "node": 1, "args": {"name": "missing"}, "error": "ENOENT"}),
        json!({"op": "CREATE", "error": null, "result_node": node, "result_fh": fh}),
        json!({"op": "WRITE", "node": node, "args": {"fh": fh, "offset": 5, "size": 14},
               "result_bytes": 14}),
        json!({"op": "READ", "node": node, "args": {"fh": fh, "offset": 5, "size": 100},
               "result_bytes": 14}),
        json!({"op": "SYMLINK", "args": {"name": "link", "target": "file"}, "errno": 0}),
        json!({"op": "RELEASE", "node": node, "error": null}),
        json!({"op": "UNLINK", "node": 1, "args": {"name": "file"}, "errno": 0}),
        json!({"op": "FORGET", "node": node, "args": {"nlookup": 1}, "ring": 0, "reply_len": 0}),
        json!({"op": "GETATTR", "node": 1, "errno": 0}),
        json!({"kind": "worker_ends", "guest": 1}),
    ];
    // FORGET has a ring of its own, and so no place in the order.
    let is_forget = |object: &&Value| object["op"] == "FORGET";
    let (forgets, found): (Vec<_>, Vec<_>) = objects.iter().partition(is_forget);
    let (forget, rest): (Vec<_>, Vec<_>) = expected.iter().partition(is_forget);
    ensure!(
        found.len() == rest.len() && forgets.len() == 1,
        "{objects:#?}"
    );
    for (found, expected) in found.iter().zip(rest).chain(forgets.iter().zip(forget)) {
        assert_eq!(part(found, expected), *expected, "{found:#}");
    }
    let bytes = fs::read(&trace.path)?;
    let has = |word: &[u8]| bytes.windows(word.len()).any(|part| part == word);
    ensure!(has(b"missing") && !has(b"SECRET"), "file data in the trace");
    let mode = fs::metadata(&trace.path)?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "mode {mode:o}");

    assert_eq!(operations(&trace.objects(&["--errors"])?), ["LOOKUP"]);
    assert_eq!(operations(&trace.objects(&["--name", "l*"])?), ["SYMLINK"]);
    let opened = trace.objects(&["--node", &node.to_string(), "--op", "CREATE,WRITE"])?;
    assert_eq!(operations(&opened), ["CREATE", "WRITE"]);
    let summary = trace.print(&["--summary"])?;
    let summary = String::from_utf8(summary.stdout)?;
    ensure!(
        summary.ends_with("10 requests, 1 errors, 0 records lost\n"),
        "{summary}"
    );
    Ok(())
}

/// Waits until a lock of the inode is waited for (`/proc/locks`, proc(5)).
fn wait_for_waiter(inode: u64) -> Result<()> {
    let inode = format!(":{inode} ");
    let mut locks = String::new();
    let waited = wait::until("the lock is waited for", Duration::from_secs(60), || {
        locks = fs::read_to_string("/proc/locks")?;
        let mut waiters = locks.lines().filter(|line| line.contains("->"));
        Ok(waiters.any(|line| line.contains(&inode)))
    });
    waited.context(locks)
}

#[test]
fn lock_that_is_waited_for_is_recorded_when_it_is_there() -> Result<()> {
    let trace = Trace::new()?;
    let fixture = Fixture::quiet(&[&trace.argument(), "--locks=host"])?;
    let mut guest = fixture.guest(&Setup::default())?;
    let file = guest.create(NodeId::ROOT, c"file", 0o640)?;
    let other = NodeAndFile {
        file: guest.open(file.node, rustix::fs::OFlags::RDWR)?,
        ..file
    };
    guest.setlk(file, 1, F_WRLCK)?;
    let waits = guest.submit_setlkw(1, other, 2, F_WRLCK)?;
    let inode = fs::metadata(fixture.share().join("file"))?.ino();
    wait_for_waiter(inode)?;
    thread::sleep(Duration::from_millis(100));
    guest.setlk(file, 1, F_UNLCK)?;
    guest.finish(waits)?;
    let found = trace.wait_for(&["--op", "SETLKW"], |found| !found.is_empty())?;
    let args = &found[0]["args"];
    ensure!(
        found[0]["errno"] == 0 && args["type"] == "F_WRLCK",
        "{found:#?}"
    );
    ensure!(
        found[0]["duration_ns"].as_u64() > Some(50_000_000),
        "{found:#?}"
    );
    Ok(())
}

#[test]
fn guests_are_told_apart_in_one_file() -> Result<()> {
    let trace = Trace::new()?;
    let fixture = Fixture::quiet(&[&trace.argument()])?;
    let mut guests = [
        fixture.guest(&Setup::default())?,
        fixture.guest(&Setup::default())?,
    ];
    let [first, second] = &mut guests;
    for _ in 0..500 {
        first.getattr(NodeId::ROOT, None)?;
        second.lookup(NodeId::ROOT, c"none").unwrap_err();
    }
    for (number, operation) in [("1", "GETATTR"), ("2", "LOOKUP")] {
        let picked = ["--guest", number];
        let found = trace.wait_for(&picked, |found| found.len() == 502)?;
        let operations = operations(&found);
        ensure!(operations[0] == "INIT", "{operations:?}");
        ensure!(operations[1..].iter().all(|found| *found == operation));
    }
    Ok(())
}

#[test]
fn trace_goes_on_after_a_worker_is_killed_and_stays_readable() -> Result<()> {
    let trace = Trace::new()?;
    let fixture = Fixture::quiet(&[&trace.argument(), "--max-crashes=1000"])?;
    let mut guest = fixture.guest(&Setup::default())?;
    for round in 0..10 {
        let worker = Pid::from_raw(fixture.last_worker()?.try_into()?).context("a process id")?;
        thread::scope(|scope| -> Result<()> {
            let killer = scope.spawn(|| {
                thread::sleep(Duration::from_millis(fastrand::u64(1..20)));
                kill_process(worker, Signal::KILL)
            });
            while !killer.is_finished() {
                guest.lookup(NodeId::ROOT, c"a-name").unwrap_err();
            }
            guest.getattr(NodeId::ROOT, None)?;
            Ok(killer.join().expect("no panic")?)
        })?;
        wait_for_log(&fixture.daemon, &format!("death {}", round + 1))?;
    }
    guest.getattr(NodeId::ROOT, None)?;
    guest.lookup(NodeId::ROOT, c"the-last").unwrap_err();
    let deadline = Instant::now() + LIMIT;
    loop {
        // A worker that was killed within a write leaves a part of a record.
        let output = trace.print(&["--json"])?;
        let objects = objects(&output.stdout)?;
        let damaged = objects.iter().filter(|object| object["kind"] == "damaged");
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() == (damaged.count() == 0), "{said}");
        let last = objects
            .iter()
            .filter(|object| object["args"]["name"] == "the-last");
        if last.count() == 1 {
            // The beginning of one that was killed at once may be missing.
            let begins = objects
                .iter()
                .filter(|object| object["kind"] == "worker_begins");
            ensure!((2..=11).contains(&begins.count()), "{objects:#?}");
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{said}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn trace_goes_on_after_a_reload() -> Result<()> {
    let trace = Trace::new()?;
    let fixture = Fixture::quiet(&[&trace.argument()])?;
    let mut guest = fixture.guest(&Setup::default())?;
    let file = guest.create(NodeId::ROOT, c"file", 0o640)?;
    for _ in 0..2 {
        fixture.reload()?;
        guest.write(file, 0, b"more")?;
    }
    // A descriptor of the trace has not taken the place of one of the guest's.
    let content = fs::read(fixture.share().join("file"))?;
    ensure!(content == b"more", "{content:?}");
    trace.wait_for(&["--op", "WRITE"], |found| found.len() == 2)?;
    Ok(())
}

#[test]
fn fifo_is_read_while_requests_are_made() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("trace");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode)?;
    let trace = Trace { _dir: dir, path };
    let fixture = Fixture::quiet(&[&trace.argument()])?;
    let mut guest = fixture.guest(&Setup::default())?;
    let printed = tempfile::NamedTempFile::new()?;
    let mut viewer = Command::new(tools::frontend()?);
    viewer
        .arg("trace")
        .arg(&trace.path)
        .stdout(printed.reopen()?);
    let mut viewer = viewer.stdin(Stdio::null()).spawn()?;
    for _ in 0..1000 {
        guest.getattr(NodeId::ROOT, None)?;
    }
    drop(guest);
    let deadline = Instant::now() + LIMIT;
    let found = loop {
        let text = fs::read_to_string(printed.path())?;
        if text.contains("its worker ends") {
            break Ok(text);
        }
        if Instant::now() > deadline {
            break Err(text);
        }
        thread::sleep(Duration::from_millis(10));
    };
    let (status, log) = fixture.daemon.stop()?;
    let viewed = viewer.wait()?;
    let text = found.map_err(|text| anyhow::anyhow!("{text}"))?;
    ensure!(status.success(), "{log}");
    ensure!(viewed.success(), "{viewed}");
    assert_eq!(text.matches("GETATTR(node=1) = 0").count(), 1000);
    Ok(())
}

#[test]
fn file_that_is_no_trace_is_left_alone_and_the_daemon_says_so() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let foreign = dir.path().join("notes");
    fs::write(&foreign, "notes")?;
    for (path, words) in [
        (foreign.as_path(), "exists and is no trace"),
        (dir.path(), "--trace: cannot open"),
        (Path::new("/dev/null"), "is neither a file nor a FIFO"),
        (Path::new("/nonexistent/trace"), "--trace: cannot open"),
    ] {
        let mut command = Command::new(tools::gangplankd()?);
        command.arg("--shared-dir").arg(dir.path());
        command.arg("--socket-path").arg(dir.path().join("socket"));
        let output = command.arg("--trace").arg(path).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(1) && said.contains(words),
            "{path:?}: {said}"
        );
    }
    ensure!(fs::read(&foreign)? == b"notes", "the file has changed");
    Ok(())
}

#[test]
fn work_of_a_uml_guest_is_recorded() -> Result<()> {
    let trace = Trace::new()?;
    let share = tempfile::tempdir()?;
    fs::set_permissions(share.path(), fs::Permissions::from_mode(0o755))?;
    let options = daemon::Options::new(share.path()).arguments(&[&trace.argument()]);
    let daemon = Daemon::start(&options)?;
    let mut guest = Guest::boot(&Options::new(Machine::Uml).share(daemon.socket(), TAG))?;
    guest.mount(TAG, "/mnt")?;
    guest.sh("mkdir /mnt/dir && echo traced >/mnt/dir/file && mv /mnt/dir/file /mnt/dir/moved")?;
    guest.sh("cat /mnt/dir/moved && ! cat /mnt/dir/file && rm -r /mnt/dir && umount /mnt")?;
    guest.power_off()?;
    let objects = trace
        .wait_for(&[], has_ended)
        .with_context(|| daemon.log())?;
    let called = |operation: &str, name: &str| {
        objects.iter().any(|object| {
            object["op"] == operation && object["args"]["name"] == name && object["errno"] == 0
        })
    };
    for (operation, name) in [
        ("MKDIR", "dir"),
        ("CREATE", "file"),
        ("UNLINK", "moved"),
        ("RMDIR", "dir"),
    ] {
        ensure!(called(operation, name), "{operation} {name}: {objects:#?}");
    }
    ensure!(
        called("RENAME2", "file") || called("RENAME", "file"),
        "{objects:#?}"
    );
    let all = operations(&objects);
    ensure!(
        all.first() == Some(&"INIT") && all.contains(&"DESTROY"),
        "{all:?}"
    );
    ensure!(all.contains(&"WRITE") && all.contains(&"FORGET") | all.contains(&"BATCH_FORGET"));
    let lost = objects.iter().filter(|object| object["kind"] == "lost");
    ensure!(lost.count() == 0, "records were lost");
    Ok(())
}
