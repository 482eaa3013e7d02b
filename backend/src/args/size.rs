//! Sizes in bytes on the command line.

/// Parses a number of bytes, at least 1, with an optional suffix: K, M, G or T, each 1024 times the
/// one before.
///
/// # Errors
/// What is expected, for the operator.
pub(super) fn parse_size(text: &str) -> Result<u64, &'static str> {
    const EXPECTED: &str = "expected a number of bytes, such as 8T, 512G or 1048576";
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (text.get(..text.len() - 1), 10),
        Some(b'M' | b'm') => (text.get(..text.len() - 1), 20),
        Some(b'G' | b'g') => (text.get(..text.len() - 1), 30),
        Some(b'T' | b't') => (text.get(..text.len() - 1), 40),
        _ => (Some(text), 0),
    };
    let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    digits
        .and_then(|digits| digits.parse::<u64>().ok())
        .and_then(|number| number.checked_mul(1 << shift))
        .filter(|bytes| *bytes > 0)
        .ok_or(EXPECTED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_number_with_at_most_one_suffix() {
        for (text, bytes) in [
            ("4096", 4096),
            ("1K", 1024),
            ("512m", 512 << 20),
            ("2G", 2 << 30),
            ("16T", 16 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "0",
            "G",
            "-1",
            "+1",
            "1.5G",
            "1 G",
            "2GB",
            "0x10",
            "16777216T",
            "\u{ff}",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
