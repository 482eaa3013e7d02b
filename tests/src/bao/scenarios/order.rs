//! Guest, device model and daemon, started in every order.

use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, anyhow};

use super::Test;
use crate::bao::fixture::{Fixture, Setup};
use crate::bao::guest::LIMIT;
use crate::bao::work;

/// The process to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Guest,
    Model,
    Daemon,
}

use Part::{Daemon, Guest, Model};

const ORDERS: [[Part; 3]; 6] = [
    [Guest, Model, Daemon],
    [Guest, Daemon, Model],
    [Model, Guest, Daemon],
    [Model, Daemon, Guest],
    [Daemon, Guest, Model],
    [Daemon, Model, Guest],
];

/// All six orders, with a configured tag and with the daemon's own, which the guest then waits for.
pub(super) fn guest_model_and_daemon_start_in_any_order(test: &Test) -> Result<()> {
    for tag in [true, false] {
        for order in ORDERS {
            let setup = Setup { tag, ..test.setup };
            test.fixture(setup, |fixture| start(fixture, order))
                .with_context(|| format!("{order:?}, tag configured: {tag}"))?;
        }
    }
    Ok(())
}

fn start(fixture: &Fixture, order: [Part; 3]) -> Result<()> {
    let cpu = fixture.cpu(0)?;
    let device = fixture.device(0)?;
    let (mut model, mut daemon) = (None, None);
    thread::scope(|scope| {
        let (tell, told) = mpsc::channel::<()>();
        let (mut guest, mut tell) = (None, Some(tell));
        for part in order {
            match part {
                Guest => {
                    let (cpu, tell) = (cpu.clone(), tell.take());
                    guest = Some(scope.spawn(move || -> Result<()> {
                        let (mut guest, probed) = cpu.probe()?;
                        drop(tell);
                        anyhow::ensure!(probed.tag == crate::bao::fixture::TAG, "{probed:?}");
                        guest.init().context("INIT")?;
                        work::with_files(&mut guest, &fixture.share(0), 0)
                    }));
                    if model.is_none() || (daemon.is_none() && !fixture.setup().tag) {
                        device.until_waiting(LIMIT)?;
                    } else {
                        // The channel closes when the guest has probed or failed.
                        let _ = told.recv_timeout(LIMIT);
                    }
                }
                Model => {
                    model = Some(fixture.start_frontend()?);
                    if fixture.setup().tag {
                        device.until_attached(LIMIT)?;
                    }
                }
                Daemon => daemon = Some(fixture.start_daemon(0)?),
            }
        }
        let guest = guest.context("no guest")?;
        guest.join().map_err(|_| anyhow!("the guest panicked"))?
    })?;
    fixture.finish(model.context("no device model")?)
}
