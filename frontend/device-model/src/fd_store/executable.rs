//! The fd store's executable: a copy of this program with a name of its own.
//!
//! Programs such as pidof(1) find processes by their executable, and who ends every
//! `gangplank-frontend` must not end the fd store with them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

/// The name in `/proc/PID/exe`.
const NAME: &str = "gangplank-fd-store";

/// This program.
const SELF: &str = "/proc/self/exe";

/// Bytes that are copied at a time.
const COPY_SIZE: usize = 64 << 10;

/// The program to execute, open until the process is started.
#[derive(Debug)]
pub(super) struct Executable(Option<File>);

impl Executable {
    /// A sealed copy in memory; this program itself where the kernel permits no such copy
    /// (`vm.memfd_noexec`).
    pub(super) fn copy_of_this_program() -> Self {
        match copy() {
            Ok(copy) => Self(Some(copy)),
            Err(error) => {
                log::warn!(
                    "the process that keeps the devices has this program's name, since its \
                     executable cannot be copied: do not end it with this program: {error}"
                );
                Self(None)
            }
        }
    }

    /// The path by which this process and its children can execute it.
    pub(super) fn path(&self) -> PathBuf {
        match &self.0 {
            Some(copy) => format!("/proc/self/fd/{}", copy.as_raw_fd()).into(),
            None => SELF.into(),
        }
    }
}

fn copy() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let made = match memfd_create(NAME, flags | MemfdFlags::EXEC) {
        // Before Linux 6.3 each of them can be executed.
        Err(Errno::INVAL) => memfd_create(NAME, flags),
        made => made,
    };
    let mut copy = File::from(made?);
    let mut program = File::open(SELF)?;
    let mut bytes = vec![0; COPY_SIZE];
    loop {
        let count = program.read(&mut bytes)?;
        match bytes.get(..count) {
            None | Some([]) => break,
            Some(read) => copy.write_all(read)?,
        }
    }
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&copy, seals)?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn copy_is_this_program_by_another_name_and_cannot_be_changed() {
        let executable = Executable::copy_of_this_program();
        let path = executable.path();
        let name = fs::read_link(&path).unwrap();
        assert!(name.to_string_lossy().contains(NAME), "{name:?}");
        assert_eq!(fs::read(&path).unwrap(), fs::read(SELF).unwrap());
        let mut copy = executable.0.unwrap();
        assert!(copy.write_all(b"more").is_err());
        assert!(copy.set_len(0).is_err());
    }
}
