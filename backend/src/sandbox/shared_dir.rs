//! The shared directory as the operator knows it. Errors of processes name it by that path, which
//! is another one in their own root.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use super::error::Error;

/// The directory, and the user that the daemon was started as.
#[derive(Clone, Debug)]
pub(super) struct SharedDir {
    path: PathBuf,
    /// Outside of a user namespace.
    user: u32,
}

impl SharedDir {
    /// The calling process must still be in the operator's namespaces.
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            user: rustix::process::geteuid().as_raw(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it by its path, `O_PATH`.
    pub(super) fn open(&self) -> Result<OwnedFd, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, &self.path, flags, Mode::empty()).map_err(self.cannot("open"))
    }

    /// The error of a call that was made to do `what`, such as `open`, to the directory.
    pub(super) fn cannot<E: Into<io::Error>>(&self, what: &'static str) -> impl Fn(E) -> Error {
        move |error| Error::SharedDir {
            what,
            path: self.path.clone(),
            user: self.user,
            source: error.into(),
        }
    }

    /// The error of a descriptor of it that cannot be opened again.
    pub(super) fn cannot_reopen(&self, error: impl Into<io::Error>) -> Error {
        Error::Reopen {
            path: self.path.clone(),
            user: self.user,
            source: error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use gangplank_service::error_chain;

    use super::*;

    #[test]
    fn errors_name_the_directory_and_say_what_to_do() {
        let share = SharedDir::new(Path::new("/srv/home"));
        let user = share.user;
        for (error, hint) in [
            (libc::EACCES, format!("as user {user} (let that user read")),
            (libc::EPERM, format!("as user {user} (let that user read")),
            (libc::EMFILE, "--rlimit-nofile".to_owned()),
            (libc::EIO, "(see whether it can be listed".to_owned()),
        ] {
            let cause = || io::Error::from_raw_os_error(error);
            let texts = [
                error_chain(&share.cannot("enter")(cause())).to_string(),
                error_chain(&share.cannot_reopen(cause())).to_string(),
            ];
            for text in texts {
                assert!(text.contains("shared directory \"/srv/home\""), "{text}");
                assert!(text.contains(&hint), "{text}");
                assert!(text.ends_with(&format!(": {}", cause())), "{text}");
            }
        }
    }
}
