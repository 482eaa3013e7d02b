//! What the tests share: guests, the daemon under test, a driver without a guest.
