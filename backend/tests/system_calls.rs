//! How many system calls each operation takes, counted by strace.
//!
//! The test runs itself under strace: the traced half calls the file system's operations, each between two calls
//! that mark it in the trace; the other half counts what is between the marks.
#![allow(unsafe_code)] // buffers of the test's own stand in for guest memory

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fmt::Write as _;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use gangplank_backend::passthrough::{Abilities, Options, PassthroughFs, Share};
use gangplank_backend::session::{Caller, Creator, FileSystem, Name};
use gangplank_backend::sys::buffers::Segments;
use gangplank_fuse::dir::DirentWriter;
use gangplank_fuse::{
    CreateIn, Handle, InitFlags, NodeId, OpenIn, ReadIn, ReleaseIn, SetattrIn, SetattrValid,
    WriteIn,
};

/// Where the traced half finds its directory.
const DIRECTORY: &str = "GANGPLANK_COUNTED_DIRECTORY";

/// Marks begin with this, in the path of a call that fails.
const MARK: &str = "/mark/";

/// The most system calls that an operation may take.
const LIMITS: [(&str, usize); 23] = [
    ("LOOKUP of a new name", 3),
    ("LOOKUP of a known name", 1),
    ("LOOKUP of a missing name", 1),
    ("FORGET of the last look-up", 1),
    ("GETATTR", 1),
    ("SETATTR of the mode", 2),
    ("OPEN", 1),
    ("READ", 1),
    ("READ at the end", 1),
    ("WRITE", 1),
    ("FLUSH", 0),
    ("RELEASE", 1),
    ("CREATE", 3),
    ("MKDIR", 3),
    ("SYMLINK", 3),
    ("RENAME", 1),
    ("LINK", 2),
    ("UNLINK", 1),
    ("RMDIR", 1),
    ("STATFS", 1),
    ("OPENDIR", 1),
    ("READDIRPLUS of 100 known names", 101),
    ("READDIRPLUS of 100 new names", 301),
];

#[test]
#[allow(clippy::print_stdout)] // the table is for whoever asks for it with --nocapture
fn operations_take_few_system_calls() {
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("SKIPPED: operations_take_few_system_calls needs strace");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let trace = tempfile::NamedTempFile::new().expect("a file");
    let output = Command::new("strace")
        .args(["-f", "-o"])
        .arg(trace.path())
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", "traced", "--ignored"])
        .env(DIRECTORY, directory.path())
        .output()
        .expect("strace runs");
    let trace = std::fs::read_to_string(trace.path()).expect("a trace");
    if trace.is_empty() {
        eprintln!("SKIPPED: operations_take_few_system_calls may not trace here");
        return;
    }
    assert!(output.status.success(), "{output:?}");
    let counted = count(&trace);
    let mut table = String::new();
    let mut over = Vec::new();
    for (operation, limit) in LIMITS {
        let calls = counted.get(operation).expect(operation);
        let total: usize = calls.values().sum();
        writeln!(table, "{operation:32} {total:4}  {calls:?}").expect("written");
        if total > limit {
            over.push(operation);
        }
    }
    println!("{table}");
    assert!(over.is_empty(), "over the limit: {over:?}\n{table}");
}

/// The system calls of the marking thread, by operation and name.
fn count(trace: &str) -> BTreeMap<&str, BTreeMap<&str, usize>> {
    let mut counted: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    let mut current: Option<(&str, &str)> = None;
    for line in trace.lines() {
        let Some((thread, call)) = line.split_once(char::is_whitespace) else {
            continue;
        };
        if let Some((_, rest)) = call.split_once(MARK) {
            let operation = rest
                .split_once('"')
                .map_or(rest, |(operation, _)| operation);
            current = match current {
                Some(_) => None,
                None => Some((thread, operation)),
            };
            if let Some((_, operation)) = current {
                counted.entry(operation).or_default();
            }
            continue;
        }
        let Some((marking, operation)) = current else {
            continue;
        };
        let Some((name, _)) = call.trim_start().split_once('(') else {
            continue;
        };
        // Memory comes from the kernel in large pieces, now and then; and std looks at descriptors before it closes
        // them, in debug builds alone.
        let memory = ["brk", "madvise", "mmap", "mprotect", "mremap", "munmap"].contains(&name);
        let debug = cfg!(debug_assertions) && name == "fcntl";
        if thread == marking && !memory && !debug {
            *counted
                .entry(operation)
                .or_default()
                .entry(name)
                .or_default() += 1;
        }
    }
    counted
}

