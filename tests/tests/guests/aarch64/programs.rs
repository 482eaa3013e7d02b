//! The released programs for aarch64, on a stock kernel of that architecture, which Bao's backend
//! VM uses.

use std::time::Duration;

use anyhow::Result;
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::packages::Arch;
use gangplank_tests::tools;

/// Limit, on an emulated machine, of work that takes a real one a second.
const LIMIT: Duration = Duration::from_secs(60);

/// Limit for the scenarios.
const LONG: Duration = Duration::from_secs(300);

/// The scenarios that depend on the kernel, the machine or the order of events rather than on time.
const SCENARIOS: &str = "noticed gangplankd::guest_mounts several_guests b::gangplankd::queues_tag \
    begun_again not_repeated makes_no_sense b::gangplankd::guest_model \
    b::gangplankd::guest_goes_on \
    b::gangplankd::access_being b::gangplankd::guest_is_told_of_a_killed sigterm";

#[test]
fn daemon_file_client_and_device_model_work_on_aarch64() -> Result<()> {
    let options = Options::new(Machine::QemuAarch64)
        .program("gangplankd", &tools::gangplankd_for(Arch::Arm64)?)
        .program("gangplank-frontend", &tools::frontend_for(Arch::Arm64)?)
        .program("bao-check", &tools::bao_check(Arch::Arm64)?);
    let mut machine = Guest::boot(&options)?;

    machine.sh_within(
        "mkdir -p /srv && mount -t tmpfs tmpfs /srv && echo from the host >/srv/file && \
         { gangplankd --socket-path=/run/fs.sock --shared-dir=/srv --sandbox=chroot 2>/run/log & \
         } && \
         for i in $(seq 100); do grep -q 'waiting for guests' /run/log && exit 0; sleep 0.1; done; \
         cat /run/log; exit 1",
        LIMIT,
    )?;
    let fs = "gangplank-frontend fs --socket /run/fs.sock";
    let listed = machine.sh_within(&format!("{fs} ls /"), LIMIT)?;
    assert!(listed.trim_end().ends_with(" file"), "{listed}");
    let text = machine.sh_within(&format!("{fs} cat /file"), LIMIT)?;
    assert_eq!(text, "from the host\n");
    machine.sh_within(
        &format!(
            "head -c 3000000 /dev/urandom >/tmp/data && {fs} cp /tmp/data :copy && \
             cmp /tmp/data /srv/copy && {fs} cp :copy /tmp/back && cmp /tmp/data /tmp/back"
        ),
        LIMIT,
    )?;

    let scenarios = machine.sh_within(
        &format!(
            "bao-check --frontend=/bin/gangplank-frontend --gangplankd=/bin/gangplankd {SCENARIOS}"
        ),
        LONG,
    )?;
    assert!(scenarios.contains("test result: ok."), "{scenarios}");
    gangplank_tests::runner::note(&scenarios);
    machine.power_off()
}
