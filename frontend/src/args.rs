//! The command line as typed.

use clap::Parser;

/// Everything typed.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "gangplank-frontend",
    about = "The driver's side of virtio-fs over vhost-user: works with any virtio-fs daemon.",
    version
)]
pub struct Args {}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_definition_is_consistent() {
        Args::command().debug_assert();
    }
}
