//! The socket guests connect to.

mod error;
mod inherit;
mod pid_file;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use gangplank_service::owned_file::{FileId, OwnedFile};
use gangplank_service::unix_listener::OwnedListener;
use rustix::fs::Mode;

pub use self::error::Error;
pub use self::inherit::inherit;
use self::pid_file::PidFile;
use crate::handover::report;

/// Who may connect where no group is named. Connecting takes write permission.
const OWNER_ONLY: Mode = Mode::from_raw_mode(0o600);

/// Where the listening socket comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Made here.
    Path {
        /// The socket's file.
        path: PathBuf,
        /// Group that may connect beside the owner.
        group: Option<String>,
    },
    /// Inherited, already listening, by descriptor number.
    Fd(i32),
}

impl Source {
    /// The socket's file, if it is made here.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path { path, .. } => Some(path),
            Self::Fd(_) => None,
        }
    }
}

/// A listening socket and, where they were made here, its files.
#[derive(Debug)]
pub struct Listening {
    /// Ready to accept.
    pub listener: UnixListener,
    /// What to remove in the end.
    pub files: Option<Files>,
}

/// The files of a socket made here. The name stays locked as long as this lives.
#[derive(Debug)]
pub struct Files {
    socket: Option<OwnedFile>,
    pid_file: PidFile,
}

impl Files {
    /// The files of a socket that the process had made before it became this program: the socket,
    /// and the pid file, still locked by `lock`.
    ///
    /// # Errors
    /// [`Error`]: the directory cannot be opened.
    pub fn inherit(path: &Path, lock: OwnedFd, socket: Option<FileId>) -> Result<Self, Error> {
        let (pid_file, directory) = pid_file::inherit(path, lock)?;
        let name = path.file_name().unwrap_or_default();
        let socket = socket.map(|id| OwnedFile::new(directory.as_fd(), name, id));
        Ok(Self {
            socket: socket.transpose().map_err(Error::Inherit)?,
            pid_file,
        })
    }

    /// The locked pid file.
    #[must_use]
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.pid_file.lock()
    }

    /// The socket.
    #[must_use]
    pub fn socket_id(&self) -> Option<FileId> {
        self.socket.as_ref().map(OwnedFile::id)
    }

    /// Writes the outcome of a reload beside the socket. A failure is logged.
    pub fn report_reload(&self, count: u32, outcome: &Result<(), String>) {
        if let Err(error) = self.pid_file.report(&report::text(count, outcome)) {
            log::warn!("cannot write the outcome of the reload beside the socket: {error}");
        }
    }

    /// Removes the socket and the pid file, unless another file has taken the name since.
    pub fn remove(self) {
        if let Some(socket) = self.socket {
            socket.remove();
        }
        self.pid_file.remove();
    }
}

/// Makes the socket at `path`, where the owner may connect and `group`, if any.
///
/// # Errors
/// [`enum@Error`], worded for the operator.
pub fn bind(path: &Path, group: Option<&str>) -> Result<Listening, Error> {
    // Looked up first: a mistyped group leaves nothing behind.
    let group = group.map(gangplank_service::group::id).transpose()?;
    let pid_file = pid_file::lock(path)?;
    let bound = match group {
        Some(group) => OwnedListener::bind_for_group(path, group),
        None => OwnedListener::bind(path, Some(OWNER_ONLY)),
    };
    match bound {
        Ok(owned) => {
            let (listener, socket) = owned.into_parts();
            Ok(Listening {
                listener,
                files: Some(Files { socket, pid_file }),
            })
        }
        Err(error) => {
            pid_file.remove();
            Err(error.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::net::UnixStream;

    use gangplank_service::unix_listener::BindError;

    use super::*;

    #[test]
    fn socket_made_is_the_owners_alone_and_goes_with_its_pid_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listening = bind(&path, None).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let pid = std::fs::read_to_string(dir.path().join("s.pid")).unwrap();
        assert_eq!(pid, format!("{}\n", std::process::id()));
        UnixStream::connect(&path).unwrap();
        listening.files.unwrap().remove();
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn socket_with_group_admits_the_group() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listening = bind(&path, Some("root")).unwrap();
        let metadata = path.metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
        assert_eq!(metadata.gid(), 0);
    }

    #[test]
    fn stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        // An older daemon's leftover, longer than our own text.
        std::fs::write(dir.path().join("s.pid"), "4294967295\nrubbish\n").unwrap();
        let listening = bind(&path, None).unwrap();
        let pid = std::fs::read_to_string(dir.path().join("s.pid")).unwrap();
        assert_eq!(pid, format!("{}\n", std::process::id()));
        UnixStream::connect(&path).unwrap();
        listening.files.unwrap().remove();
    }

    #[test]
    fn live_socket_is_refused_with_its_owner_and_leaves_no_pid_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _other = UnixListener::bind(&path).unwrap();
        let error = bind(&path, None).unwrap_err();
        assert!(
            matches!(error, Error::Bind(BindError::InUse { .. })),
            "{error}"
        );
        assert!(error.to_string().contains(&std::process::id().to_string()));
        assert_eq!(dir.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn locked_name_is_refused_with_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = bind(&path, None).unwrap();
        let error = bind(&path, None).unwrap_err();
        assert!(matches!(error, Error::Locked { .. }), "{error}");
        assert!(error.to_string().contains(&std::process::id().to_string()));
        first.files.unwrap().remove();
    }

    #[test]
    fn files_taken_over_by_another_are_left_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listening = bind(&path, None).unwrap();
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        std::fs::write(&path, "somebody else's").unwrap();
        listening.files.unwrap().remove();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "somebody else's");
        assert!(!dir.path().join("s.pid").exists());
    }

    #[test]
    fn missing_directory_or_group_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = bind(&dir.path().join("none/s"), None).unwrap_err();
        assert!(error.to_string().contains("none"), "{error}");
        let error = bind(&dir.path().join("s"), Some("no such group")).unwrap_err();
        let text = gangplank_service::error_chain(&error);
        assert!(
            text.contains("--socket-group: there is no group \"no such group\""),
            "{text}"
        );
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }
}
