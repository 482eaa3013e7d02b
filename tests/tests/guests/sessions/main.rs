//! Sessions of guests on one daemon, without a guest kernel: start, parallel work, waiting, end.

mod ending;
mod events;
mod labels;
mod locks;
mod many;
mod rings;
mod uml;
