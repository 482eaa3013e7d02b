//! Sizes on the command line.

/// Parses a number of bytes, at least 1, with an optional suffix for a power of 1024.
///
/// # Errors
/// Says what a size looks like.
pub(super) fn parse_size(text: &str) -> Result<u64, &'static str> {
    let suffixes = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
    let suffixed = suffixes.iter().find_map(|(suffix, shift)| {
        let digits = text.strip_suffix([*suffix, suffix.to_ascii_lowercase()])?;
        Some((digits, *shift))
    });
    let (digits, shift) = suffixed.unwrap_or((text, 0));
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .filter(|bytes| *bytes > 0)
        .ok_or("expected a number of bytes, such as 8T, 512G or 1048576")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes_for_powers_of_1024() {
        let table = [
            ("7", 7),
            ("2K", 2048),
            ("3m", 3 << 20),
            ("5G", 5 << 30),
            ("8T", 8 << 40),
        ];
        for (text, bytes) in table {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "K", "-1", "1.5G", "1KB", "G1"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
