//! Tests of the mounted file system, used as by any program.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

use super::rules::{Call, Fault, Lasting, Rule};
use super::*;

/// Mounts the file system, or returns `None` with a message where that is not permitted.
fn mounted(cache: HostCache, writes: HostWrites) -> Option<FaultyFs> {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("SKIPPED: takes root and /dev/fuse");
        return None;
    }
    Some(FaultyFs::mount(cache, writes).expect("mounted"))
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("an error").raw_os_error().expect("errno")
}

fn writable(path: &Path) -> File {
    let mut options = File::options();
    options.read(true).write(true);
    options.open(path).expect("opened")
}

#[test]
fn files_and_directories_are_used_as_on_any_file_system() {
    let Some(fs) = mounted(HostCache::None, HostWrites::Through) else {
        return;
    };
    let root = fs.path();
    fs::create_dir(root.join("dir")).expect("mkdir");
    fs::write(root.join("dir/file"), b"ahoy").expect("written");
    fs::rename(root.join("dir/file"), root.join("moved")).expect("renamed");
    assert_eq!(fs::read(root.join("moved")).expect("read"), b"ahoy");
    fs::remove_dir(root.join("dir")).expect("removed");
    let mut held = writable(&root.join("moved"));
    fs::remove_file(root.join("moved")).expect("unlinked");
    held.set_len(6).expect("resized");
    let mut content = Vec::new();
    held.read_to_end(&mut content).expect("read");
    assert_eq!(content, b"ahoy\0\0");
    fs.control().put("put", b"content").expect("put");
    let names: Vec<_> = fs::read_dir(root)
        .expect("listed")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(names, ["put"]);
    assert!(fs.control().calls(Call::Unlink) == 1 && fs.control().calls(Call::Write) == 1);
}

#[test]
fn transfers_stop_before_the_faulty_byte_and_fail_at_it() {
    let Some(fs) = mounted(HostCache::None, HostWrites::Through) else {
        return;
    };
    let control = fs.control();
    control.put("file", &[7; 3 << 20]).expect("put");
    for call in [Call::Read, Call::Write] {
        control.set(Rule::new(
            call,
            Fault::AtByte {
                byte: 1_500_000,
                errno: Errno::DQUOT,
            },
        ));
    }
    let file = writable(&fs.path().join("file"));
    let mut buffer = vec![0; 3 << 20];
    assert_eq!(file.read_at(&mut buffer, 0).expect("read"), 1_500_000);
    assert_eq!(errno(file.read_at(&mut buffer, 1_500_000)), libc::EDQUOT);
    assert_eq!(file.write_at(&buffer, 0).expect("written"), 1_500_000);
    assert_eq!(errno(file.write_at(&buffer, 1_500_000)), libc::EDQUOT);
    control.clear();
    control.set(Rule::new(Call::Read, Fault::AtMost { bytes: 1000 }));
    assert_eq!(file.read_at(&mut buffer, 0).expect("read"), 1000);
}

#[test]
fn the_page_cache_gets_pages_before_the_faulty_byte_and_then_the_error() {
    let Some(fs) = mounted(HostCache::Pages, HostWrites::Through) else {
        return;
    };
    let control = fs.control();
    control.put("file", &[7; 1 << 20]).expect("put");
    let fault = Fault::AtByte {
        byte: 500_000,
        errno: Errno::IO,
    };
    control.set(Rule::new(Call::Read, fault).of("file"));
    let mut file = File::open(fs.path().join("file")).expect("opened");
    let mut content = Vec::new();
    assert_eq!(errno(file.read_to_end(&mut content)), libc::EIO);
    assert!(content.len() <= 500_000 && content.iter().all(|byte| *byte == 7));
}

#[test]
fn a_write_that_was_cached_fails_at_fsync() {
    let Some(fs) = mounted(HostCache::Pages, HostWrites::Back) else {
        return;
    };
    let fault = Fault::Call {
        after: 0,
        errno: Errno::NOSPC,
        lasting: Lasting::Always,
    };
    let mut file = File::create(fs.path().join("file")).expect("created");
    fs.control().set(Rule::new(Call::Write, fault).of("file"));
    file.write_all(&[1; 10_000]).expect("cached");
    assert_eq!(errno(file.sync_all()), libc::ENOSPC);
    file.sync_all().expect("reported once");
}

#[test]
fn a_directory_fails_after_its_entries() {
    let Some(fs) = mounted(HostCache::None, HostWrites::Through) else {
        return;
    };
    fs.control().put_directory("dir", 10).expect("put");
    let fault = Fault::AfterEntries {
        entries: 6,
        errno: Errno::IO,
    };
    fs.control().set(Rule::new(Call::Readdir, fault).of("dir"));
    let entries: Vec<_> = fs::read_dir(fs.path().join("dir"))
        .expect("opened")
        .take(8)
        .map(|entry| entry.is_ok())
        .collect();
    // Without `.` and `..`; the standard library ends after an error.
    assert_eq!(entries, [true, true, true, true, false]);
}

#[test]
fn a_trigger_is_pulled_by_looking_its_name_up() {
    let Some(fs) = mounted(HostCache::None, HostWrites::Through) else {
        return;
    };
    let control = fs.control().clone();
    fs.control().on_lookup(".make-", move |name| {
        control.put(&name[6..], b"made").expect("put");
    });
    assert!(!fs.path().join(".make-it").exists());
    assert_eq!(fs::read(fs.path().join("it")).expect("read"), b"made");
}