/// Calls `operation` between two marks.
fn marked<T>(name: &str, operation: impl FnOnce() -> T) -> T {
    let path = CString::new(format!("{MARK}{name}")).expect("no NUL");
    let mark = || {
        let _ = rustix::fs::access(path.as_c_str(), rustix::fs::Access::EXISTS);
    };
    mark();
    let result = operation();
    mark();
    result
}

fn checked(name: &CStr) -> Name<'_> {
    Name::new(name).expect("a valid name")
}

fn read(fs: &PassthroughFs, node: NodeId, handle: Handle, offset: u64, buffer: &mut [u8]) -> usize {
    let args = ReadIn {
        fh: handle.get(),
        offset,
        size: u32::try_from(buffer.len()).expect("small"),
        ..ReadIn::default()
    };
    let mut segments = Segments::with_capacity(1);
    assert!(segments.push_slice(buffer));
    // SAFETY: the buffer is borrowed mutably for the whole function.
    let mut writer = unsafe { segments.writer() };
    marked(
        if offset == 0 {
            "READ"
        } else {
            "READ at the end"
        },
        || fs.read(node, &args, &mut writer),
    )
    .expect("read")
}

fn write(fs: &PassthroughFs, node: NodeId, handle: Handle, buffer: &mut [u8]) {
    let args = WriteIn {
        fh: handle.get(),
        size: u32::try_from(buffer.len()).expect("small"),
        ..WriteIn::default()
    };
    let mut segments = Segments::with_capacity(1);
    assert!(segments.push_slice(buffer));
    // SAFETY: the buffer is borrowed mutably for the whole function.
    let mut reader = unsafe { segments.reader() };
    marked("WRITE", || fs.write(node, &args, &mut reader)).expect("written");
}

fn list(fs: &PassthroughFs, directory: NodeId, name: &str) -> Vec<NodeId> {
    let open = fs.opendir(directory, &OpenIn::default()).expect("opened");
    let mut buffer = vec![0; 65_536];
    let mut entries = DirentWriter::new(&mut buffer);
    let args = ReadIn {
        fh: open.fh,
        ..ReadIn::default()
    };
    marked(name, || fs.readdirplus(directory, &args, &mut entries)).expect("listed");
    let written = entries.written();
    gangplank_fuse::dir::Direntplusses::new(&buffer[..written])
        .map(|entry| NodeId::new(entry.expect("decoded").entry_out.nodeid))
        .filter(|node| node.get() != 0)
        .collect()
}

