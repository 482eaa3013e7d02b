//! A kernel's guest.

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::TAG;
use gangplank_tests::guest::{Guest, Machine, Options};

use super::fixture::{Fixture, operation, sized};

#[test]
fn a_guests_fuse_version_and_what_its_programs_do_are_told() -> Result<()> {
    let fixture = Fixture::start(&[])?;
    let options = Options::new(Machine::Uml).share(fixture.daemon.socket(), TAG);
    let mut guest = Guest::boot(&options).with_context(|| fixture.daemon.log())?;
    guest.mount(TAG, "/mnt")?;
    let release = guest.sh("uname -r")?;
    guest.sh("dd if=/dev/zero of=/mnt/f bs=1M count=4 2>/dev/null && ls /mnt && sync")?;
    let told = fixture.status()?["guests"][0].clone();
    let session = &told["session"];
    // Linux 6.1 speaks 7.37, and each later one a later version.
    let minor = session["offered"][1].as_u64().context("a version")?;
    ensure!(minor >= 37, "{release}: {session}");
    let at_least = session["kernel_at_least"].as_str().context("a kernel")?;
    let number = |text: &str| -> Result<(u32, u32)> {
        let mut parts = text.trim().split('.');
        let mut next = || {
            parts
                .next()
                .context("a release")?
                .parse()
                .context("a number")
        };
        Ok((next()?, next()?))
    };
    ensure!(
        number(at_least)? <= number(&release)?,
        "{release}: {session}"
    );
    let (_, errors, received, _) = sized(operation(&told, "WRITE")?)?;
    ensure!(received >= 4 << 20 && errors == 0, "{told}");
    Ok(())
}
