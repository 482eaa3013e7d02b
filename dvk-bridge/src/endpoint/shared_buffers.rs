//! The memory that a caller shares with the called process.

use std::fmt;

use super::handle::handle;

/// Buffers with 32-bit handles. A partner's copies reach these buffers and nothing else.
///
/// On 32-bit machines a handle is the buffer's address, as the kernel's DVK needs it. Elsewhere no
/// handle is used again before all others, so a late copy for an earlier call does not reach the
/// buffers of the next.
#[derive(Default)]
pub struct SharedBuffers<'a> {
    buffers: Vec<Buffer<'a>>,
    remote: Option<&'a dyn RemoteMemory>,
}

/// Memory of another process, which is accessed by copies.
pub trait RemoteMemory: Sync {
    /// Copies from `address` until `into` is full.
    fn read(&self, address: u32, into: &mut [u8]) -> Result<(), NotShared>;

    /// Copies `from` to `address`.
    fn write(&self, address: u32, from: &[u8]) -> Result<(), NotShared>;
}

impl fmt::Debug for SharedBuffers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent")
            .field("buffers", &self.buffers)
            .field("remote", &self.remote.is_some())
            .finish()
    }
}

#[derive(Debug)]
struct Buffer<'a> {
    address: u32,
    bytes: Bytes<'a>,
}

#[derive(Debug)]
enum Bytes<'a> {
    ReadOnly(&'a [u8]),
    Writable(&'a mut [u8]),
}

impl Bytes<'_> {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::ReadOnly(bytes) => bytes,
            Self::Writable(bytes) => bytes,
        }
    }

    /// Their first byte, writable if the buffer is.
    fn first(&mut self) -> *const u8 {
        match self {
            Self::ReadOnly(bytes) => bytes.as_ptr(),
            Self::Writable(bytes) => bytes.as_mut_ptr(),
        }
    }
}

/// A copy to or from memory that is not shared, or not shared for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes at {address:#x} are not shared for this access")]
pub struct NotShared {
    /// The address.
    pub address: u32,
    /// Number of bytes.
    pub bytes: usize,
}

impl<'a> SharedBuffers<'a> {
    /// No buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// All of `memory`, by its own addresses.
    pub fn proxied(memory: &'a dyn RemoteMemory) -> Self {
        Self {
            buffers: Vec::new(),
            remote: Some(memory),
        }
    }

    /// Shares `bytes` for reading. Returns their handle for the message.
    pub fn read_only(&mut self, bytes: &'a [u8]) -> u32 {
        self.share(Bytes::ReadOnly(bytes))
    }

    /// Shares `bytes` for reading and writing. Returns their handle for the message.
    pub fn writable(&mut self, bytes: &'a mut [u8]) -> u32 {
        self.share(Bytes::Writable(bytes))
    }

    fn share(&mut self, mut bytes: Bytes<'a>) -> u32 {
        let length = bytes.as_slice().len();
        let address = handle(bytes.first(), length);
        self.buffers.push(Buffer { address, bytes });
        address
    }

    /// Does a partner's copy from a buffer at `address`.
    pub fn read(&self, address: u32, into: &mut [u8]) -> Result<(), NotShared> {
        let bytes = into.len();
        let fault = NotShared { address, bytes };
        let found = self.buffers.iter().find_map(|buffer| {
            let from = offset(buffer, address)?;
            buffer.bytes.as_slice().get(from..from.checked_add(bytes)?)
        });
        match (found, self.remote) {
            (Some(found), _) => into.copy_from_slice(found),
            (None, Some(remote)) => remote.read(address, into)?,
            (None, None) => return Err(fault),
        }
        Ok(())
    }

    /// Does a partner's copy to a buffer at `address`.
    pub fn write(&mut self, address: u32, from: &[u8]) -> Result<(), NotShared> {
        let bytes = from.len();
        let fault = NotShared { address, bytes };
        let found = self.buffers.iter_mut().find_map(|buffer| {
            let to = offset(buffer, address)?;
            match &mut buffer.bytes {
                Bytes::Writable(buffers) => buffers.get_mut(to..to.checked_add(bytes)?),
                Bytes::ReadOnly(_) => None,
            }
        });
        match (found, self.remote) {
            (Some(found), _) => found.copy_from_slice(from),
            (None, Some(remote)) => remote.write(address, from)?,
            (None, None) => return Err(fault),
        }
        Ok(())
    }
}

fn offset(buffer: &Buffer<'_>, address: u32) -> Option<usize> {
    usize::try_from(address.checked_sub(buffer.address)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_of_an_earlier_call_reaches_no_buffer_of_the_next() {
        let mut buffer = [0; 8];
        let earlier = SharedBuffers::new().writable(&mut [0; 8]);
        let mut buffers = SharedBuffers::new();
        buffers.writable(&mut buffer);
        let late = buffers.write(earlier, &[1]);
        assert!(late.is_err() || cfg!(target_pointer_width = "32"));
    }

    #[test]
    fn copies_reach_shared_buffers_only() {
        let name = *b"//\0";
        let mut buffer = [0; 8];
        let mut buffers = SharedBuffers::new();
        let name_at = buffers.read_only(&name);
        let buffer_at = buffers.writable(&mut buffer);

        let mut copy = [0; 2];
        buffers.read(name_at + 1, &mut copy).unwrap();
        assert_eq!(copy, *b"/\0");
        buffers.write(buffer_at + 6, &[1, 2]).unwrap();

        for (address, bytes) in [
            (name_at + 2, 2),
            (name_at.wrapping_sub(1), 1),
            (buffer_at + 7, 2),
            (u32::MAX, 1),
        ] {
            let refused = NotShared { address, bytes };
            assert_eq!(buffers.read(address, &mut vec![0; bytes]), Err(refused));
        }
        assert!(
            buffers.write(name_at, &[0]).is_err(),
            "shared for reading only"
        );
        assert_eq!(buffer, [0, 0, 0, 0, 0, 0, 1, 2]);
    }

    #[test]
    fn buffers_are_not_adjacent() {
        let bytes = vec![0; 3 * 4096 + 1];
        let mut buffers = SharedBuffers::new();
        let first = buffers.read_only(&bytes);
        let second = buffers.read_only(&bytes);
        if cfg!(not(target_pointer_width = "32")) {
            assert!(second - first >= 4 * 4096);
        }
        let end = first + u32::try_from(bytes.len()).unwrap();
        assert!(buffers.read(end, &mut [0]).is_err() || cfg!(target_pointer_width = "32"));
    }
}
