//! What a request is named by while it is served.

use crate::abi::Endpoint;

/// One request that was received, among all that ever are: answers and copies are for it and for no other, whoever has its
/// client's endpoint by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    client: Endpoint,
    number: u64,
}

impl RequestId {
    /// A request of `client`. `number` is the carrier's: no two requests to an endpoint have the same.
    pub fn new(client: Endpoint, number: u64) -> Self {
        Self { client, number }
    }

    /// Who asks.
    pub fn client(self) -> Endpoint {
        self.client
    }

    /// Which of the requests that ever came for the endpoint it is.
    pub fn number(self) -> u64 {
        self.number
    }
}
