//! The situations in which guests are measured: what else the machine does, and who runs where.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use clap::ValueEnum;
use gangplank_bench::cpu_affinity;

/// Guests at once in [`Situation::Four`].
const FOUR: usize = 4;

/// One situation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Situation {
    /// One guest, nothing pinned, nothing else runs
    Idle,
    /// One guest, nothing pinned, a busy thread for each processor
    Busy,
    /// Four guests do the same at once, nothing pinned
    Four,
    /// One guest, everything on one processor
    One,
    /// One guest, which is kept on one processor; the daemons run on any
    Pinned,
}

impl Situation {
    /// Its name on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Four => "four",
            Self::One => "one",
            Self::Pinned => "pinned",
        }
    }

    /// What it is, as a heading.
    pub(crate) const fn heading(self) -> &'static str {
        match self {
            Self::Idle => "nothing pinned, the machine is idle otherwise",
            Self::Busy => "nothing pinned, other work for every processor",
            Self::Four => "nothing pinned, four guests at once (the rate of one of them)",
            Self::One => "guest and daemon on one processor",
            Self::Pinned => "the guest on one processor, the daemons on any",
        }
    }

    /// Guests that work at once.
    pub(crate) const fn guests(self) -> usize {
        match self {
            Self::Four => FOUR,
            Self::Idle | Self::Busy | Self::One | Self::Pinned => 1,
        }
    }

    /// Brings the machine into the situation until the result is dropped. Processes that are
    /// started meanwhile run where the situation says.
    pub(crate) fn enter(self) -> Result<Entered> {
        let mut entered = Entered {
            processors: cpu_affinity::allowed().context("asking for the processors")?,
            stop: Arc::default(),
            busy: Vec::new(),
        };
        match self {
            Self::Idle | Self::Four | Self::Pinned => {}
            Self::Busy => {
                for _ in 0..entered.processors.len() {
                    let stop = Arc::clone(&entered.stop);
                    entered.busy.push(thread::spawn(move || keep_busy(&stop)));
                }
            }
            Self::One => {
                cpu_affinity::stay_on(one_processor()?).context("choosing a processor")?;
            }
        }
        Ok(entered)
    }

    /// Does with a guest what the situation says, whose process is `pid`.
    pub(crate) fn place_guest(self, pid: u32) -> Result<()> {
        match self {
            Self::Pinned => cpu_affinity::keep_on(pid, one_processor()?),
            _ => Ok(()),
        }
    }
}

/// A situation that holds until this is dropped.
pub(crate) struct Entered {
    processors: Vec<usize>,
    stop: Arc<AtomicBool>,
    busy: Vec<JoinHandle<()>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.busy.drain(..) {
            let _ = thread.join();
        }
        let _ = cpu_affinity::stay_on_any(&self.processors);
    }
}

fn one_processor() -> Result<usize> {
    let processors = cpu_affinity::allowed().context("asking for the processors")?;
    processors.first().copied().context("no processor")
}

fn keep_busy(stop: &AtomicBool) {
    let mut sum = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        for number in 0..10_000 {
            sum = black_box(sum.wrapping_mul(31).wrapping_add(number));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::Pid;
    use rustix::thread::sched_getaffinity;

    use super::*;

    #[test]
    fn leaving_a_situation_frees_the_processors() {
        let before = cpu_affinity::allowed().expect("known");
        let check = |entered: Result<Entered>, is_on_one: bool| {
            let entered = entered.expect("entered");
            let within = cpu_affinity::allowed().expect("known").len();
            assert_eq!(within == 1, is_on_one || before.len() == 1);
            drop(entered);
            assert_eq!(cpu_affinity::allowed().expect("known"), before);
        };
        check(Situation::One.enter(), true);
        check(Situation::Busy.enter(), false);
        check(Situation::Pinned.enter(), false);
    }

    #[test]
    fn a_pinned_guest_stays_on_one_processor() {
        let mut guest = Command::new("sleep").arg("60").spawn().expect("started");
        let pid = guest.id();
        let allowed = || {
            let pid = Pid::from_raw(pid.cast_signed()).expect("a process");
            sched_getaffinity(Some(pid)).expect("known").count()
        };
        let before = allowed();
        Situation::Idle.place_guest(pid).expect("nothing to do");
        assert_eq!(allowed(), before);
        Situation::Pinned.place_guest(pid).expect("placed");
        assert_eq!(allowed(), 1);
        guest.kill().expect("killed");
        guest.wait().expect("ended");
    }
}
