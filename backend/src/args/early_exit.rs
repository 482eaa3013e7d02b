//! What is printed instead of a start.

use std::io;

use clap::error::ErrorKind;

/// The text that ends the program before it starts: help, the version, or an error in the command
/// line.
#[derive(Debug)]
pub struct EarlyExit(pub(super) clap::Error);

impl EarlyExit {
    /// Prints help and the version to standard output, errors to standard error.
    ///
    /// # Errors
    /// The write fails.
    pub fn print(&self) -> io::Result<()> {
        self.0.print()
    }

    /// The error in one line, for an option that comes from elsewhere than the command line.
    #[must_use]
    pub fn summary(&self) -> String {
        let text = self.0.to_string();
        let first = text.split("\n\n").next().unwrap_or_default();
        let first = first.strip_prefix("error: ").unwrap_or(first);
        let words: Vec<&str> = first.split_whitespace().collect();
        words.join(" ")
    }

    /// Whether the value of an option is wrong by itself.
    #[must_use]
    pub fn is_of_value(&self) -> bool {
        matches!(
            self.0.kind(),
            ErrorKind::ValueValidation | ErrorKind::InvalidValue
        )
    }

    /// The exit status: 0 for help and the version, 2 for an error.
    #[must_use]
    pub fn status(&self) -> u8 {
        u8::try_from(self.0.exit_code()).unwrap_or(2)
    }
}
