//! `gangplank-frontend fs`: a small file client on the driver, to look into a share without a
//! guest.

pub mod args;
mod change;
mod copy;
mod error;
mod format;
mod host;
mod host_target;
mod listing;
mod open_file;
mod path;
mod replace;
mod show;
#[cfg(test)]
mod tests;
mod transfer;

pub use error::{Error, Failures, Result};
use gangplank_service::output::Output;

use self::args::{FsAction, FsArgs, Owner};
use self::path::Share;
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
    let share = Share {
        session: session.as_caller(caller),
        follow: args.follow,
    };
    let acted = act(&share, &args.action, &mut out);
    // Output from before an error is written all the same.
    let closed = out.close();
    acted?;
    closed?;
    drop(share);
    session.destroy().map_err(Error::Daemon)
}

fn act(share: &Share, action: &FsAction, out: &mut Output) -> Result<()> {
    match action {
        FsAction::Ls { all, paths } => share.list(paths, *all, out),
        FsAction::Cat { paths } => each(paths, |path| share.cat(path, out)),
        FsAction::Cp { from, to } => share.copy(from, to),
        FsAction::Stat { paths } => each(paths, |path| share.stat(path, out)),
        FsAction::Tree { path } => share.tree(path, out),
        FsAction::Write { append, path } => share.write_input(path, *append),
        FsAction::Mkdir { parents, paths } => each(paths, |path| share.make(path, *parents)),
        FsAction::Rm { recursive, paths } => each(paths, |path| share.remove(path, *recursive)),
        FsAction::Mv { from, to } => share.rename(from, to),
        FsAction::Ln {
            symbolic,
            target,
            path,
        } => share.link(target, path, *symbolic),
        FsAction::Df => share.space(out),
    }
}

fn each(paths: &[String], mut act: impl FnMut(&str) -> Result<()>) -> Result<()> {
    let mut failures = Failures::default();
    for path in paths {
        failures.note(act(path))?;
    }
    failures.into_result()
}
