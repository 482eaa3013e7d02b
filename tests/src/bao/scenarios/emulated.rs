//! The emulated driver itself: it notices every broken rule.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Test;
use crate::bao::Program;
use crate::bao::misuse::{DriverUse, MISUSE, USES};

/// Every way to break a rule is noticed, and a correct device model is not accused.
pub(super) fn what_a_driver_would_not_survive_is_noticed(test: &Test) -> Result<()> {
    for (usage, expected) in USES {
        if *usage == DriverUse::Destroys && !test.setup.abi.creates {
            continue;
        }
        test.fixture(test.setup, |fixture| {
            let arguments = [
                MISUSE.to_owned(),
                format!("{usage:?}"),
                test.setup.abi.name.to_owned(),
                fixture.kernel.node().display().to_string(),
            ];
            let log = fixture.kernel.node().with_extension("log");
            let mut model = Program::start(
                &fixture.kernel,
                Path::new("/proc/self/exe"),
                &arguments,
                &log,
            )?;
            let cpu = fixture.cpu(0)?.within(Duration::from_secs(2));
            let accesses = usage
                .takes_accesses()
                .then(|| thread::spawn(move || cpu.set(0x70, 0).and_then(|()| cpu.get(0))));
            let status = model.wait()?;
            fixture.device(0)?.check_openings()?;
            let mut faults = fixture.kernel.faults.take();
            if *usage != DriverUse::Closes {
                // Each device model has ended by now, which closed its device.
                faults.retain(|fault| !fault.contains("closed by the last"));
            }
            let told = faults.iter().filter(|fault| fault.contains(expected));
            ensure!(
                faults.len() == told.count() && faults.is_empty() == expected.is_empty(),
                "{faults:?}, {status}, {}",
                model.log()
            );
            let load = accesses.map(|accesses| {
                accesses
                    .join()
                    .map_err(|_| anyhow::anyhow!("a CPU panicked"))
            });
            if *usage == DriverUse::Correct {
                ensure!(status.success(), "{}", model.log());
                ensure!(load.context("no accesses")??? == 0x1234, "another answer");
            }
            Ok(())
        })
        .with_context(|| format!("{usage:?}"))?;
    }
    Ok(())
}
