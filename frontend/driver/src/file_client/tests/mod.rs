//! The file client against a daemon that does part of its work, or fails late.

mod reading;
mod share;
mod writing;
