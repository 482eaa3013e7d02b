//! Extensions: what may follow the arguments of a request that makes an inode.
//!
//! ```text
//! [size type] + body, padded to 8 bytes, repeated to the end of the request
//!   type 0..=31   so many security contexts: [size 0 | name NUL | value], each padded to 8 bytes
//!   type 32       supplementary groups: [count | group ids]
//! ```
//!
//! They fill the request's last `InHeader::total_extlen` units of 8 bytes (7.38, Linux 6.3).
//! Extensions of an unknown type are skipped.

use core::ffi::CStr;
use core::fmt;

use zerocopy::IntoBytes;

use crate::cursor::{Cursor, record_align};
use crate::{DecodeError, Opcode, Records};

/// Up to this value an extension's type is the number of security contexts in it
/// (`FUSE_MAX_NR_SECCTX`).
pub const MAX_NR_SECCTX: u32 = 31;

/// Type of the extension with supplementary groups (`FUSE_EXT_GROUPS`).
pub const EXT_GROUPS: u32 = 32;

wire_struct! {
    /// Opens an extension.
    ExtHeader = "fuse_ext_header", 8 bytes {
        /// Length of the extension, this header and padding included, in bytes.
        size: u32 => 0,
        /// Up to 31: number of security contexts; 32: supplementary groups.
        r#type: u32 => 4,
    }
}

wire_struct! {
    /// Opens the security contexts: [`ExtHeader`] by another name, and the only one before 7.38.
    SecctxHeader = "fuse_secctx_header", 8 bytes {
        /// Length of all contexts, this header and padding included, in bytes.
        size: u32 => 0,
        /// Number of contexts.
        nr_secctx: u32 => 4,
    }
}

wire_struct! {
    /// Opens one security context; its name with NUL and `size` bytes of value follow.
    Secctx = "fuse_secctx", 8 bytes {
        /// Length of the value, in bytes.
        size: u32 => 0,
        /// Zero.
        padding: u32 => 4,
    }
}

wire_struct! {
    /// Opens the supplementary groups; so many group ids of 4 bytes follow.
    SuppGroups = "fuse_supp_groups", 4 bytes {
        /// Number of groups. Linux sends one, the parent directory's, if the caller is in it.
        nr_groups: u32 => 0,
    }
}

/// Supplementary groups of the caller, in the guest.
pub type SupplementaryGroups<'a> = Records<'a, u32>;

/// A security label that the new inode is to get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecurityContext<'a> {
    /// The extended attribute's name, such as `security.selinux`.
    pub name: &'a CStr,
    /// The label: any bytes.
    pub value: &'a [u8],
}

/// The security labels that came with a request.
#[derive(Clone, Copy, Default)]
pub struct SecurityContexts<'a> {
    count: u32,
    /// `count` contexts, checked when this was made.
    bytes: &'a [u8],
}

impl<'a> SecurityContexts<'a> {
    /// For a client: lays `contexts` out in `buffer`, which is cleared. No more than
    /// [`MAX_NR_SECCTX`] are taken, and none whose value exceeds 32 bits.
    #[must_use]
    pub fn new(contexts: &[SecurityContext<'_>], buffer: &'a mut Vec<u8>) -> Self {
        buffer.clear();
        let mut count = 0;
        for context in contexts {
            let Ok(size) = u32::try_from(context.value.len()) else {
                continue;
            };
            if count == MAX_NR_SECCTX {
                break;
            }
            buffer.extend_from_slice(Secctx { size, padding: 0 }.as_bytes());
            buffer.extend_from_slice(context.name.to_bytes_with_nul());
            buffer.extend_from_slice(context.value);
            buffer.resize(record_align(buffer.len()), 0);
            count += 1;
        }
        Self {
            count,
            bytes: buffer,
        }
    }

    fn decode(opcode: Opcode, count: u32, bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut cursor = Cursor::new(opcode.name(), bytes);
        for _ in 0..count {
            next_context(&mut cursor)?;
        }
        Ok(Self { count, bytes })
    }

    /// How many there are, at most [`MAX_NR_SECCTX`].
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The labels, in the order sent.
    pub fn iter(&self) -> impl Iterator<Item = SecurityContext<'a>> + Clone + use<'a> {
        let mut cursor = Cursor::new("security context", self.bytes);
        // Decoding succeeded once, so it ends by count.
        (0..self.count).map_while(move |_| next_context(&mut cursor).ok())
    }
}

impl fmt::Debug for SecurityContexts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for SecurityContexts<'_> {
    /// By label: padding does not count.
    fn eq(&self, other: &Self) -> bool {
        self.count == other.count && self.iter().eq(other.iter())
    }
}

impl Eq for SecurityContexts<'_> {}

fn next_context<'a>(cursor: &mut Cursor<'a>) -> Result<SecurityContext<'a>, DecodeError> {
    let before = cursor.left();
    let head: Secctx = cursor.fixed()?;
    let name = cursor.name()?;
    let value = cursor.bytes(usize::try_from(head.size).unwrap_or(usize::MAX))?;
    cursor.skip_padding(before.saturating_sub(cursor.left()));
    Ok(SecurityContext { name, value })
}

/// What came after a request's arguments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extensions<'a> {
    /// The caller's supplementary groups, as far as they matter (`InitFlags::CREATE_SUPP_GROUP`).
    pub groups: Option<SupplementaryGroups<'a>>,
    /// Labels for the new inode (`InitFlags::SECURITY_CTX`). `Some` but empty: the guest has no
    /// label for it.
    pub security_contexts: Option<SecurityContexts<'a>>,
}

