//! System calls that the daemon makes for each operation, counted by strace.
//!
//! Only the thread that serves the requests counts, and only between taking a request and giving back its reply: waiting
//! for a kick, reading it and signalling the reply are told apart, since they are shared by all requests of a batch.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gangplank_fuse::{
    AccessIn, GetattrIn, GetxattrIn, LinkIn, LseekIn, NodeId, Operation, SetattrIn, SetattrValid,
    StatxIn,
};
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::{Driver, NodeAndFile, Setup};
use gangplank_tests::process;
use rustix::fs::OFlags;
use rustix::process::Signal;

/// Times that each operation is repeated.
const TIMES: usize = 100;

/// How long strace may take to attach, and to write down what it saw.
const LIMIT: Duration = Duration::from_secs(20);

/// What an operation may cost: calls per operation, at the most.
const AIMS: [(&str, f64); 23] = [
    ("LOOKUP, known", 1.0),
    ("LOOKUP, missing", 1.0),
    ("GETATTR", 1.0),
    ("GETATTR, open", 1.0),
    // With a look at whether the file has changed since the last time.
    ("OPEN", 2.0),
    // That look, and some calls for the first times.
    ("OPEN and RELEASE, again and again", 1.2),
    ("READ, 4 KiB", 1.0),
    ("READ, to the end", 1.0),
    ("READ, at the end", 1.0),
    ("WRITE, 4 KiB", 1.0),
    ("LOOKUP, new", 3.0),
    ("CREATE, same user", 3.0),
    ("LINK", 2.0),
    ("READLINK", 1.0),
    ("RENAME", 1.0),
    ("UNLINK", 1.0),
    ("RMDIR", 1.0),
    ("OPENDIR", 1.0),
    ("READDIR, per name", 0.02),
    // One per name, one for every hundred names, and one for the end of the directory.
    ("READDIRPLUS, known, per name", 1.02),
    ("FLUSH", 0.0),
    ("RELEASE", 1.0),
    ("STATFS", 1.0),
];

/// strace on the daemon, detached and ended when dropped.
struct Strace {
    child: Child,
    output: PathBuf,
}

impl Strace {
    fn attach(pid: u32, dir: &Path) -> Result<Self> {
        let (output, said) = (dir.join("trace"), dir.join("said"));
        let mut command = Command::new("strace");
        command
            .args(["-f", "-s", "64", "-p", &pid.to_string(), "-o"])
            .arg(&output)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&said)?);
        let child = process::spawn(command).context("starting strace")?;
        let mut strace = Self { child, output };
        let deadline = Instant::now() + LIMIT;
        while !fs::read_to_string(&said)?.contains("attached") {
            if let Some(status) = strace.child.try_wait()? {
                bail!("strace ended with {status}: {}", fs::read_to_string(&said)?);
            }
            ensure!(Instant::now() < deadline, "strace does not attach");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(strace)
    }

    /// Detaches and returns what was seen.
    fn finish(mut self) -> Result<String> {
        process::signal(&self.child, Signal::INT)?;
        process::wait_within(&mut self.child, LIMIT)?;
        Ok(fs::read_to_string(&self.output)?)
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
    }
}

/// How often each call was made between the two marks of one section.
type Counts = BTreeMap<String, usize>;

/// Takes the trace apart: sections are enclosed by look-ups of names that say so.
fn sections(trace: &str) -> BTreeMap<usize, Counts> {
    let mut sections: BTreeMap<usize, Counts> = BTreeMap::new();
    let mut within: Option<(usize, &str)> = None;
    for line in trace.lines() {
        let Some((thread, call)) = line.split_once(' ') else {
            continue;
        };
        let call = call.trim_start();
        let marked = |mark: &str| -> Option<usize> {
            let (_, rest) = call.split_once(mark)?;
            rest.split('"').next()?.parse().ok()
        };
        if let Some(number) = marked("\"section-begin-") {
            within = Some((number, thread));
        } else if marked("\"section-end-").is_some() {
            within = None;
        } else if let Some((number, counted)) = within
            && counted == thread
            && let Some(name) = name_of(call)
        {
            *sections.entry(number).or_default().entry(name).or_default() += 1;
        }
    }
    sections
}

