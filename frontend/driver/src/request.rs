//! A request before it is sent.

use gangplank_fuse::{Extensions, NodeId, Operation, Request};

use super::memory::Buffer;
use super::reply::Decode;

/// A request whose reply is a `T`.
#[derive(Debug)]
#[must_use = "a call does nothing until it is submitted"]
pub struct Call<'a, T> {
    pub(super) node: NodeId,
    pub(super) request: Request<'a>,
    pub(super) send: Option<(Buffer, u32)>,
    pub(super) receive: Option<(Buffer, u32)>,
    pub(super) decode: Decode<T>,
}

impl<'a, T> Call<'a, T> {
    pub(super) fn new(node: NodeId, operation: Operation<'a>, decode: Decode<T>) -> Self {
        Self {
            node,
            request: operation.into(),
            send: None,
            receive: None,
            decode,
        }
    }

    /// Appends extensions: a security context, supplementary groups.
    pub const fn with_extensions(mut self, extensions: Extensions<'a>) -> Self {
        self.request.extensions = extensions;
        self
    }
}
