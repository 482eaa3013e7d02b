//! A guest of a daemon that runs beside this program.

use std::ffi::CString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::{Driver, Setup};

/// The word that asks for a session.
pub(crate) const HOLD_SESSION: &str = "--hold-session";

/// What is written to the guest's file at once, and the file's length in these at most.
const DATA: &[u8] = &[7; 4096];
const PARTS: u64 = 16;

/// Mounts the share of the daemon at `socket`, and writes a file there again and again until the
/// file `end` exists. Then all of it must be there.
pub(crate) fn hold(socket: &Path, end: &Path) -> Result<()> {
    let mut guest = Driver::mount(socket, &Setup::default())?;
    let name = CString::new(format!("file-{}", std::process::id()))?;
    let file = guest.create(NodeId::ROOT, &name, 0o644)?;
    let places = (0..PARTS).map(|part| part * DATA.len() as u64);
    for at in places.clone().cycle() {
        guest.write(file, at, DATA).context("writing")?;
        std::thread::sleep(Duration::from_millis(10));
        if at == 0 && end.exists() {
            break;
        }
    }
    for at in places {
        let read = guest.read(file, at, u32::try_from(DATA.len())?)?;
        ensure!(read == DATA, "the data at {at} is another");
    }
    println!("went on");
    Ok(())
}
