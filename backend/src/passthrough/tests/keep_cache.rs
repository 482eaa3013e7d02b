//! Tests of whether a guest may keep its cached pages of a file that it opens again.

use std::time::Duration;

use gangplank_fuse::FopenFlags;

use super::fd_cache::file;
use super::*;
use crate::passthrough::ctime_stability::CtimeStability;

/// A change that a host program makes to a file.
type Change = dyn Fn(&Path);

/// Whether the reply to OPEN lets the guest keep its cached pages.
fn keeps_cache(guest: &Guest, node: NodeId) -> bool {
    let args = OpenIn {
        flags: LARGE_FILE,
        ..OpenIn::default()
    };
    let opened = guest.fs.open(node, &args).expect("opened");
    guest.release(node, Handle::new(opened.fh));
    FopenFlags::from_bits_retain(opened.open_flags).contains(FopenFlags::KEEP_CACHE)
}

fn with_stable_ctimes() -> Guest {
    let mut guest = Guest::with(Options {
        fd_budget: 1000,
        ..Options::default()
    });
    guest.fs.state.ctime_stability = CtimeStability {
        min_age: Duration::ZERO,
        min_known_secs: 0,
    };
    guest
}

fn skipped_where_changes_do_not_show(guest: &Guest, test: &str) -> bool {
    let mount = guest.fs.share.mount(guest.fs.share.root_identity.mount);
    if mount.expect("known").ctime_is_reliable() {
        return false;
    }
    eprintln!("SKIPPED: {test} needs a file system that notes every change");
    true
}

#[test]
fn a_file_that_has_not_changed_need_not_be_read_again() {
    let guest = with_stable_ctimes();
    if skipped_where_changes_do_not_show(&guest, "keeping what is cached") {
        return;
    }
    let node = file(&guest, c"file");
    assert!(!keeps_cache(&guest, node), "nothing is known yet");
    assert!(keeps_cache(&guest, node));
    let changes: [(&str, &Change); 4] = [
        ("written", &|path| {
            std::fs::write(path, b"CONTENT").expect("written")
        }),
        ("its times set back", &|path| {
            let file = File::options().write(true).open(path).expect("opened");
            let before = file
                .metadata()
                .expect("metadata")
                .modified()
                .expect("a time");
            std::fs::write(path, b"Content").expect("written");
            file.set_modified(before).expect("set");
        }),
        ("cut", &|path| {
            let file = File::options().write(true).open(path).expect("opened");
            file.set_len(3).expect("cut");
        }),
        ("its mode changed", &|path| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(path, mode).expect("changed");
        }),
    ];
    for (what, change) in changes {
        // The resolution of ctime is one clock tick.
        std::thread::sleep(Duration::from_millis(20));
        change(&guest.path("file"));
        assert!(!keeps_cache(&guest, node), "{what}");
        assert!(keeps_cache(&guest, node), "{what}, and left alone since");
    }
}

#[test]
fn what_changed_or_became_known_a_moment_ago_is_read_again() {
    let mut guest = with_stable_ctimes();
    if skipped_where_changes_do_not_show(&guest, "reading again") {
        return;
    }
    let node = file(&guest, c"file");
    guest.fs.state.ctime_stability = CtimeStability::default();
    for _ in 0..3 {
        assert!(!keeps_cache(&guest, node), "changed just now");
    }
    guest.fs.state.ctime_stability.min_age = Duration::ZERO;
    for _ in 0..3 {
        assert!(!keeps_cache(&guest, node), "known since just now");
    }
}
