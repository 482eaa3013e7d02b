//! The words of a line, and what is quoted in it.

use super::super::error::{Error, Result};
use super::super::glob::is_pattern;
use super::super::path::text;

/// A word without its quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) bytes: Vec<u8>,
    /// Whether a character that makes it a pattern is not quoted.
    pub(super) is_pattern: bool,
}

/// The word at the end of an unfinished line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unfinished {
    /// Where it begins in the line, its quote included.
    pub(super) start: usize,
    /// Without quotes.
    pub(super) word: String,
    /// The words before.
    pub(super) before: Vec<String>,
}

/// Splits a line as a POSIX shell does. A line without words, or a comment, has none.
pub(super) fn split(line: &[u8]) -> Result<Vec<Word>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = to_text(line);
    if line.trim_start().starts_with('#') {
        return Ok(Vec::new());
    }
    let words = shell_words::split(&line).map_err(|_| Error::Word {
        word: text(line.as_bytes()),
        why: "a quote is not closed",
    })?;
    let unquoted = scan(&line).words;
    let words = words.into_iter().enumerate().map(|(number, word)| Word {
        bytes: to_bytes(&word),
        is_pattern: unquoted
            .get(number)
            .is_some_and(|scanned| is_pattern(scanned.unquoted.as_bytes())),
    });
    Ok(words.collect())
}

/// The word at the end of a line, which may have an open quote.
pub(super) fn unfinished(line: &str) -> Unfinished {
    let mut scanned = scan(line);
    let last = match scanned.is_in_word {
        true => scanned.words.pop(),
        false => None,
    };
    let last = last.unwrap_or(Scanned {
        start: line.len(),
        whole: String::new(),
        unquoted: String::new(),
    });
    Unfinished {
        start: last.start,
        word: last.whole,
        before: scanned.words.into_iter().map(|word| word.whole).collect(),
    }
}

/// A word as it is written.
#[derive(Debug)]
struct Scanned {
    start: usize,
    whole: String,
    /// Its characters outside of quotes.
    unquoted: String,
}

#[derive(Debug)]
struct Scan {
    words: Vec<Scanned>,
    /// Whether the line ends in the last word.
    is_in_word: bool,
}

/// Goes through a line, character by character, with the rules of [`shell_words::split`].
fn scan(line: &str) -> Scan {
    let mut scan = Scan {
        words: Vec::new(),
        is_in_word: false,
    };
    let mut quote = None;
    let mut characters = line.char_indices();
    while let Some((at, character)) = characters.next() {
        if quote.is_none() && matches!(character, ' ' | '\t' | '\n') {
            scan.is_in_word = false;
            continue;
        }
        if !scan.is_in_word {
            scan.is_in_word = true;
            scan.words.push(Scanned {
                start: at,
                whole: String::new(),
                unquoted: String::new(),
            });
        }
        let Some(word) = scan.words.last_mut() else {
            continue;
        };
        match (quote, character) {
            (None, '\'' | '"') => quote = Some(character),
            (Some(open), _) if open == character => quote = None,
            (None, '\\') => word
                .whole
                .extend(characters.next().map(|(_, escaped)| escaped)),
            (Some('"'), '\\') => match characters.next() {
                Some((_, escaped @ ('$' | '`' | '"' | '\\'))) => word.whole.push(escaped),
                Some((_, '\n')) | None => {}
                Some((_, other)) => word.whole.extend(['\\', other]),
            },
            (Some(_), _) => word.whole.push(character),
            (None, _) => {
                word.whole.push(character);
                word.unquoted.push(character);
            }
        }
    }
    scan
}

/// First of 256 characters of private use that stand for bytes that are no UTF-8.
const ESCAPED: u32 = 0x10_ff00;

fn to_text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        let escaped = chunk.invalid().iter();
        text.extend(escaped.filter_map(|byte| char::from_u32(ESCAPED + u32::from(*byte))));
    }
    text
}

fn to_bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        match u32::from(character).checked_sub(ESCAPED).map(u8::try_from) {
            Some(Ok(byte)) => bytes.push(byte),
            _ => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[u8]) -> Vec<(Vec<u8>, bool)> {
        let words = split(line).unwrap().into_iter();
        words.map(|word| (word.bytes, word.is_pattern)).collect()
    }

    #[test]
    fn quoted_characters_make_no_pattern() {
        for (line, expected) in [
            (&b"rm *.c"[..], vec![(&b"rm"[..], false), (b"*.c", true)]),
            (
                b"rm '*.c' \"?\" \\*",
                vec![
                    (b"rm", false),
                    (b"*.c", false),
                    (b"?", false),
                    (b"*", false),
                ],
            ),
            (b"rm 'a b'*", vec![(b"rm", false), (b"a b*", true)]),
            (
                b"rm \"a\\\"b\" a\\ b\n",
                vec![(b"rm", false), (b"a\"b", false), (b"a b", false)],
            ),
            (
                b"cat latin\xe4",
                vec![(b"cat", false), (b"latin\xe4", false)],
            ),
            (b"set ''", vec![(b"set", false), (b"", false)]),
            (b"  # rm *", vec![]),
            (b"\n", vec![]),
        ] {
            let expected: Vec<_> = expected
                .into_iter()
                .map(|(word, is_pattern)| (word.to_vec(), is_pattern))
                .collect();
            assert_eq!(words(line), expected, "{}", text(line));
        }
        assert!(split(b"rm 'a").is_err());
    }

    #[test]
    fn last_word_of_an_unfinished_line_is_found() {
        for (line, start, word, before) in [
            ("", 0, "", &[][..]),
            ("l", 0, "l", &[]),
            ("ls ", 3, "", &["ls"]),
            ("cat 'my fi", 4, "my fi", &["cat"]),
            ("cat my\\ fi", 4, "my fi", &["cat"]),
            ("cp :a 'b c'/d", 6, "b c/d", &["cp", ":a"]),
        ] {
            let expected = Unfinished {
                start,
                word: word.to_owned(),
                before: before.iter().map(|word| (*word).to_owned()).collect(),
            };
            assert_eq!(unfinished(line), expected, "{line}");
        }
    }
}
