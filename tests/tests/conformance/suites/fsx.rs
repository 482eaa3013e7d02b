//! fsx: random reads, writes, mappings, truncations and copies, every read checked.

use std::fs;
use std::time::Duration;

use anyhow::Result;

use crate::Fixture;

/// Every operation of fsx except `invalidate`, which needs several clients that share a mapping.
const CONFIGURATION: &str = r"
flen = 1048576

[opsize]
max = 131072

[weights]
close_open = 1.0
fsync = 0.2
fdatasync = 0.2
posix_fallocate = 1.0
punch_hole = 1.0
sendfile = 1.0
posix_fadvise = 1.0
copy_file_range = 1.0
";

/// 20,000 operations by a fixed seed, so that a failure repeats.
pub(crate) fn twenty_thousand_operations(fixture: &mut Fixture) -> Result<()> {
    fs::write(fixture.host_path("fsx.toml"), CONFIGURATION)?;
    fixture
        .guest
        .sh_within(
            "cd /mnt && fsx -f fsx.toml -N 20000 -S 42 -P /tmp fsx-file && rm fsx-file",
            Duration::from_secs(900),
        )
        .map(drop)
}
