//! `gangplankd`.
fn main() {}
