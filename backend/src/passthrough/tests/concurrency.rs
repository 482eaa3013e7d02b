//! Several workers perform random operations at once, on few descriptors.

use std::collections::HashMap;

use gangplank_fuse::dir::{DirentWriter, Direntplusses};

use super::*;

const ROOT: NodeId = NodeId::ROOT;

/// One worker, with the lookups it has to forget in the end.
struct Worker<'a> {
    guest: &'a Guest,
    lookups: HashMap<NodeId, u64>,
    random: u64,
}

impl Worker<'_> {
    fn random(&mut self, below: u64) -> u64 {
        // xorshift64: any sequence is fine if each worker has its own.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn note(&mut self, entry: &EntryOut) -> NodeId {
        let node = NodeId::new(entry.nodeid);
        *self.lookups.entry(node).or_default() += 1;
        node
    }

    fn some_node(&mut self) -> NodeId {
        let count = self.lookups.len() as u64;
        if count == 0 {
            return ROOT;
        }
        let n = usize::try_from(self.random(count)).expect("small");
        *self.lookups.keys().nth(n).expect("below the count")
    }

    fn list(&mut self) {
        let Ok(open) = self.guest.fs.opendir(ROOT, &OpenIn::default()) else {
            return;
        };
        let mut buffer = vec![0; 8192];
        let mut entries = DirentWriter::new(&mut buffer);
        let args = ReadIn {
            fh: open.fh,
            ..ReadIn::default()
        };
        let listed = self.guest.fs.readdirplus(ROOT, &args, &mut entries);
        let written = entries.written();
        if listed.is_ok() {
            for entry in Direntplusses::new(&buffer[..written]) {
                let entry = entry.expect("decoded");
                if entry.entry_out.nodeid != 0 {
                    self.note(&entry.entry_out);
                }
            }
        }
        self.guest.release(ROOT, Handle::new(open.fh));
    }

    fn step(&mut self) {
        let name = c_string(format!("name{}", self.random(40)));
        let other = c_string(format!("name{}", self.random(40)));
        let guest = self.guest;
        match self.random(10) {
            0 | 1 => {
                if let Ok(entry) = guest.lookup(ROOT, &name) {
                    self.note(&entry);
                }
            }
            2 => {
                if let Ok((entry, open)) = guest.create(ROOT, &name, libc::O_RDWR) {
                    let node = self.note(&entry);
                    guest
                        .write(node, Handle::new(open.fh), 0, b"content")
                        .expect("written");
                    guest.release(node, Handle::new(open.fh));
                }
            }
            3 => drop(guest.fs.unlink(ROOT, checked(&name))),
            4 => {
                let (from, to) = (checked(&name), checked(&other));
                drop(guest.fs.rename(&root_creator(), ROOT, from, ROOT, to, 0));
            }
            5 => {
                let node = self.some_node();
                if let Ok(entry) = guest.fs.link(node, ROOT, checked(&name)) {
                    assert_eq!(self.note(&entry), node);
                }
            }
            6 => {
                let node = self.some_node();
                if let Ok(handle) = guest.open(node, libc::O_RDONLY) {
                    let mut buffer = [0; 16];
                    let read = guest.read(node, handle, 0, &mut buffer).expect("read");
                    assert!(read == 0 || &buffer[..read] == b"content");
                    guest.release(node, handle);
                }
            }
            7 => {
                let node = self.some_node();
                drop(guest.fs.getattr(node, None));
            }
            8 => {
                let node = self.some_node();
                if let Some(count) = self.lookups.remove(&node) {
                    guest.fs.forget(node, count);
                }
            }
            _ => self.list(),
        }
    }
}

fn crowd(can_open_by_handle: bool) {
    let options = Options {
        fd_budget: 40,
        ..Options::default()
    };
    let abilities = Abilities {
        can_open_by_handle,
        ..abilities()
    };
    let directory = Arc::new(tempfile::tempdir().expect("a directory"));
    let guest = Guest::able(directory, options, abilities);
    std::thread::scope(|scope| {
        for seed in 1..5 {
            let guest = &guest;
            scope.spawn(move || {
                let mut worker = Worker {
                    guest,
                    lookups: HashMap::new(),
                    random: 0x9e37_79b9_7f4a_7c15u64.rotate_left(seed),
                };
                for _ in 0..2000 {
                    worker.step();
                }
                for (node, count) in worker.lookups {
                    guest.fs.forget(node, count);
                }
            });
        }
    });
    assert_eq!((guest.fs.held_inodes(), guest.fs.open_files()), (0, 0));
    assert_eq!(guest.fs.share.held_descriptors(), 0);
}

#[test]
fn nothing_is_left_when_all_is_given_back() {
    crowd(is_root());
}

#[test]
fn nothing_is_left_when_all_is_given_back_without_handles() {
    crowd(false);
}
