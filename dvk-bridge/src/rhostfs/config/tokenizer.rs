//! Splits a configuration file into words, strings and punctuation.
//!
//! ```text
//!   word     letters, digits, bytes from 0x80, and ! # $ % & * + - . / : < = > ? [ ] ^ _ | ~
//!   string   "..." or '...', on one line
//!   ; { }    punctuation
//!   #        after white space: the rest of the line is a comment
//! ```
//!
//! The original treats a backslash both as part of a word and as an escape. This tokenizer refuses
//! it.

use std::path::Path;
use std::sync::Arc;

use super::fault::{Fault, Location};

/// The kind of a token.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// A word without quotes.
    Word(String),
    /// A string, without its quotes.
    Text(String),
    /// `;`
    End,
    /// `{`
    Open,
    /// `}`
    Close,
}

impl Kind {
    /// The text as written, for messages.
    pub(super) fn written(&self) -> String {
        match self {
            Self::Word(word) => word.clone(),
            Self::Text(text) => format!("\"{text}\""),
            Self::End => ";".to_owned(),
            Self::Open => "{".to_owned(),
            Self::Close => "}".to_owned(),
        }
    }
}

/// A token and its location.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) at: Location,
}

/// Splits a file into tokens. Reports and skips bytes that cannot be part of a token.
pub(super) fn split(file: &Arc<Path>, bytes: &[u8], faults: &mut Vec<Fault>) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = bytes;
    let mut at = Location {
        file: Arc::clone(file),
        line: 1,
    };
    let mut after_space = true;
    while let [first, behind @ ..] = rest {
        let space = first.is_ascii_whitespace();
        match first {
            b'\n' => {
                at.line = at.line.saturating_add(1);
                rest = behind;
            }
            _ if space => rest = behind,
            b'#' if after_space => rest = from(rest, |byte| *byte == b'\n'),
            b';' | b'{' | b'}' => {
                let kind = match first {
                    b';' => Kind::End,
                    b'{' => Kind::Open,
                    _ => Kind::Close,
                };
                tokens.push(Token {
                    kind,
                    at: at.clone(),
                });
                rest = behind;
            }
            b'"' | b'\'' => {
                let end = from(behind, |byte| byte == first || *byte == b'\n');
                let text = text(before(behind, end));
                if end.first() == Some(first) {
                    check_text(&at, &text, faults);
                    tokens.push(Token {
                        kind: Kind::Text(text),
                        at: at.clone(),
                    });
                    rest = end.get(1..).unwrap_or(&[]);
                } else {
                    let what = "the string has no end on its line";
                    faults.push(Fault::new(&at, text, what));
                    rest = end;
                }
            }
            _ if is_word(*first) => {
                let end = from(rest, |byte| !is_word(*byte));
                let word = text(before(rest, end));
                if word.starts_with('#') {
                    let what = "a comment needs white space before its #";
                    faults.push(Fault::new(&at, word.clone(), what));
                }
                check_text(&at, &word, faults);
                tokens.push(Token {
                    kind: Kind::Word(word),
                    at: at.clone(),
                });
                rest = end;
            }
            _ => {
                let shown = first.escape_ascii().to_string();
                let what = "the character is allowed in strings only";
                faults.push(Fault::new(&at, shown, what));
                rest = behind;
            }
        }
        after_space = space;
    }
    tokens
}

fn check_text(at: &Location, text: &str, faults: &mut Vec<Fault>) {
    if text.contains('\\') {
        let what =
            "a backslash means different things to different readers of this file: leave it out";
        faults.push(Fault::new(at, text, what));
    }
    if text.contains('\0') {
        let what = "a NUL ends names";
        faults.push(Fault::new(at, text.escape_default().to_string(), what));
    }
}

/// The part of `bytes` from the first byte that `stops` accepts.
fn from(bytes: &[u8], stops: impl Fn(&u8) -> bool) -> &[u8] {
    let at = bytes.iter().position(stops).unwrap_or(bytes.len());
    bytes.get(at..).unwrap_or(&[])
}

/// The part of `bytes` before its suffix `end`.
fn before<'a>(bytes: &'a [u8], end: &[u8]) -> &'a [u8] {
    let len = bytes.len().saturating_sub(end.len());
    bytes.get(..len).unwrap_or(bytes)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || byte >= 0x80
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'/'
                | b':'
                | b'<'
                | b'='
                | b'>'
                | b'?'
                | b'['
                | b'\\'
                | b']'
                | b'^'
                | b'_'
                | b'|'
                | b'~'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> (Vec<String>, Vec<String>) {
        let mut faults = Vec::new();
        let file: Arc<Path> = Path::new("f").into();
        let tokens = split(&file, text.as_bytes(), &mut faults);
        let shown = |token: &Token| format!("{} {}", token.at.line, token.kind.written());
        (
            tokens.iter().map(shown).collect(),
            faults.iter().map(Fault::to_string).collect(),
        )
    }

    #[test]
    fn words_strings_and_punctuation_are_distinguished() {
        let (tokens, faults) = words("rhs S-1 {\n rhs_dir '/a b#c'; x#y\n}; # end\nz");
        assert_eq!(
            tokens,
            [
                "1 rhs",
                "1 S-1",
                "1 {",
                "2 rhs_dir",
                "2 \"/a b#c\"",
                "2 ;",
                "2 x#y",
                "3 }",
                "3 ;",
                "4 z"
            ]
        );
        assert_eq!(faults, [""; 0]);
    }

    #[test]
    fn a_comment_needs_white_space_before_it() {
        let (tokens, faults) = words("a 1;#no comment\n");
        assert_eq!(tokens.len(), 5);
        assert!(
            faults[0].starts_with("f:1: #no: a comment needs"),
            "{faults:?}"
        );
    }

    #[test]
    fn invalid_characters_are_reported_with_their_line() {
        let (_, faults) = words("a\n(b) 'no end\n\\n \"x\\t\"");
        let starts = [
            "f:2: (: the character",
            "f:2: ): the character",
            "f:2: no end: the string",
            "f:3: \\n: a backslash",
            "f:3: x\\t: a backslash",
        ];
        assert_eq!(faults.len(), starts.len(), "{faults:?}");
        for (fault, start) in faults.iter().zip(starts) {
            assert!(fault.starts_with(start), "{fault}");
        }
    }

    #[test]
    fn tokenizing_any_bytes_ends() {
        let mut faults = Vec::new();
        let file: Arc<Path> = Path::new("f").into();
        let bytes: Vec<u8> = (0..=255).collect();
        split(&file, &bytes, &mut faults);
        assert!(!faults.is_empty());
    }
}
