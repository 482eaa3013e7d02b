//! Why a request to the share failed, and the status of NFSv3 for it.

use gangplank_driver as driver;
use nfs3_types::nfs3::nfsstat3;
use rustix::io::Errno;

/// The result of a step of a procedure.
pub type Result<T> = std::result::Result<T, Failure>;

/// Why a procedure failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The request is invalid or not permitted.
    #[error("{0}")]
    Refused(nfsstat3),
    /// The daemon has refused, or has not answered.
    #[error("asking the daemon")]
    Daemon(#[from] driver::Error),
    /// The daemon is not connected.
    #[error("the daemon is not available")]
    NoDaemon,
}

impl From<nfsstat3> for Failure {
    fn from(status: nfsstat3) -> Self {
        Self::Refused(status)
    }
}

impl Failure {
    /// The status for the client. While the daemon is away, the client is told to try again.
    #[must_use]
    pub fn status(&self) -> nfsstat3 {
        match self {
            Self::Refused(status) => *status,
            Self::NoDaemon => nfsstat3::NFS3ERR_JUKEBOX,
            Self::Daemon(error) => match error {
                driver::Error::Errno { errno, .. } => status(*errno),
                driver::Error::NoMemory { .. }
                | driver::Error::Late { .. }
                | driver::Error::Full { .. } => nfsstat3::NFS3ERR_JUKEBOX,
                error if error.is_fatal() => nfsstat3::NFS3ERR_JUKEBOX,
                _ => nfsstat3::NFS3ERR_SERVERFAULT,
            },
        }
    }

    /// Whether the daemon answered with `errno`.
    #[must_use]
    pub fn is(&self, errno: Errno) -> bool {
        matches!(self, Self::Daemon(error) if error.errno() == Some(errno))
    }

    /// Whether the connection to the daemon is lost.
    #[must_use]
    pub const fn is_daemon_lost(&self) -> bool {
        matches!(self, Self::Daemon(error) if error.is_fatal())
    }
}

/// The status for an errno of the daemon.
fn status(errno: Errno) -> nfsstat3 {
    match errno {
        Errno::PERM => nfsstat3::NFS3ERR_PERM,
        Errno::NOENT => nfsstat3::NFS3ERR_NOENT,
        Errno::NXIO => nfsstat3::NFS3ERR_NXIO,
        Errno::ACCESS => nfsstat3::NFS3ERR_ACCES,
        Errno::EXIST => nfsstat3::NFS3ERR_EXIST,
        Errno::XDEV => nfsstat3::NFS3ERR_XDEV,
        Errno::NODEV => nfsstat3::NFS3ERR_NODEV,
        Errno::NOTDIR => nfsstat3::NFS3ERR_NOTDIR,
        Errno::ISDIR => nfsstat3::NFS3ERR_ISDIR,
        Errno::INVAL | Errno::LOOP => nfsstat3::NFS3ERR_INVAL,
        Errno::FBIG => nfsstat3::NFS3ERR_FBIG,
        Errno::NOSPC => nfsstat3::NFS3ERR_NOSPC,
        Errno::ROFS => nfsstat3::NFS3ERR_ROFS,
        Errno::MLINK => nfsstat3::NFS3ERR_MLINK,
        Errno::NAMETOOLONG => nfsstat3::NFS3ERR_NAMETOOLONG,
        Errno::NOTEMPTY => nfsstat3::NFS3ERR_NOTEMPTY,
        Errno::DQUOT => nfsstat3::NFS3ERR_DQUOT,
        Errno::STALE => nfsstat3::NFS3ERR_STALE,
        Errno::NOSYS | Errno::OPNOTSUPP => nfsstat3::NFS3ERR_NOTSUPP,
        // A file that is executed, or a resource that the daemon lacks for now.
        Errno::TXTBSY | Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE => {
            nfsstat3::NFS3ERR_JUKEBOX
        }
        _ => nfsstat3::NFS3ERR_IO,
    }
}

#[cfg(test)]
mod tests {
    use gangplank_fuse::Opcode;

    use super::*;

    #[test]
    fn what_passes_by_itself_is_tried_again_and_what_does_not_is_reported() {
        let daemon = |errno| {
            let opcode = Opcode::Write;
            Failure::Daemon(driver::Error::Errno { opcode, errno }).status()
        };
        assert_eq!(Failure::NoDaemon.status(), nfsstat3::NFS3ERR_JUKEBOX);
        assert_eq!(daemon(Errno::NOSPC), nfsstat3::NFS3ERR_NOSPC);
        assert_eq!(daemon(Errno::MFILE), nfsstat3::NFS3ERR_JUKEBOX);
        assert_eq!(daemon(Errno::IO), nfsstat3::NFS3ERR_IO);
        assert_eq!(daemon(Errno::BADF), nfsstat3::NFS3ERR_IO);
    }
}
