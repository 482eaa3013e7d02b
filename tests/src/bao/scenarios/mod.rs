//! What the device model has to stand, each with a name that says the promise.

mod basic;

use anyhow::{Context, Result};

use super::abi::{A, A_PRIME, Abi, B, B_PRIME};
use super::place::{Place, Programs, Server, Setup};

/// One of them.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// The promise.
    name: &'static str,
    /// In which generations of the driver it is tried.
    abis: &'static [Abi],
    /// With whose daemons.
    servers: &'static [Server],
    run: fn(&Trial) -> Result<()>,
}

/// What a scenario is given.
pub struct Trial {
    programs: Programs,
    /// One device with one request queue, of the generation and with the daemon that it is to be tried with.
    pub setup: Setup,
}

impl Trial {
    /// Runs `work` in a place that is set up so; if it fails, with everybody's log.
    ///
    /// # Errors
    /// What `work` finds.
    pub fn place(&self, setup: Setup, work: impl FnOnce(&Place) -> Result<()>) -> Result<()> {
        let place = Place::new(&self.programs, setup)?;
        work(&place).with_context(|| place.logs())
    }
}

const EVERY: &[Abi] = &[A, A_PRIME, B_PRIME, B];
const CURRENT: &[Abi] = &[A, B];
const BOTH: &[Server] = &[Server::Ours, Server::Theirs];
const OURS: &[Server] = &[Server::Ours];

/// All of them.
const ALL: &[Scenario] = &[
    Scenario {
        name: "guest_mounts_and_works_with_files",
        abis: EVERY,
        servers: BOTH,
        run: basic::guest_mounts_and_works_with_files,
    },
    Scenario {
        name: "several_guests_work_at_once_each_with_its_own_share",
        abis: CURRENT,
        servers: OURS,
        run: basic::several_guests_work_at_once_each_with_its_own_share,
    },
];

/// The scenarios in each form that they are tried in: `b::virtiofsd::promise`.
pub fn each() -> impl Iterator<Item = (String, Scenario, Setup)> {
    ALL.iter().flat_map(|scenario| {
        scenario.abis.iter().flat_map(move |abi| {
            scenario.servers.iter().map(move |server| {
                let generation = abi.name.to_lowercase().replace('\'', "_prime");
                let daemon = match server {
                    Server::Ours => "gangplankd",
                    Server::Theirs => "virtiofsd",
                };
                let name = format!("{generation}::{daemon}::{}", scenario.name);
                (
                    name,
                    *scenario,
                    Setup {
                        server: *server,
                        ..Setup::new(*abi)
                    },
                )
            })
        })
    })
}

/// Runs the one that is called `name`, whole, and ends whatever it has started.
///
/// # Errors
/// What it finds; or there is none.
pub fn run(name: &str, programs: &Programs) -> Result<()> {
    let (_, scenario, setup) = each()
        .find(|(known, ..)| known == name)
        .with_context(|| format!("no scenario {name}"))?;
    super::place::adopt()?;
    let trial = Trial {
        programs: programs.clone(),
        setup,
    };
    let done = (scenario.run)(&trial);
    super::place::end_all();
    done
}
