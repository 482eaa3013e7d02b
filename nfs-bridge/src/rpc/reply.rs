//! The reply to a call, and how a stream sends it.
//!
//! The data of a READ stays in the memory that the daemon has read it into until the socket takes
//! it. So it is copied twice on its way: from the host's page cache, and into the socket.

use std::borrow::Cow;
use std::io::{self, ErrorKind, IoSlice};
use std::net::TcpStream;

use gangplank_driver::Data;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use vm_memory::WriteVolatile;

use super::record;
use crate::xdr::padding;

/// A reply.
#[derive(Debug, Default)]
pub struct Reply {
    /// The header, and the results without the data behind them.
    pub bytes: Vec<u8>,
    /// File data behind the bytes, which the reply pads with zeros.
    pub data: Option<Data>,
}

impl From<Vec<u8>> for Reply {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, data: None }
    }
}

impl Reply {
    /// Bytes of the whole reply.
    #[must_use]
    pub fn len(&self) -> usize {
        let data = self.data.as_ref().map_or(0, Data::len);
        self.bytes.len() + data + padding(data)
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole reply.
    #[must_use]
    pub fn to_bytes(&self) -> Cow<'_, [u8]> {
        match &self.data {
            None => Cow::Borrowed(&self.bytes),
            Some(_) => Cow::Owned(self.append_to(Vec::with_capacity(self.len()))),
        }
    }

    /// The whole reply as a record of one fragment.
    #[must_use]
    pub fn to_record(&self) -> Vec<u8> {
        self.append_to(record::header(self.len()).to_vec())
    }

    fn append_to(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.extend_from_slice(&self.bytes);
        if let Some(data) = &self.data {
            let begin = bytes.len();
            bytes.resize(begin + data.len() + padding(data.len()), 0);
            let place = bytes.get_mut(begin..begin + data.len());
            data.bytes().copy_to(place.unwrap_or_default());
        }
        bytes
    }

    /// Sends it as a record of one fragment.
    ///
    /// # Errors
    /// The socket's. A part may have been sent.
    pub fn send(&self, stream: &TcpStream) -> io::Result<()> {
        let header = record::header(self.len());
        let mut parts = [IoSlice::new(&header), IoSlice::new(&self.bytes)];
        let Some(data) = &self.data else {
            return send_all(stream, &mut parts, SendFlags::NOSIGNAL);
        };
        // No segment goes without data.
        send_all(stream, &mut parts, SendFlags::NOSIGNAL | SendFlags::MORE)?;
        let mut socket = stream;
        socket
            .write_all_volatile(&data.bytes())
            .map_err(io::Error::other)?;
        let zeros = [0; 3];
        let padding = zeros.get(..padding(data.len())).unwrap_or_default();
        send_all(stream, &mut [IoSlice::new(padding)], SendFlags::NOSIGNAL)
    }
}

/// Sends all bytes of `parts`.
fn send_all(stream: &TcpStream, mut parts: &mut [IoSlice<'_>], flags: SendFlags) -> io::Result<()> {
    // Empty parts go without a call.
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match sendmsg(stream, parts, &mut SendAncillaryBuffer::default(), flags) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(len) => IoSlice::advance_slices(&mut parts, len),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
