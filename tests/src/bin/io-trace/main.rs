//! Runs scripts of file operations in a directory and prints each system call with its result. The
//! program is static, so that the same one runs in any guest and on the host.
//!
//!     io-trace DIRECTORY ID:SCRIPT:BLOCK:SIZE...
//!
//! A look-up of a special name tells the server of the directory when a script begins and ends. At
//! the end the server clears its faults, and the program reads the file's blocks again and prints
//! them.
#![allow(clippy::print_stdout, reason = "a program for the console")]

mod entries;
mod mapped;
mod reads;
mod trace;
mod writes;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use gangplank_tests::trace::{Case, describe};
use rustix::fs::{Advice, Mode, OFlags, fadvise, open};

use trace::{Script, Trace};

/// Every script by name.
const SCRIPTS: &[(&str, Script)] = &[
    ("read", reads::read_to_end),
    ("pread", reads::read_at_odd_offsets),
    ("read-direct", reads::read_directly),
    ("read-mapped", mapped::read_mapped),
    ("copy-range", reads::copy_range),
    ("sendfile", reads::send_file),
    ("splice", reads::splice_to_pipe),
    ("write-fsync", writes::write_and_fsync),
    ("write-close", writes::write_and_close),
    ("write-close-twice", writes::write_and_close_twice),
    ("append", writes::append),
    ("write-sync", writes::write_synchronously),
    ("write-dsync", writes::write_data_synchronously),
    ("write-direct", writes::write_directly),
    ("write-mapped", mapped::write_mapped),
    ("two-writers", writes::two_writers),
    ("reopen-fsync", writes::reopen_and_fsync),
    ("syncfs", writes::write_and_syncfs),
    ("readdir", entries::list_directory),
    ("xattr", entries::get_attributes),
    ("fallocate", entries::allocate),
    ("ftruncate", entries::truncate),
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("io-trace: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let directory: PathBuf = arguments.next().context("no directory given")?.into();
    if directory == Path::new(mapped::TOUCH) {
        let file: PathBuf = arguments.next().context("no file given")?.into();
        return mapped::touch(&file);
    }
    for argument in arguments {
        let case: Case = argument.to_string_lossy().parse()?;
        let Some((_, script)) = SCRIPTS.iter().find(|(name, _)| *name == case.script) else {
            bail!("no script is called {}", case.script);
        };
        // The names never exist; their look-ups notify the server.
        let _ = directory.join(case.begin()).exists();
        let mut trace = Trace::default();
        let done = script(&directory, &case, &mut trace);
        let _ = directory.join(case.end()).exists();
        if let Err(error) = done {
            trace.text(&format!("failed: {error:#}"));
        }
        trace.print(case.id);
        print_blocks(&directory.join(case.file()), case.id);
        let _ = directory.join(case.reread()).exists();
    }
    Ok(())
}

/// The content of the file as the server of the directory has it, without caches.
fn print_blocks(file: &Path, id: u32) {
    let mut trace = Trace::default();
    match read_uncached(file) {
        Ok(content) => {
            for word in describe(&content) {
                trace.text(&format!("block = {word}"));
            }
        }
        Err(error) => trace.text(&format!("block: {error:#}")),
    }
    trace.print(id);
}

fn read_uncached(file: &Path) -> Result<Vec<u8>> {
    let opened = open(file, OFlags::RDONLY, Mode::empty())?;
    fadvise(&opened, 0, None, Advice::DontNeed)?;
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(opened), &mut content)?;
    Ok(content)
}
