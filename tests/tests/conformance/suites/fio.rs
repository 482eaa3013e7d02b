//! fio: random writes of several jobs read back with the right checksums.

use std::time::Duration;

use anyhow::Result;

use crate::Fixture;

/// Random writes of mixed sizes by two jobs, through the cache and then around it, each verified.
pub(crate) fn verifies_what_it_wrote(fixture: &mut Fixture) -> Result<()> {
    fixture.debian()?;
    for direct in [0, 1] {
        fixture.guest.sh_within(
            &format!(
                "chroot /mnt/debian fio --name=verify --directory=/work --numjobs=2 --size=16M \
                 --rw=randrw --bsrange=4k-64k --blockalign=4k --ioengine=psync --direct={direct} \
                 --verify=crc32c --verify_fatal=1 --do_verify=1 --end_fsync=1 --randseed=7 \
                 --thread --group_reporting"
            ),
            Duration::from_secs(600),
        )?;
        fixture.guest.sh("rm /mnt/debian/work/verify.*")?;
    }
    Ok(())
}
