//! How a guest's memory is reached.

use std::fmt::Debug;
use std::io;

/// A guest's memory, by guest physical addresses. It may change at any time.
pub trait Memory: Debug {
    /// Fills `bytes` from `address` on.
    ///
    /// # Errors
    /// EFAULT if the guest has no memory there; or what reaching it fails with.
    fn read(&self, address: u64, bytes: &mut [u8]) -> io::Result<()>;

    /// Writes `bytes` at `address`. Two or four bytes that are aligned to their size arrive
    /// together.
    ///
    /// # Errors
    /// As [`Memory::read`].
    fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()>;

    /// A little-endian number of two bytes.
    ///
    /// # Errors
    /// As [`Memory::read`].
    fn read_u16(&self, address: u64) -> io::Result<u16> {
        let mut bytes = [0; 2];
        self.read(address, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use rustix::io::Errno;

    use super::*;

    /// Memory from address 0 on.
    #[derive(Debug)]
    pub(crate) struct Bytes(Mutex<Vec<u8>>);

    impl Bytes {
        pub(crate) fn new(len: usize) -> Self {
            Self(Mutex::new(vec![0; len]))
        }

        fn with<R>(
            &self,
            address: u64,
            len: usize,
            each: impl FnOnce(&mut [u8]) -> R,
        ) -> io::Result<R> {
            let mut bytes = self.0.lock().unwrap();
            let found = usize::try_from(address).ok().and_then(|at| {
                let end = at.checked_add(len)?;
                bytes.get_mut(at..end)
            });
            Ok(each(found.ok_or(Errno::FAULT)?))
        }
    }

    impl Memory for Bytes {
        fn read(&self, address: u64, bytes: &mut [u8]) -> io::Result<()> {
            self.with(address, bytes.len(), |found| bytes.copy_from_slice(found))
        }

        fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
            self.with(address, bytes.len(), |found| found.copy_from_slice(bytes))
        }
    }
}
