//! The id of a request that is being served.

use crate::abi::Endpoint;

/// One received request. Answers and copies are for this request and no other, whichever process
/// has the client's endpoint by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    client: Endpoint,
    number: u64,
}

impl RequestId {
    /// A request of `client`. The carrier never uses a `number` twice for one endpoint.
    pub fn new(client: Endpoint, number: u64) -> Self {
        Self { client, number }
    }

    /// The client.
    pub fn client(self) -> Endpoint {
        self.client
    }

    /// The number of the request among all requests to the endpoint.
    pub fn number(self) -> u64 {
        self.number
    }
}