#[test]
#[ignore = "the traced half of operations_take_few_system_calls"]
fn traced() {
    let directory = std::env::var_os(DIRECTORY).expect("run by the other half");
    let directory = Path::new(&directory);
    let open = |path: &Path| OwnedFd::from(File::open(path).expect("opened"));
    let abilities = Abilities {
        can_change_credentials: false,
        can_open_by_handle: false,
    };
    let options = Options {
        fd_budget: 10_000,
        ..Options::default()
    };
    let share = Share::new(
        open(directory),
        open("/proc/self/fd".as_ref()),
        options,
        abilities,
    );
    let fs = PassthroughFs::new(share.expect("shared"));
    fs.init(InitFlags::all());
    let creator = Creator {
        caller: Caller {
            uid: 0,
            gid: 0,
            pid: 1,
        },
        umask: 0o022,
        groups: None,
    };
    std::fs::write(directory.join("file"), [1; 100]).expect("written");
    std::fs::create_dir(directory.join("names")).expect("made");
    for n in 0..100 {
        std::fs::write(directory.join(format!("names/{n}")), b"").expect("written");
    }
    // What each thread and table does once, it has done.
    let root = NodeId::ROOT;
    let warm = NodeId::new(
        fs.mkdir(&creator, root, checked(c"warm"), 0o755)
            .expect("made")
            .nodeid,
    );
    fs.create(
        &creator,
        warm,
        checked(c"file"),
        &CreateIn {
            mode: 0o644,
            flags: 2,
            ..CreateIn::default()
        },
    )
    .expect("made");

    let file = marked("LOOKUP of a new name", || fs.lookup(root, checked(c"file"))).expect("found");
    marked("LOOKUP of a known name", || {
        fs.lookup(root, checked(c"file"))
    })
    .expect("found");
    let missing = marked("LOOKUP of a missing name", || {
        fs.lookup(root, checked(c"missing"))
    });
    assert!(missing.is_err());
    let node = NodeId::new(file.nodeid);
    marked("GETATTR", || fs.getattr(node, None)).expect("attributes");
    let mode = SetattrIn {
        valid: SetattrValid::MODE.bits(),
        mode: 0o600,
        ..SetattrIn::default()
    };
    marked("SETATTR of the mode", || {
        fs.setattr(creator.caller, node, &mode)
    })
    .expect("set");
    let args = OpenIn {
        flags: 2,
        open_flags: 0,
    };
    let handle = Handle::new(marked("OPEN", || fs.open(node, &args)).expect("opened").fh);
    let mut buffer = [0; 4096];
    assert_eq!(read(&fs, node, handle, 0, &mut buffer), 100);
    assert_eq!(read(&fs, node, handle, 100, &mut buffer), 0);
    write(&fs, node, handle, &mut buffer);
    let flushed = marked("FLUSH", || fs.flush(node, handle, 1));
    assert_eq!(
        flushed.err().and_then(|error| error.raw_os_error()),
        Some(libc::ENOSYS)
    );
    let args = ReleaseIn {
        fh: handle.get(),
        ..ReleaseIn::default()
    };
    marked("RELEASE", || fs.release(node, &args)).expect("closed");
    marked("STATFS", || fs.statfs(node)).expect("figures");
    marked("FORGET of the last look-up", || fs.forget(node, 2));

    let args = CreateIn {
        flags: 2,
        mode: 0o644,
        ..CreateIn::default()
    };
    let (made, _) = marked("CREATE", || {
        fs.create(&creator, root, checked(c"made"), &args)
    })
    .expect("made");
    marked("MKDIR", || {
        fs.mkdir(&creator, root, checked(c"directory"), 0o755)
    })
    .expect("made");
    marked("SYMLINK", || {
        fs.symlink(&creator, root, checked(c"link"), c"target")
    })
    .expect("made");
    let (from, to) = (checked(c"made"), checked(c"renamed"));
    marked("RENAME", || fs.rename(&creator, root, from, root, to, 0)).expect("renamed");
    marked("LINK", || fs.link(NodeId::new(made.nodeid), root, from)).expect("linked");
    marked("UNLINK", || fs.unlink(root, from)).expect("removed");
    marked("RMDIR", || fs.rmdir(root, checked(c"directory"))).expect("removed");

    let names = NodeId::new(fs.lookup(root, checked(c"names")).expect("found").nodeid);
    marked("OPENDIR", || fs.opendir(names, &OpenIn::default())).expect("opened");
    assert_eq!(list(&fs, names, "READDIRPLUS of 100 new names").len(), 100);
    assert_eq!(
        list(&fs, names, "READDIRPLUS of 100 known names").len(),
        100
    );
}
