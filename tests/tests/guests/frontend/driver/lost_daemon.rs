//! Sessions that end, daemons that hang, and daemons that are killed.

use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Result, ensure};
use gangplank_driver::{Error, Fault, InitOptions, Options};
use gangplank_fuse::NodeId;
use rustix::process::Signal;

use super::node;
use crate::fixture::{Fixture, LIMIT};

#[test]
fn a_session_ends_and_another_begins_on_the_same_device() -> Result<()> {
    for fixture in Fixture::each(&[])? {
        let driver = fixture.driver(&Options::default())?;
        fs::write(fixture.share.path().join("file"), b"x")?;
        let first = driver.session(&InitOptions::default())?;
        let stale = node(&first.lookup(NodeId::ROOT, c"file")?);
        first.destroy()?;
        let second = driver.session(&InitOptions::default())?;
        ensure!(
            second.getattr(stale, None).is_err(),
            "the node went with its session"
        );
        second.lookup(NodeId::ROOT, c"file")?;
        driver.stop()?;
        let error = second
            .lookup(NodeId::ROOT, c"file")
            .expect_err("the driver was stopped");
        ensure!(
            matches!(
                error,
                Error::Broken {
                    source: Fault::Stopped,
                    ..
                }
            ),
            "{error}"
        );
    }
    Ok(())
}

#[test]
fn a_daemon_that_hangs_is_late_and_one_that_is_killed_is_gone() -> Result<()> {
    for fixture in Fixture::each(&[])? {
        let fs = fixture.session()?;
        fixture.daemon.signal_all(Signal::STOP)?;
        // Stopping all threads takes time on a busy machine.
        let begun = Instant::now();
        let impatient = fs.within(Duration::from_millis(300));
        while let answered = impatient.getattr(NodeId::ROOT, None)
            && !matches!(answered, Err(Error::Late { .. }))
        {
            ensure!(begun.elapsed() < LIMIT, "it answers: {answered:?}");
        }

        let started = Instant::now();
        let waiting = fs.clone();
        let waiter = thread::spawn(move || waiting.getattr(NodeId::ROOT, None));
        thread::sleep(Duration::from_millis(100));
        fixture.daemon.signal_all(Signal::KILL)?;
        let gone = waiter.join().expect("no panic");
        ensure!(
            matches!(
                &gone,
                Err(Error::Broken {
                    source: Fault::HungUp,
                    ..
                })
            ),
            "{gone:?}"
        );
        ensure!(
            started.elapsed() < LIMIT / 2,
            "it took {:?}",
            started.elapsed()
        );
        let again = fs.getattr(NodeId::ROOT, None);
        ensure!(matches!(again, Err(Error::Broken { .. })), "{again:?}");
    }
    Ok(())
}