/// The call's name; none for the second half of a line that strace had to cut.
fn name_of(call: &str) -> Option<String> {
    let (name, arguments) = call.split_once('(')?;
    if !name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    {
        return None;
    }
    // Events count one, in 8 bytes: a kick that is read, a call that is written.
    let event = arguments.contains(r#""\1\0\0\0\0\0\0\0", 8"#);
    Some(match name {
        "epoll_wait" | "epoll_pwait" | "epoll_pwait2" | "ppoll" | "poll" | "sched_yield" => {
            "(wait)".to_owned()
        }
        "read" if event => "(kick)".to_owned(),
        "write" if event => "(call)".to_owned(),
        // Cut in two: what was read is in the other half.
        "read" if arguments.contains("<unfinished") => "(kick)".to_owned(),
        name => name.to_owned(),
    })
}

fn is_transport(name: &str) -> bool {
    name.starts_with('(')
}

/// What the allocator asks of the kernel now and then, for whichever operation happens to come.
fn is_memory(name: &str) -> bool {
    matches!(name, "mmap" | "munmap" | "mremap" | "brk" | "madvise")
}

/// How often the allocator may do so, for each operation.
const MEMORY_CALLS: f64 = 0.1;

/// One guest and the sections it has gone through.
struct Counter {
    guest: Driver,
    share: PathBuf,
    sections: Vec<(&'static str, usize)>,
}

impl Counter {
    /// Does `each` `TIMES` times and gives the result a name; `work` operations are done by the whole.
    fn section(
        &mut self,
        name: &'static str,
        work: usize,
        each: impl FnOnce(&mut Driver) -> Result<()>,
    ) -> Result<()> {
        let number = self.sections.len();
        self.mark("begin", number)?;
        each(&mut self.guest).with_context(|| name.to_owned())?;
        self.mark("end", number)?;
        self.sections.push((name, work));
        Ok(())
    }

    fn mark(&mut self, what: &str, number: usize) -> Result<()> {
        let name = CString::new(format!("section-{what}-{number}"))?;
        // The name does not exist, and that is what is answered.
        let _ = self.guest.lookup(NodeId::ROOT, &name);
        Ok(())
    }

    fn file(&mut self, name: &str) -> Result<NodeId> {
        fs::write(self.share.join(name), vec![1; 65_536])?;
        let name = CString::new(name)?;
        Ok(NodeId::new(self.guest.lookup(NodeId::ROOT, &name)?.nodeid))
    }
}

fn names(prefix: &str) -> Vec<CString> {
    (0..TIMES)
        .filter_map(|index| CString::new(format!("{prefix}{index:03}")).ok())
        .collect()
}

fn files_on_the_host(dir: &Path, prefix: &str) -> Result<()> {
    for name in names(prefix) {
        fs::write(dir.join(name.to_str()?), "x")?;
    }
    Ok(())
}

/// An operation with any payload in its reply, which is not looked at.
fn repeat(guest: &mut Driver, node: NodeId, operation: Operation<'_>) -> Result<()> {
    for _ in 0..TIMES {
        guest.call(node, operation, &[], 4096)?;
    }
    Ok(())
}

/// Reads the whole directory by one request after another.
fn list(guest: &mut Driver, dir: NodeId, plus: bool) -> Result<usize> {
    let file = guest.opendir(dir)?;
    let (mut offset, mut count) = (0, 0);
    loop {
        let (found, last) = if plus {
            let (names, last) = guest.readdirplus(dir, file, offset, 64 * 1024)?;
            (names.len(), last)
        } else {
            let (names, last) = guest.readdir(dir, file, offset, 64 * 1024)?;
            (names.len(), last)
        };
        if found == 0 {
            break;
        }
        (offset, count) = (last, count + found);
    }
    guest.releasedir(dir, file)?;
    Ok(count)
}

fn nodes(counter: &mut Counter) -> Result<()> {
    files_on_the_host(&counter.share, "new")?;
    let known = counter.file("known")?;
    let file = counter.guest.open(known, OFlags::RDWR)?;
    counter.section("LOOKUP, known", TIMES, |guest| {
        repeat(guest, NodeId::ROOT, Operation::Lookup { name: c"known" })
    })?;
    counter.section("LOOKUP, missing", TIMES, |guest| {
        for name in names("missing") {
            let _ = guest.lookup(NodeId::ROOT, &name);
        }
        Ok(())
    })?;
    let mut found = Vec::new();
    counter.section("LOOKUP, new", TIMES, |guest| {
        for name in names("new") {
            found.push(NodeId::new(guest.lookup(NodeId::ROOT, &name)?.nodeid));
        }
        Ok(())
    })?;
    counter.section("FORGET", TIMES, |guest| {
        for node in &found {
            let forget = Operation::Forget(gangplank_fuse::ForgetIn { nlookup: 1 });
            let ticket = guest.submit(1, *node, forget, &[], 0)?;
            guest.finish(ticket)?;
        }
        Ok(())
    })?;
    counter.section("GETATTR", TIMES, |guest| {
        repeat(guest, known, Operation::Getattr(GetattrIn::default()))
    })?;
    counter.section("GETATTR, open", TIMES, |guest| {
        for _ in 0..TIMES {
            guest.getattr(known, Some(file))?;
        }
        Ok(())
    })?;
    counter.section("STATX", TIMES, |guest| {
        let args = StatxIn {
            sx_mask: 0xfff,
            ..StatxIn::default()
        };
        repeat(guest, known, Operation::Statx(args))
    })?;
    let mode = SetattrIn {
        valid: SetattrValid::MODE.bits(),
        mode: 0o100_640,
        ..SetattrIn::default()
    };
    counter.section("SETATTR, mode", TIMES, |guest| {
        repeat(guest, known, Operation::Setattr(mode))
    })?;
    let size = SetattrIn {
        valid: SetattrValid::SIZE.bits(),
        size: 65_536,
        ..SetattrIn::default()
    };
    counter.section("SETATTR, size", TIMES, |guest| {
        repeat(guest, known, Operation::Setattr(size))
    })?;
    let times = SetattrValid::ATIME | SetattrValid::MTIME;
    let times = SetattrIn {
        valid: times.bits(),
        mtime: 1,
        ..SetattrIn::default()
    };
    counter.section("SETATTR, times", TIMES, |guest| {
        repeat(guest, known, Operation::Setattr(times))
    })?;
    counter.section("STATFS", TIMES, |guest| {
        repeat(guest, NodeId::ROOT, Operation::Statfs)
    })?;
    counter.section("ACCESS", TIMES, |guest| {
        for _ in 0..TIMES {
            // ENOSYS as well: then the guest does not ask again.
            let _ = guest.call(
                known,
                Operation::Access(AccessIn {
                    mask: 4,
                    padding: 0,
                }),
                &[],
                64,
            );
        }
        Ok(())
    })?;
    counter.section("GETXATTR, missing", TIMES, |guest| {
        for _ in 0..TIMES {
            let args = GetxattrIn {
                size: 256,
                padding: 0,
            };
            let _ = guest.call(
                known,
                Operation::Getxattr {
                    args,
                    name: c"user.none",
                },
                &[],
                256,
            );
        }
        Ok(())
    })?;
    counter.guest.release(NodeAndFile { node: known, file })?;
    Ok(())
}

fn data(counter: &mut Counter) -> Result<()> {
    let node = counter.file("data")?;
    let mut open = Vec::new();
    counter.section("OPEN", TIMES, |guest| {
        for _ in 0..TIMES {
            open.push(NodeAndFile {
                node,
                file: guest.open(node, OFlags::RDWR)?,
            });
        }
        Ok(())
    })?;
    counter.section("OPEN and RELEASE, again and again", TIMES, |guest| {
        for _ in 0..TIMES {
            let file = guest.open(node, OFlags::RDONLY)?;
            guest.release(NodeAndFile { node, file })?;
        }
        Ok(())
    })?;
    let first = *open.first().context("a file is open")?;
    counter.section("READ, 4 KiB", TIMES, |guest| {
        for index in 0..TIMES {
            ensure!(guest.read(first, 4096 * (index as u64 % 16), 4096)?.len() == 4096);
        }
        Ok(())
    })?;
    // The guest knows the size, so that less than asked needs no second look.
    counter.section("READ, to the end", TIMES, |guest| {
        for _ in 0..TIMES {
            ensure!(guest.read(first, 65_436, 4096)?.len() == 100);
        }
        Ok(())
    })?;
    counter.section("READ, at the end", TIMES, |guest| {
        for _ in 0..TIMES {
            ensure!(guest.read(first, 65_536, 4096)?.is_empty());
        }
        Ok(())
    })?;
    counter.section("WRITE, 4 KiB", TIMES, |guest| {
        for index in 0..TIMES {
            ensure!(guest.write(first, 4096 * (index as u64 % 16), &[7; 4096])? == 4096);
        }
        Ok(())
    })?;
    counter.section("LSEEK", TIMES, |guest| {
        let args = LseekIn {
            fh: first.file.get(),
            whence: 4,
            ..LseekIn::default()
        };
        repeat(guest, node, Operation::Lseek(args))
    })?;
    counter.section("FSYNC", TIMES, |guest| {
        for _ in 0..TIMES {
            guest.fsync(first)?;
        }
        Ok(())
    })?;
    counter.section("FLUSH", TIMES, |guest| {
        for _ in 0..TIMES {
            // ENOSYS is an answer too: the guest stops sending it.
            let _ = guest.flush(first);
        }
        Ok(())
    })?;
    counter.section("RELEASE", TIMES, |guest| {
        for one in open {
            guest.release(one)?;
        }
        Ok(())
    })
}

fn tree(counter: &mut Counter) -> Result<()> {
    let create = |guest: &mut Driver, prefix: &str| -> Result<Vec<NodeAndFile>> {
        names(prefix)
            .iter()
            .map(|name| Ok(guest.create(NodeId::ROOT, name, 0o644)?))
            .collect()
    };
    let mut made = Vec::new();
    counter.section("CREATE, same user", TIMES, |guest| {
        made = create(guest, "created")?;
        Ok(())
    })?;
    let node = made.first().context("a file was made")?.node;
    for one in made {
        counter.guest.release(one)?;
    }
    let mut others = Vec::new();
    counter.section("CREATE, other user", TIMES, |guest| {
        (guest.header.uid, guest.header.gid) = (1000, 1000);
        others = create(guest, "others")?;
        (guest.header.uid, guest.header.gid) = (0, 0);
        Ok(())
    })?;
    for one in others {
        counter.guest.release(one)?;
    }
    counter.section("MKDIR", TIMES, |guest| {
        names("dir")
            .iter()
            .try_for_each(|name| Ok(guest.mkdir(NodeId::ROOT, name).map(|_| ())?))
    })?;
    counter.section("SYMLINK", TIMES, |guest| {
        names("sym")
            .iter()
            .try_for_each(|name| Ok(guest.symlink(NodeId::ROOT, name, c"to").map(|_| ())?))
    })?;
    let link = NodeId::new(counter.guest.lookup(NodeId::ROOT, c"sym000")?.nodeid);
    counter.section("READLINK", TIMES, |guest| {
        repeat(guest, link, Operation::Readlink)
    })?;
    counter.section("LINK", TIMES, |guest| {
        names("link").iter().try_for_each(|name| {
            let args = LinkIn {
                oldnodeid: node.get(),
            };
            Ok(guest
                .call(NodeId::ROOT, Operation::Link { args, name }, &[], 512)
                .map(|_| ())?)
        })
    })?;
    let root = NodeId::ROOT;
    counter.section("RENAME", TIMES, |guest| {
        names("link")
            .iter()
            .zip(names("moved"))
            .try_for_each(|(old, new): (&CString, CString)| {
                Ok(guest.rename((root, old.as_c_str()), (root, new.as_c_str()), 0)?)
            })
    })?;
    counter.section("UNLINK", TIMES, |guest| {
        names("moved")
            .iter()
            .try_for_each(|name: &CString| Ok(guest.unlink(root, name as &CStr)?))
    })?;
    counter.section("RMDIR", TIMES, |guest| {
        names("dir")
            .iter()
            .try_for_each(|name| Ok(guest.rmdir(root, name)?))
    })
}

fn directories(counter: &mut Counter) -> Result<()> {
    let path = counter.share.join("listed");
    fs::create_dir(&path)?;
    files_on_the_host(&path, "listed")?;
    let dir = NodeId::new(counter.guest.lookup(NodeId::ROOT, c"listed")?.nodeid);
    let mut open = Vec::new();
    counter.section("OPENDIR", TIMES, |guest| {
        for _ in 0..TIMES {
            open.push(guest.opendir(dir)?);
        }
        Ok(())
    })?;
    counter.section("RELEASEDIR", TIMES, |guest| {
        for file in open {
            guest.releasedir(dir, file)?;
        }
        Ok(())
    })?;
    // The worker's buffer grows at the first, and stays.
    list(&mut counter.guest, dir, false)?;
    for (name, plus) in [
        ("READDIR, per name", false),
        ("READDIRPLUS, new, per name", true),
        ("READDIRPLUS, known, per name", true),
    ] {
        // With OPENDIR and RELEASEDIR, which are taken off below.
        counter.section(name, TIMES, |guest| {
            let count = list(guest, dir, plus)?;
            ensure!(count == TIMES || count == TIMES + 2, "{count} names");
            Ok(())
        })?;
    }
    Ok(())
}

/// What each operation costs, as a table, and whether the aims are met.
fn report(sections: &[(&'static str, usize)], counted: &BTreeMap<usize, Counts>) -> Result<()> {
    let mut table = String::from(
        "\nsystem calls per operation            calls  memory  wait  kick  call  which\n",
    );
    let mut missed = Vec::new();
    let nothing = Counts::new();
    for (number, (name, work)) in sections.iter().enumerate() {
        let counts = counted.get(&number).unwrap_or(&nothing);
        let per = |count: usize| count as f64 / *work as f64;
        let of = |name: &str| per(counts.get(name).copied().unwrap_or_default());
        let own = counts.iter().filter(|(name, _)| !is_transport(name));
        // Opening and closing the directory are operations of their own: an openat and a close.
        let around = if name.starts_with("READDIR") { 2 } else { 0 };
        let sum = |memory: bool| {
            own.clone()
                .filter(|(name, _)| is_memory(name) == memory)
                .map(|(_, count)| count)
                .sum::<usize>()
        };
        let calls = per(sum(false).saturating_sub(around));
        let memory = per(sum(true));
        let which: Vec<String> = own
            .map(|(name, count)| format!("{name} {:.2}", per(*count)))
            .collect();
        table.push_str(&format!(
            "{name:<34} {calls:>8.2} {memory:>7.2} {:>5.2} {:>5.2} {:>5.2}  {}\n",
            of("(wait)"),
            of("(kick)"),
            of("(call)"),
            which.join(", ")
        ));
        if let Some((_, aim)) = AIMS.iter().find(|(aimed, _)| aimed == name)
            && (calls > *aim + 0.005 || memory > MEMORY_CALLS)
        {
            missed.push(format!(
                "{name}: {calls:.2} where {aim} is the aim, and {memory:.2} of the allocator"
            ));
        }
    }
    // Not through the test harness, which would keep it to itself.
    std::io::stderr().write_all(table.as_bytes())?;
    ensure!(
        missed.is_empty(),
        "too many system calls:\n{}",
        missed.join("\n")
    );
    Ok(())
}

#[test]
fn operations_make_no_more_system_calls_than_aimed_at() -> Result<()> {
    if Command::new("strace")
        .arg("-V")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        writeln!(
            std::io::stderr(),
            "SKIPPED: strace is not installed, system calls are not counted"
        )?;
        return Ok(());
    }
    let fixture = Fixture::quiet(&[])?;
    let mut counter = Counter {
        guest: fixture.guest(&Setup::default())?,
        share: fixture.share(),
        sections: Vec::new(),
    };
    // What is made once and for all is not an operation's cost.
    let warm = counter.guest.create(NodeId::ROOT, c"warm", 0o644)?;
    counter.guest.release(warm)?;
    let dir = tempfile::tempdir()?;
    let strace = match Strace::attach(fixture.serving(), dir.path()) {
        Err(error) if error.to_string().contains("not permitted") => {
            writeln!(std::io::stderr(), "SKIPPED: {error}")?;
            return Ok(());
        }
        strace => strace?,
    };
    nodes(&mut counter)?;
    data(&mut counter)?;
    tree(&mut counter)?;
    directories(&mut counter)?;
    let trace = strace.finish()?;
    report(&counter.sections, &sections(&trace))?;
    drop(counter);
    fixture.survive(&[])
}
