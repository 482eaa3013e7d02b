//! The changes that one reader has not read yet.

use std::collections::{HashMap, VecDeque};

use gangplank_events::{self as events, Kind};

/// Most changes that wait for a reader. With more, it is told to look at everything.
const MAX_CHANGES: usize = 8192;

/// Most bytes of the paths of these.
const MAX_BYTES: usize = 1 << 20;

/// Changes in the order in which they came, each once.
#[derive(Debug)]
pub(super) struct Queue {
    /// Whether the reader has not had the first line.
    is_new: bool,
    /// Whether changes were lost.
    has_lost: bool,
    changes: VecDeque<(Kind, Box<[u8]>)>,
    /// The last change of each path.
    last: HashMap<Box<[u8]>, Kind>,
    bytes: usize,
}

impl Queue {
    /// The queue of a new reader, who cannot know what was before.
    pub(super) fn new() -> Self {
        Self {
            is_new: true,
            has_lost: true,
            changes: VecDeque::new(),
            last: HashMap::new(),
            bytes: 0,
        }
    }

    /// Adds a change, unless it is the last one of the same path that waits.
    pub(super) fn push(&mut self, kind: Kind, path: &[u8]) {
        if self.last.get(path) == Some(&kind) {
            return;
        }
        self.bytes += path.len();
        if self.changes.len() >= MAX_CHANGES || self.bytes > MAX_BYTES {
            self.lose();
            return;
        }
        self.last.insert(path.into(), kind);
        self.changes.push_back((kind, path.into()));
    }

    /// Changes were lost, so those that wait say nothing more.
    pub(super) fn lose(&mut self) {
        self.has_lost = true;
        self.changes.clear();
        self.last.clear();
        self.bytes = 0;
    }

    /// Whether there is nothing to read.
    pub(super) fn is_empty(&self) -> bool {
        !self.is_new && !self.has_lost && self.changes.is_empty()
    }

    /// Takes whole lines, of at most `size` bytes. Empty if the first one has more.
    pub(super) fn take(&mut self, size: usize) -> Vec<u8> {
        let mut lines = Vec::new();
        if self.is_new && events::HEADER.len() <= size {
            lines.extend(events::HEADER);
            self.is_new = false;
        }
        if self.is_new {
            return lines;
        }
        if self.has_lost {
            if lines.len() + events::RESCAN.len() > size {
                return lines;
            }
            lines.extend(events::RESCAN);
            self.has_lost = false;
        }
        while let Some((kind, path)) = self.changes.front() {
            let before = lines.len();
            events::push(&mut lines, *kind, path);
            if lines.len() > size {
                lines.truncate(before);
                break;
            }
            if let Some((kind, path)) = self.changes.pop_front() {
                self.bytes -= path.len();
                // An equal change that comes now happened after what was read.
                if self.last.get(&path) == Some(&kind) {
                    self.last.remove(&path);
                }
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(queue: &mut Queue) -> String {
        String::from_utf8(queue.take(4096)).expect("text")
    }

    #[test]
    fn a_new_reader_is_told_the_version_and_to_look_at_everything() {
        let mut queue = Queue::new();
        assert!(!queue.is_empty());
        assert_eq!(read(&mut queue), "gangplank-events 1\nrescan\n");
        assert!(queue.is_empty());
    }

    #[test]
    fn equal_changes_that_wait_are_one() {
        let mut queue = Queue::new();
        queue.take(4096);
        for kind in [Kind::Created, Kind::Modified, Kind::Modified] {
            queue.push(kind, b"a");
        }
        queue.push(Kind::Modified, b"b");
        queue.push(Kind::Deleted, b"a");
        queue.push(Kind::Created, b"a");
        assert_eq!(
            read(&mut queue),
            "created a\nmodified a\nmodified b\ndeleted a\ncreated a\n"
        );
        // What was read does not swallow what comes.
        queue.push(Kind::Created, b"a");
        assert_eq!(read(&mut queue), "created a\n");
    }

    #[test]
    fn too_many_changes_become_a_rescan() {
        let mut queue = Queue::new();
        queue.take(4096);
        for number in 0..=MAX_CHANGES {
            queue.push(Kind::Modified, number.to_string().as_bytes());
        }
        queue.push(Kind::Modified, b"after");
        assert_eq!(read(&mut queue), "rescan\nmodified after\n");
        queue.push(Kind::Modified, &vec![b'x'; MAX_BYTES + 1]);
        assert_eq!(read(&mut queue), "rescan\n");
    }

    #[test]
    fn only_whole_lines_are_read() {
        let mut queue = Queue::new();
        assert_eq!(queue.take(10), b"");
        assert_eq!(queue.take(20), events::HEADER);
        assert_eq!(queue.take(8), events::RESCAN);
        queue.push(Kind::Modified, b"abc");
        assert_eq!(queue.take(5), b"");
        assert_eq!(queue.take(13), b"modified abc\n");
    }
}
