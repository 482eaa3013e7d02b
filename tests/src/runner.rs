//! A test runner for tests that share a booted guest.
//!
//! The standard runner gives each test a thread and never drops what tests share, so that guests
//! and their directories would be left behind. This runner runs tests in order, on values that the
//! test program's `main` owns, and prints what the standard one prints.
//!
//! The crate `libtest-mimic` (0.8.2) does not fit, for three reasons. It takes all tests as
//! `FnOnce() + Send + 'static` before the first one runs, so that tests cannot borrow a guest from
//! `main`, and neither the end of the guest nor its absence after a failed boot is in `main`'s
//! hands. It prints why tests failed only after the last one, so that a program that the time limit
//! of `scripts/test` kills would not say why its tests failed before. And it has one filter, where
//! `bao-check` takes several.
#![allow(clippy::print_stdout, reason = "it reports to a person")]

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, anyhow};

/// Runs the tests of one program and counts how they ended.
pub struct Runner {
    filters: Vec<String>,
    /// Whether a filter is a whole name.
    is_exact: bool,
    list: bool,
    passed: usize,
    skipped: usize,
    /// Names and messages.
    failures: Vec<(String, String)>,
    started: Instant,
}

impl Runner {
    /// A runner for the tests whose names contain one of the program's arguments, or are one of
    /// them with `--exact`, or for all tests if there is no argument. `--list` prints the names
    /// instead. Other options of the standard runner are accepted and ignored.
    #[must_use]
    pub fn from_arguments() -> Self {
        let (options, filters): (Vec<String>, Vec<String>) = std::env::args()
            .skip(1)
            .partition(|argument| argument.starts_with('-'));
        Self {
            filters,
            is_exact: options.iter().any(|option| option == "--exact"),
            list: options.iter().any(|option| option == "--list"),
            passed: 0,
            skipped: 0,
            failures: Vec::new(),
            started: Instant::now(),
        }
    }

    /// Whether the test `name` will run. Callers use this to set up only what some test needs.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        let is_meant = |filter: &String| match self.is_exact {
            true => name == filter,
            false => name.contains(filter),
        };
        !self.list && (self.filters.is_empty() || self.filters.iter().any(is_meant))
    }

    /// Whether the program only lists its tests.
    #[must_use]
    pub const fn lists_only(&self) -> bool {
        self.list
    }

    /// Runs one test. If it fails or panics, the runner continues with the next.
    pub fn run(&mut self, name: &str, test: impl FnOnce() -> Result<()>) {
        if self.list {
            println!("{name}: test");
        }
        if !self.wants(name) {
            return;
        }
        print!("test {name} ... ");
        // The name appears while the test runs.
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
                // At once, since the program may be killed before the last test.
                let message = format!("{error:#}");
                println!("{message}");
                self.failures.push((name.to_owned(), message));
            }
        }
    }

    /// Reports that the test `name` cannot run on this machine. In CI (`CI=true`) this is a
    /// failure.
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

    /// Prints the messages and names of the failed tests, and the line with the counts.
    #[must_use]
    pub fn finish(self) -> ExitCode {
        if self.list {
            return ExitCode::SUCCESS;
        }
        if !self.failures.is_empty() {
            // In the standard runner's form, which `scripts/test` reads.
            println!("\nfailures:\n");
            for (name, message) in &self.failures {
                println!("---- {name} stdout ----\n{message}\n");
            }
            println!("\nfailures:");
            for (name, _) in &self.failures {
                println!("    {name}");
            }
        }
        let failed = self.failures.len();
        println!(
            "\ntest result: {}. {} passed; {failed} failed; {} ignored; 0 measured; 0 filtered \
             out; \
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
        .unwrap_or("panic without a message")
}

/// Prints `text`, a finding of a passing test.
pub fn note(text: &str) {
    println!("\n    {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_filters(filters: &[&str]) -> Runner {
        Runner {
            filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
            is_exact: false,
            list: false,
            passed: 0,
            skipped: 0,
            failures: Vec::new(),
            started: Instant::now(),
        }
    }

    #[test]
    fn run_counts_a_panic_as_a_failure_and_goes_on() {
        let mut runner = with_filters(&[]);
        runner.run("panics", || panic!("as it should"));
        runner.run("fails", || Err(anyhow!("as it should")));
        runner.run("passes", || Ok(()));
        let failed: Vec<_> = runner.failures.iter().map(|(name, _)| name).collect();
        assert_eq!(failed, ["panics", "fails"]);
        assert_eq!(runner.passed, 1);
    }

    #[test]
    fn an_exact_filter_is_a_whole_name() {
        let mut runner = with_filters(&["uml::mount"]);
        runner.is_exact = true;
        assert!(runner.wants("uml::mount"));
        assert!(!runner.wants("uml::mount_again"));
        runner.run("uml::mount_again", || panic!("not wanted"));
    }

    #[test]
    fn run_leaves_out_what_no_filter_names() {
        let mut runner = with_filters(&["uml::"]);
        runner.run("qemu::mount", || panic!("not wanted"));
        runner.run("uml::mount", || Ok(()));
        assert_eq!((runner.passed, runner.failures.len()), (1, 0));
    }
}
