//! The first few of many errors.

use std::fmt::Display;

/// Errors of a file that are shown. A file of another kind has one in each line.
const MAX_SHOWN: usize = 10;

/// A line for each of the first `errors`, and a last one that counts the others.
pub fn first_few<E: Display>(errors: impl IntoIterator<Item = E>) -> String {
    let mut errors = errors.into_iter();
    let mut lines: Vec<String> = errors
        .by_ref()
        .take(MAX_SHOWN)
        .map(|error| error.to_string())
        .collect();
    match errors.count() {
        0 => {}
        1 => lines.push("and 1 more error".to_owned()),
        more => lines.push(format!("and {more} more errors")),
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_beyond_the_first_ones_are_counted() {
        assert_eq!(first_few(["a", "b"]), "a\nb");
        assert!(first_few(0..11).ends_with("\n9\nand 1 more error"));
        let many = first_few(0..500);
        assert!(many.ends_with("\n9\nand 490 more errors"), "{many}");
        assert_eq!(many.lines().count(), 11);
    }
}
