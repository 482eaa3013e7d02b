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
}

impl Situation {
    /// Its name on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Four => "four",
            Self::One => "one",
        }
    }

    /// What it is, as a heading.
    pub(crate) const fn heading(self) -> &'static str {
        match self {
            Self::Idle => "nothing pinned, the machine is idle otherwise",
            Self::Busy => "nothing pinned, other work for every processor",
            Self::Four => "nothing pinned, four guests at once (the rate of one of them)",
            Self::One => "guest and daemon on one processor",
        }
    }

    /// Guests that work at once.
    pub(crate) const fn guests(self) -> usize {
        match self {
            Self::Four => FOUR,
            Self::Idle | Self::Busy | Self::One => 1,
        }
    }

    /// Brings the machine into the situation until the result is dropped. Processes that are
    /// started meanwhile run where the situation says.
    pub(crate) fn enter(self) -> Result<Entered> {
        let processors = cpu_affinity::allowed().context("asking for the processors")?;
        let mut entered = Entered {
            processors: processors.clone(),
            stop: Arc::default(),
            busy: Vec::new(),
        };
        match self {
            Self::Idle | Self::Four => {}
            Self::Busy => {
                for _ in processors {
                    let stop = Arc::clone(&entered.stop);
                    entered.busy.push(thread::spawn(move || keep_busy(&stop)));
                }
            }
            Self::One => {
                let one = processors.first().copied().context("no processor")?;
                cpu_affinity::stay_on(one).context("choosing a processor")?;
            }
        }
        Ok(entered)
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
    use super::*;

    #[test]
    fn leaving_a_situation_frees_the_processors() {
        let before = cpu_affinity::allowed().expect("known");
        for situation in [Situation::One, Situation::Busy] {
            let entered = situation.enter().expect("entered");
            let within = cpu_affinity::allowed().expect("known").len();
            assert_eq!(
                within == 1,
                situation == Situation::One || before.len() == 1
            );
            drop(entered);
            assert_eq!(cpu_affinity::allowed().expect("known"), before);
        }
    }
}
