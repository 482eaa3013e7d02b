//! The attacks. Each makes one or more guests of its own, which end with it. It fails only if such
//! a guest cannot connect, or if the daemon does not limit it.

mod connections;
mod held;
mod memory;
mod notifications;
mod rings;

pub(crate) use held::FILE_SIZE;
pub(crate) use memory::MAX_REGIONS;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::{Driver, Setup};

/// Levels of directories that a guest remembers, and files in each of them.
const LEVELS: usize = 60;
const FILES: usize = 30;

/// Files of as many bytes as their number says, more than a guest may have descriptors.
const SIZED: usize = 600;

/// What is attacked.
pub(crate) struct Target<'a> {
    fixture: &'a Fixture,
}

impl<'a> Target<'a> {
    /// Makes the files that attacks use.
    pub(crate) fn prepare(fixture: &'a Fixture) -> Result<Self> {
        let mut dir: PathBuf = fixture.share().join("deep");
        for level in 0..LEVELS {
            fs::create_dir(&dir).with_context(|| format!("level {level}"))?;
            for file in 0..FILES {
                fs::write(dir.join(format!("f{file}")), "")?;
            }
            dir.push("directory");
        }
        let sized = fixture.share().join("sized");
        fs::create_dir(&sized)?;
        for size in 0..SIZED {
            fs::write(sized.join(format!("f{size}")), vec![0; size])?;
        }
        for name in ["open", "locked"] {
            fs::write(fixture.share().join(name), "")?;
        }
        Ok(Self { fixture })
    }

    /// A new guest. It is an error if the daemon does not serve it.
    fn guest(&self, setup: &Setup) -> Result<Driver> {
        self.fixture.guest(setup).context("a new guest")
    }
}

/// One attack.
pub(crate) struct Attack {
    /// What it does.
    pub(crate) name: &'static str,
    /// Makes it once. The number counts the rounds.
    pub(crate) run: fn(&Target<'_>, u64) -> Result<()>,
}

macro_rules! attacks {
    ($($name:literal: $run:path;)*) => {
        &[$(Attack { name: $name, run: $run }),*]
    };
}

/// The attacks of each attacker.
pub(crate) const ATTACKERS: [&[Attack]; 6] = [
    attacks! {
        "mapping huge sparse files": memory::map_sparse_files;
        "memory in 500 regions": memory::add_many_regions;
        "memory that is cut off in use": memory::cut_off;
        "memory that never comes": memory::unanswered;
    },
    attacks! {
        "nameless nodes": held::nameless_nodes;
        "nodes with another name": held::other_names;
        "open files": held::open_files;
    },
    attacks! {
        "files without descriptors": held::files_without_descriptors;
        "deep directories": held::deep_directories;
        "devices in place of files": held::devices_in_place_of_files;
    },
    attacks! {
        "a hung submount": held::hung_submount;
        "waiting locks": held::waiting_locks;
        "a full call eventfd": notifications::full_eventfd;
        "a call pipe without a reader": notifications::full_pipe;
    },
    attacks! {
        "hostile chains": rings::broken_chains;
        "requests that change": rings::changing_requests;
        "writes beyond the file size": held::beyond_the_file_size;
        "killed processes": connections::killed_processes;
    },
    attacks! {
        "a flood of complaints": rings::log_flood;
        "half a message": connections::half_messages;
        "connections by the hundred": connections::storm;
    },
];

/// The node of a name in the share's root.
fn node(guest: &mut Driver, name: &std::ffi::CStr) -> Result<NodeId> {
    let entry = guest
        .lookup(NodeId::ROOT, name)
        .with_context(|| format!("{name:?}"))?;
    Ok(NodeId::new(entry.nodeid))
}