impl<'a> Extensions<'a> {
    /// Whether nothing came.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.groups.is_none() && self.security_contexts.is_none()
    }

    pub(crate) fn decode(opcode: Opcode, bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut found = Self::default();
        let mut cursor = Cursor::new(opcode.name(), bytes);
        while cursor.left() != 0 {
            let header: ExtHeader = cursor.fixed()?;
            let size = usize::try_from(header.size).unwrap_or(usize::MAX);
            let body_len = size
                .checked_sub(size_of::<ExtHeader>())
                .ok_or(DecodeError::Count {
                    what: opcode.name(),
                    count: u64::from(header.size),
                    present: size_of::<ExtHeader>() as u64,
                })?;
            let body = cursor.bytes(body_len)?;
            cursor.skip_padding(size);
            let repeated = match header.r#type {
                count @ 0..=MAX_NR_SECCTX => {
                    let contexts = SecurityContexts::decode(opcode, count, body)?;
                    found.security_contexts.replace(contexts).is_some()
                }
                EXT_GROUPS => {
                    let mut body = Cursor::new(opcode.name(), body);
                    let head: SuppGroups = body.fixed()?;
                    found
                        .groups
                        .replace(body.records(head.nr_groups)?)
                        .is_some()
                }
                _ => false,
            };
            if repeated {
                let kind = if header.r#type == EXT_GROUPS {
                    EXT_GROUPS
                } else {
                    0
                };
                return Err(DecodeError::RepeatedExtension { opcode, kind });
            }
        }
        Ok(found)
    }

    /// Appends the extensions, each padded, as Linux orders them.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        if let Some(contexts) = &self.security_contexts {
            write(out, contexts.count, &[contexts.bytes]);
        }
        if let Some(groups) = &self.groups {
            // The count is cut as the length is: what exceeds 32 bits is refused for the length of
            // the request.
            let nr_groups = u32::try_from(groups.len()).unwrap_or(u32::MAX);
            write(
                out,
                EXT_GROUPS,
                &[SuppGroups { nr_groups }.as_bytes(), groups.as_bytes()],
            );
        }
    }
}

fn write(out: &mut Vec<u8>, kind: u32, parts: &[&[u8]]) {
    let body: usize = parts.iter().map(|part| part.len()).sum();
    let length = record_align(size_of::<ExtHeader>().saturating_add(body));
    let end = out.len().saturating_add(length);
    let size = u32::try_from(length).unwrap_or(u32::MAX);
    out.extend_from_slice(ExtHeader { size, r#type: kind }.as_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
    out.resize(end, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.as_bytes().to_vec()
    }

    #[test]
    fn groups_as_linux_sends_them() {
        // get_create_supp_group(), fs/fuse/dir.c: 16 bytes, one group.
        let sent = bytes(&[16, 32, 1, 1000]);
        let found = Extensions::decode(Opcode::Mkdir, &sent).unwrap();
        assert!(found.groups.unwrap().iter().eq([1000]));
        assert_eq!(found.security_contexts, None);
    }

    #[test]
    fn label_as_linux_sends_it() {
        let mut sent = bytes(&[40, 1, 6, 0]);
        sent.extend_from_slice(b"security.selinux\0label\0");
        sent.resize(40, 0);
        let found = Extensions::decode(Opcode::Create, &sent).unwrap();
        let labels: Vec<_> = found.security_contexts.unwrap().iter().collect();
        assert_eq!(
            labels,
            [SecurityContext {
                name: c"security.selinux",
                value: b"label\0"
            }]
        );
    }

    #[test]
    fn no_label_is_not_the_same_as_no_extension() {
        let sent = bytes(&[8, 0]);
        let found = Extensions::decode(Opcode::Create, &sent).unwrap();
        assert!(
            found
                .security_contexts
                .is_some_and(|contexts| contexts.is_empty())
        );
    }

    #[test]
    fn unknown_types_are_passed_over() {
        let sent = bytes(&[16, 33, 7, 7, 16, 32, 1, 5]);
        let found = Extensions::decode(Opcode::Mkdir, &sent).unwrap();
        assert!(found.groups.unwrap().iter().eq([5]));
    }

    #[test]
    fn an_extension_begins_aligned_whatever_the_size_before_it() {
        let sent = bytes(&[12, 33, 7, 0, 16, 32, 1, 5]);
        let found = Extensions::decode(Opcode::Mkdir, &sent).unwrap();
        assert!(found.groups.unwrap().iter().eq([5]));
    }

    #[test]
    fn sizes_that_do_not_hold_are_errors() {
        for (words, why) in [
            (&[0, 32, 1, 5][..], "a size below the header's"),
            (&[24, 32, 1, 5], "a size beyond the end"),
            (&[16, 32, 2, 5], "more groups than bytes"),
            (&[8, 32], "no room for the count"),
            (&[16, 2, 0, 0], "fewer labels than announced"),
            (&[16, 32, 1, 5, 16, 32, 1, 5], "groups twice"),
            (&[8, 0, 8, 0], "labels twice"),
            (&[7], "half a header"),
        ] {
            assert!(
                Extensions::decode(Opcode::Mkdir, &bytes(words)).is_err(),
                "{why}"
            );
        }
    }
}
