//! How many system calls each operation takes.
