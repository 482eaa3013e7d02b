//! The library's node beside a node that keeps to the kernel's rules, without a guest and without rhostfs.

mod asking;
mod containers;
mod dump;
mod faults;
mod golden;
mod rules;
mod scene;
