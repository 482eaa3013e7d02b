//! The programs as a user starts them: options, exit status, log lines, the sandbox, installed
//! files.

mod backend;
mod documents;
mod fixture;
mod frontend;
#[cfg(target_arch = "x86_64")]
mod injected_call;
mod installed_files;
mod journal;
mod json;
mod killed_acceptor;
#[cfg(target_arch = "x86_64")]
mod landlock;
mod manuals;
mod other_programs;
mod process;
mod sandbox;
mod scripts;
mod watchdog;
