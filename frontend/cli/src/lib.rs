//! The command line of `gangplank-frontend`, for the program and for what documents it.

pub mod args;
pub mod manual;
