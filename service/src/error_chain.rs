//! An error and its causes, as text for people.

use std::error::Error;
use std::iter;

/// The error's text and the text of each of its causes, joined by colons in one line.
#[must_use]
pub fn error_chain(error: &dyn Error) -> String {
    let causes = iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the door")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn each_cause_follows_what_it_caused() {
        let error = Outer(std::io::ErrorKind::NotFound.into());
        assert_eq!(
            error_chain(&error),
            "cannot open the door: entity not found"
        );
        assert_eq!(error_chain(&error.0), "entity not found");
    }
}
