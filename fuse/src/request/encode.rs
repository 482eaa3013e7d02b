//! A request as bytes, for the client's end.

use zerocopy::IntoBytes;

use super::{Operation, Request};
use crate::cursor::RECORD_ALIGN;
use crate::{Dialect, EncodeError, Extensions, InHeader, NodeId, Unique};

/// What a client puts into a request's header; lengths and opcode are filled in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestHeader {
    /// Number of the request.
    pub unique: Unique,
    /// The node it is about.
    pub node: NodeId,
    /// On whose behalf: user.
    pub uid: u32,
    /// On whose behalf: group.
    pub gid: u32,
    /// On whose behalf: thread.
    pub pid: u32,
}

impl Request<'_> {
    /// Appends the request to `out`: header, arguments, extensions. Bulk data is counted in the
    /// header's `len` and is the caller's to send behind.
    ///
    /// What the dialect cannot express is left out: `setxattr_flags` without `setxattr_ext`, groups
    /// before 7.38.
    ///
    /// # Errors
    /// [`EncodeError`] if lengths do not fit in the header; `out` is as before then.
    pub fn encode(
        &self,
        header: &RequestHeader,
        dialect: Dialect,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let start = out.len();
        let encoded = self.try_encode(header, dialect, out);
        if encoded.is_err() {
            out.truncate(start);
        }
        encoded
    }

    fn try_encode(
        &self,
        header: &RequestHeader,
        dialect: Dialect,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let opcode = self.operation.opcode();
        let start = out.len();
        out.extend_from_slice(InHeader::default().as_bytes());
        self.operation.sized().encode_arguments(dialect, out);
        let before_extensions = out.len();
        let counted = dialect.minor >= 38;
        if counted {
            self.extensions.encode(out);
        } else if dialect.security_ctx && opcode.creates() {
            Extensions {
                groups: None,
                ..self.extensions
            }
            .encode(out);
        }
        let extensions = out.len() - before_extensions;
        if extensions != 0 && opcode.bulk_offset().is_some() {
            return Err(EncodeError::MisplacedExtension { opcode });
        }
        let units = u16::try_from(extensions / RECORD_ALIGN).map_err(|_| {
            EncodeError::ExtensionsTooLong {
                opcode,
                bytes: extensions,
            }
        })?;
        let bytes = (out.len() - start) as u64 + u64::from(self.operation.bulk_len());
        let len = u32::try_from(bytes).map_err(|_| EncodeError::TooLong { opcode, bytes })?;
        let header = InHeader {
            len,
            opcode: opcode as u32,
            unique: header.unique.get(),
            nodeid: header.node.get(),
            uid: header.uid,
            gid: header.gid,
            pid: header.pid,
            total_extlen: if counted { units } else { 0 },
            padding: 0,
        };
        if let Some(place) = out.get_mut(start..start.saturating_add(size_of::<InHeader>())) {
            place.copy_from_slice(header.as_bytes());
        }
        Ok(())
    }
}

impl Operation<'_> {
    /// With the sizes that follow from its own slices.
    fn sized(mut self) -> Self {
        if let Operation::Setxattr { args, value, .. } = &mut self {
            // Longer values are refused for the length of the request.
            args.size = u32::try_from(value.len()).unwrap_or(u32::MAX);
        }
        self
    }
}
