//! A directory for the sockets between the processes of one daemon, which nobody else may enter.

use std::env;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

/// The directory. It goes with its content when [`PrivateDir::remove`] is called.
#[derive(Debug)]
pub struct PrivateDir(PathBuf);

impl PrivateDir {
    /// Makes the directory of this process, below the first of systemd's `RUNTIME_DIRECTORY`, the
    /// user's `XDG_RUNTIME_DIR`, `/run`, and the directory for temporary files where that works.
    ///
    /// # Errors
    /// That of the last place.
    pub fn make() -> io::Result<Self> {
        let variable = |name| env::var_os(name).map(PathBuf::from);
        // Several directories have colons between them.
        let of_unit = env::var_os("RUNTIME_DIRECTORY");
        let of_unit = of_unit.and_then(|paths| env::split_paths(&paths).next());
        let places = [
            of_unit,
            variable("XDG_RUNTIME_DIR"),
            Some("/run".into()),
            Some(env::temp_dir()),
        ];
        let mut failure = io::ErrorKind::NotFound.into();
        for place in places.into_iter().flatten() {
            match Self::make_in(&place) {
                Ok(made) => return Ok(made),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    fn make_in(place: &Path) -> io::Result<Self> {
        let path = place.join(format!("gangplankd-{}", std::process::id()));
        let make = || std::fs::DirBuilder::new().mode(0o700).create(&path);
        match make() {
            // Of a killed process that had this number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let found = std::fs::symlink_metadata(&path)?;
                let is_own = found.is_dir()
                    && found.uid() == geteuid().as_raw()
                    && found.mode().trailing_zeros() >= 6;
                if !is_own {
                    return Err(error);
                }
                std::fs::remove_dir_all(&path)?;
                make()?;
            }
            made => made?,
        }
        Ok(Self(path))
    }

    /// A path in it.
    #[must_use]
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    /// Removes it.
    pub fn remove(self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            log::warn!("cannot remove the directory {:?}: {error}", self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_has_left_is_replaced_and_what_is_anothers_is_not() {
        let place = tempfile::tempdir().unwrap();
        let first = PrivateDir::make_in(place.path()).unwrap();
        std::fs::write(first.join("socket"), "").unwrap();
        let second = PrivateDir::make_in(place.path()).unwrap();
        assert!(!second.join("socket").exists());
        assert_eq!(second.0.metadata().unwrap().mode() & 0o777, 0o700);
        let path = second.0.clone();
        second.remove();
        assert!(!path.exists());
        std::os::unix::fs::symlink("/etc", &path).unwrap();
        assert!(PrivateDir::make_in(place.path()).is_err());
    }
}
