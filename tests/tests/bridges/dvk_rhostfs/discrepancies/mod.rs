//! Cases in which the original server was wrong or its client is unusual, each with the correct
//! behaviour.

mod answers;
mod attributes;
mod data;
mod directories;
mod handles;
mod links;
mod names;

use rustix::io::Errno;

use crate::client::Answer;

const ENOENT: i32 = Errno::NOENT.raw_os_error();
const EIO: i32 = Errno::IO.raw_os_error();
const EBADF: i32 = Errno::BADF.raw_os_error();
const EACCES: i32 = Errno::ACCESS.raw_os_error();
const EEXIST: i32 = Errno::EXIST.raw_os_error();
const EFAULT: i32 = Errno::FAULT.raw_os_error();
const EINVAL: i32 = Errno::INVAL.raw_os_error();
const ENAMETOOLONG: i32 = Errno::NAMETOOLONG.raw_os_error();
const ENOSYS: i32 = Errno::NOSYS.raw_os_error();
const ELOOP: i32 = Errno::LOOP.raw_os_error();
const EOVERFLOW: i32 = Errno::OVERFLOW.raw_os_error();

/// Access modes.
const READ: i32 = 0;
const WRITE: i32 = 1;
const BOTH: i32 = 2;
const APPEND: i32 = 0x400;

/// Whether the read succeeded with the expected data.
fn is(answer: &Answer<Vec<u8>>, expected: &[u8]) -> bool {
    answer.as_deref() == Ok(expected)
}
