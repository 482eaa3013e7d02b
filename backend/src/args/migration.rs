//! The options `--migration-*`, as virtiofsd has them.

use std::str::FromStr;

use crate::state::migration::{MigrationMode, MigrationOnError};

/// The options `--migration-*` as typed.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct MigrationArgs {
    /// How a migrating guest's files are found: find-paths, file-handles
    #[arg(long, value_name = "HOW", value_parser = MigrationMode::from_str,
          default_value = "find-paths", help_heading = HEADING)]
    pub migration_mode: MigrationMode,

    /// What to do about files of an arriving guest that cannot be opened: abort, guest-error
    #[arg(long, value_name = "WHAT", value_parser = MigrationOnError::from_str,
          default_value = "abort", help_heading = HEADING)]
    pub migration_on_error: MigrationOnError,

    /// With find-paths: let the destination compare each file's handle
    #[arg(long, help_heading = HEADING)]
    pub migration_verify_handles: bool,

    /// With find-paths: check each path again when the guest leaves
    #[arg(long, help_heading = HEADING)]
    pub migration_confirm_paths: bool,
}

pub(super) const HEADING: &str = "Migration";

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// The options by themselves.
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        migration: MigrationArgs,
    }

    fn parse(line: &str) -> Result<MigrationArgs, String> {
        let words = std::iter::once("gangplankd").chain(line.split_whitespace());
        match Line::try_parse_from(words) {
            Ok(line) => Ok(line.migration),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn values_are_those_of_virtiofsd() {
        assert_eq!(parse(""), Ok(MigrationArgs::default()));
        assert_eq!(
            parse("--migration-mode=find-paths --migration-on-error=abort"),
            Ok(MigrationArgs::default())
        );
        let line = "--migration-mode file-handles --migration-on-error guest-error \
                    --migration-verify-handles --migration-confirm-paths";
        let all = MigrationArgs {
            migration_mode: MigrationMode::FileHandles,
            migration_on_error: MigrationOnError::GuestError,
            migration_verify_handles: true,
            migration_confirm_paths: true,
        };
        assert_eq!(parse(line), Ok(all));
    }

    #[test]
    fn wrong_value_is_named_with_what_would_be_right() {
        for (line, hint) in [
            ("--migration-mode=paths", "find-paths or file-handles"),
            ("--migration-on-error=ignore", "abort or guest-error"),
        ] {
            let message = parse(line).expect_err(line);
            assert!(message.contains(hint), "{line}: {message}");
        }
    }
}
