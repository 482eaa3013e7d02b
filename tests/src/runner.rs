//! A test runner for tests that share a booted guest.
//!
//! The standard one gives each test a thread and no end to what tests share, so that guests and
//! their directories would be left behind. This one runs trials in order, on values owned by the
//! test's `main`, and prints what the standard one prints.
#![allow(clippy::print_stdout, reason = "it reports to a person")]

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, anyhow};

/// Runner of one test program: which to run, and how they ended.
pub struct Runner {
    filters: Vec<String>,
    list: bool,
    passed: usize,
    skipped: usize,
    failures: Vec<String>,
    started: Instant,
}

impl Runner {
    /// Runner chosen by this program's arguments: those whose name contains one of them, or all.
    /// `--list` names them instead; other options of the standard runner are accepted and ignored.
    #[must_use]
    pub fn from_arguments() -> Self {
        let (options, filters): (Vec<String>, Vec<String>) = std::env::args()
            .skip(1)
            .partition(|argument| argument.starts_with('-'));
        Self {
            filters,
            list: options.iter().any(|option| option == "--list"),
            passed: 0,
            skipped: 0,
            failures: Vec::new(),
            started: Instant::now(),
        }
    }

    /// Whether a trial of this name is to run: for setting up what several share.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        !self.list
            && (self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter)))
    }

    /// Whether the trials are only to be named.
    #[must_use]
    pub const fn lists_only(&self) -> bool {
        self.list
    }

    /// Runs one trial. Its failure, a panic included, does not stop the others.
    pub fn run(&mut self, name: &str, test: impl FnOnce() -> Result<()>) {
        if self.list {
            println!("{name}: test");
        }
        if !self.wants(name) {
            return;
        }
        print!("test {name} ... ");
        // A terminal shows the name while the trial runs; a pipe shows it whole afterwards.
        let _ = std::io::stdout().flush();
        let started = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(test))
            .unwrap_or_else(|panic| Err(anyhow!("panicked: {}", panic_text(&*panic))));
        let took = started.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("ok ({took:.1} s)");
            }
            Err(error) => {
                println!("FAILED ({took:.1} s)");
                println!("{error:#}");
                self.failures.push(name.to_owned());
            }
        }
    }

    /// Notes that a trial cannot run on this machine. In CI (`CI=true`) that is a failure.
    pub fn skip(&mut self, name: &str, why: &str) {
        if !self.wants(name) {
            return;
        }
        if std::env::var_os("CI").is_some_and(|ci| ci == "true") {
            self.run(name, || Err(anyhow!("cannot run here: {why}")));
            return;
        }
        self.skipped += 1;
        println!("test {name} ... SKIPPED: {why}");
    }

    /// Prints the names of what failed and the closing line.
    #[must_use]
    pub fn finish(self) -> ExitCode {
        if self.list {
            return ExitCode::SUCCESS;
        }
        if !self.failures.is_empty() {
            println!("\nfailures:");
            for name in &self.failures {
                println!("    {name}");
            }
        }
        let failed = self.failures.len();
        println!(
            "\ntest result: {}. {} passed; {failed} failed; {} ignored; 0 measured; 0 filtered out; \
             finished in {:.2}s\n",
            if failed == 0 { "ok" } else { "FAILED" },
            self.passed,
            self.skipped,
            self.started.elapsed().as_secs_f64()
        );
        if failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a text")
}

/// Prints what a passing trial found that is worth knowing.
pub fn note(text: &str) {
    println!("\n    {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runner(filters: &[&str]) -> Runner {
        Runner {
            filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
            list: false,
            passed: 0,
            skipped: 0,
            failures: Vec::new(),
            started: Instant::now(),
        }
    }

    #[test]
    fn run_counts_a_panic_as_a_failure_and_goes_on() {
        let mut runner = runner(&[]);
        runner.run("panics", || panic!("as it should"));
        runner.run("fails", || Err(anyhow!("as it should")));
        runner.run("passes", || Ok(()));
        assert_eq!(runner.failures, ["panics", "fails"]);
        assert_eq!(runner.passed, 1);
    }

    #[test]
    fn run_leaves_out_what_no_filter_names() {
        let mut runner = runner(&["uml::"]);
        runner.run("qemu::mount", || panic!("not wanted"));
        runner.run("uml::mount", || Ok(()));
        assert_eq!((runner.passed, runner.failures.len()), (1, 0));
    }
}
