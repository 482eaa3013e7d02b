//! `gangplank-frontend fs`: a small file client on the driver, to look into a share without a
//! guest.

pub mod actions;
pub mod args;
mod attributes;
mod change;
mod copy;
mod du;
mod error;
mod find;
mod format;
mod glob;
mod host;
mod host_target;
mod listing;
pub mod mode;
mod open_file;
mod path;
mod progress;
mod replace;
mod shell;
mod show;
#[cfg(test)]
mod tests;
pub mod time;
mod transfer;
mod tree;
mod xattr;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

pub use error::{Error, Failures, Result};
use gangplank_service::output::Output;

use self::actions::{CpArgs, FsAction, SyncArgs};
use self::args::{FsArgs, Owner};
use self::glob::Patterns;
use self::path::Share;
use self::tree::{CopyOptions, Direction};
use crate::{Caller, Driver, InitOptions, Options};

/// Runs the command. Output goes to `out`.
///
/// # Errors
/// What failed. After an error of one file, a command goes on with the others.
pub fn run(args: &FsArgs, mut out: Output) -> Result<()> {
    let options = Options {
        request_queues: Some(1),
        limit: args.limit,
        ..Options::default()
    };
    let driver = Driver::connect(&args.socket, &options).map_err(Error::Daemon)?;
    if let (Some(wanted), Some(config)) = (&args.tag, driver.config())
        && wanted.as_bytes() != config.tag()
    {
        return Err(Error::Tag {
            wanted: wanted.clone(),
            found: path::text(config.tag()),
        });
    }
    let owner = args.owner.unwrap_or_else(|| Owner {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    });
    let caller = Caller {
        uid: owner.uid,
        gid: owner.gid,
        pid: rustix::process::getpid()
            .as_raw_nonzero()
            .get()
            .unsigned_abs(),
    };
    let session = driver
        .session(&InitOptions::default())
        .map_err(Error::Daemon)?;
    let share = Share::new(session.as_caller(caller), args.follow);
    if args.no_glob {
        *share.patterns.borrow_mut() = Patterns::None;
    }
    let acted = act(&share, &args.action, &mut out);
    // Output from before an error is written all the same.
    let closed = out.close();
    acted?;
    closed?;
    drop(share);
    session.destroy().map_err(Error::Daemon)
}

fn act(share: &Share, action: &FsAction, out: &mut Output) -> Result<()> {
    let all = |words: &[OsString]| share.expand_all(bytes_of(words));
    match action {
        FsAction::Ls {
            all: hidden,
            human_readable,
            paths,
            ..
        } => share.list(&all(paths)?, *hidden, *human_readable, out),
        FsAction::Cat { paths } => each(&all(paths)?, |path| share.cat(path, out)),
        FsAction::Cp(args) => copy(share, args, out),
        FsAction::Sync(args) => sync(share, args, out),
        FsAction::Stat { paths } => each(&all(paths)?, |path| share.stat(path, out)),
        FsAction::Tree { path } => share.tree(path.as_bytes(), out),
        FsAction::Du(args) => share.usage(args, &all(&args.paths)?, out),
        FsAction::Find(args) => {
            let words: Vec<_> = bytes_of(&args.words).map(<[u8]>::to_vec).collect();
            share.find_files(&words, out)
        }
        FsAction::Write { append, path } => share.write_input(path.as_bytes(), *append),
        FsAction::Touch(args) => each(&all(&args.paths)?, |path| share.touch(args, path)),
        FsAction::Chmod {
            recursive,
            mode,
            paths,
        } => each(&all(paths)?, |path| share.chmod(mode, path, *recursive)),
        FsAction::Chown {
            recursive,
            owner,
            paths,
        } => each(&all(paths)?, |path| share.chown(*owner, path, *recursive)),
        FsAction::Xattr(action) => share.change_xattrs(action, out),
        FsAction::Mkdir { parents, paths } => {
            let paths: Vec<_> = bytes_of(paths).map(<[u8]>::to_vec).collect();
            each(&paths, |path| share.make(path, *parents))
        }
        FsAction::Rm {
            recursive,
            force,
            paths,
        } => each(&all(paths)?, |path| match share.remove(path, *recursive) {
            Err(Error::Missing(_)) if *force => Ok(()),
            removed => removed,
        }),
        FsAction::Mv { paths } => rename(share, &all(paths)?),
        FsAction::Ln {
            symbolic,
            target,
            path,
        } => share.link(target.as_bytes(), path.as_bytes(), *symbolic),
        FsAction::Df { human_readable, .. } => share.space(*human_readable, out),
        FsAction::Shell { exit_on_error } => share.shell(*exit_on_error, out),
    }
}

fn copy(share: &Share, args: &CpArgs, out: &mut Output) -> Result<()> {
    let (to, from) = match args.paths.as_slice() {
        [from @ .., to] => (to.as_bytes(), from),
        // The command line has two at least.
        [] => return Ok(()),
    };
    let mut sources = Vec::new();
    for word in from {
        match word.as_bytes() {
            word if word.starts_with(b":") => sources.extend(share.expand(word)?),
            word => sources.extend(share.expand_on_host(word)?),
        }
    }
    let options = CopyOptions {
        recursive: args.recursive || args.archive,
        preserve: args.preserve || args.archive,
        resume: args.resume,
        verbose: args.verbose,
        ..CopyOptions::default()
    };
    let is_plain = !(options.recursive || options.preserve || options.resume || options.verbose);
    if let ([from], true) = (sources.as_slice(), is_plain) {
        return share.copy(from, to);
    }
    let mut direction = None;
    let mut paths = Vec::new();
    for source in &sources {
        let (this, from, _) = Direction::of(source, to)?;
        if *direction.get_or_insert(this) != this {
            return Err(Error::Path {
                path: path::text(source),
                why: "some sources are in the share and some are not",
            });
        }
        paths.push(from.to_vec());
    }
    match direction {
        Some(direction) => {
            let to = to.strip_prefix(b":").unwrap_or(to);
            share.copy_trees(direction, &paths, to, options, out)
        }
        None => Ok(()),
    }
}

fn sync(share: &Share, args: &SyncArgs, out: &mut Output) -> Result<()> {
    let (from, to) = (args.from.as_bytes(), args.to.as_bytes());
    let (direction, from, to) = Direction::of(from, to)?;
    let options = CopyOptions {
        recursive: true,
        preserve: true,
        update: true,
        checksum: args.checksum,
        delete: args.delete,
        dry_run: args.dry_run,
        verbose: args.verbose,
        ..CopyOptions::default()
    };
    share.sync(direction, from, to, options, out)
}

fn rename(share: &Share, paths: &[Vec<u8>]) -> Result<()> {
    match paths {
        [from, to] => share.rename(from, to),
        [from @ .., to] => {
            let is_directory = share
                .find_if_there(to)?
                .is_some_and(|node| rustix::fs::FileType::Directory == node.kind());
            match is_directory {
                true => each(from, |from| share.rename(from, to)),
                false => Err(Error::NotDirectory(path::text(to))),
            }
        }
        [] => Ok(()),
    }
}

fn bytes_of(words: &[OsString]) -> impl Iterator<Item = &[u8]> {
    words.iter().map(|word| word.as_bytes())
}

fn each(paths: &[Vec<u8>], mut act: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut failures = Failures::default();
    for path in paths {
        failures.note(act(path))?;
    }
    failures.into_result()
}
