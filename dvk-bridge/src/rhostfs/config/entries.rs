//! Reads a block as keys and values. Each key is known, occurs once, and has one value.

use std::collections::HashMap;

use super::fault::{Fault, Location};
use super::parser::{Item, Line};
use super::tokenizer::{Kind, Token};

/// A block of a file: `KIND NAME { KEY VALUE; ... };`
pub(super) struct Entries<'a> {
    /// The block's name.
    pub(super) name: String,
    pub(super) at: Location,
    values: HashMap<&'a str, Token>,
}

/// The words that a value may be, and their meanings.
pub(super) type Choice<'a, T> = &'a [(&'a str, T)];

/// Yes and no.
pub(super) const YES_NO: Choice<'static, bool> = &[("yes", true), ("no", false)];

impl<'a> Entries<'a> {
    /// Reads a block with the known `keys`. An alias stands for the key behind it.
    pub(super) fn read(
        line: &Line,
        keys: &[&'a str],
        aliases: &[(&str, &'a str)],
        faults: &mut Vec<Fault>,
    ) -> Option<Self> {
        let [kind, name, block, extra @ ..] = line.items.as_slice() else {
            let what = "expected a block: a name, and keys in braces";
            faults.push(Fault::new(&line.at, first_word(line), what));
            return None;
        };
        let (Item::Word(name), Item::Block(lines, _)) = (name, block) else {
            let what = "expected a block: a name, and keys in braces";
            faults.push(Fault::new(kind.at(), kind.written(), what));
            return None;
        };
        if let Some(extra) = extra.first() {
            let what =
                "it is on the line of the block before it, and would be overlooked: a ; is missing";
            faults.push(Fault::new(extra.at(), extra.written(), what));
        }
        let mut entries = Self {
            name: text(name).to_owned(),
            at: kind.at().clone(),
            values: HashMap::new(),
        };
        for line in lines {
            entries.add(line, keys, aliases, faults);
        }
        Some(entries)
    }

    fn add(
        &mut self,
        line: &Line,
        keys: &[&'a str],
        aliases: &[(&str, &'a str)],
        faults: &mut Vec<Fault>,
    ) {
        let written = first_word(line);
        let mut fault =
            |at: &Location, token: &str, what: String| faults.push(Fault::new(at, token, what));
        let alias = aliases.iter().find(|(alias, _)| *alias == written);
        let wanted = alias.map_or(written.as_str(), |(_, key)| key);
        let Some(key) = keys.iter().find(|key| **key == wanted) else {
            let what = format!("unknown key; the block's keys are {}", keys.join(", "));
            return fault(&line.at, &written, what);
        };
        let [Item::Word(value), extra @ ..] = line.items.get(1..).unwrap_or_default() else {
            return fault(&line.at, &written, "expected one value".to_owned());
        };
        if let Some(extra) = extra.first() {
            let what = format!(
                "it is on the line of {written}, and would be overlooked: a ; is missing before it"
            );
            fault(extra.at(), &extra.written(), what);
        }
        if let Some(before) = self.values.insert(key, value.clone()) {
            let what = format!("line {} already has it", before.at.line);
            fault(&line.at, &written, what);
        }
    }

    /// The location of a key, or else of the block.
    pub(super) fn at(&self, key: &str) -> &Location {
        self.values.get(key).map_or(&self.at, |value| &value.at)
    }

    /// Reports that a key is missing.
    pub(super) fn missing(&self, key: &str, faults: &mut Vec<Fault>) {
        let what = format!("it is missing in {}", self.name);
        faults.push(Fault::new(&self.at, key, what));
    }

    /// Reports what is wrong with a key's value.
    pub(super) fn wrong(&self, key: &str, what: impl Into<String>, faults: &mut Vec<Fault>) {
        let written = self.values.get(key).map(|value| value.kind.written());
        let token = format!("{key} {}", written.unwrap_or_default());
        faults.push(Fault::new(self.at(key), token.trim_end(), what));
    }

    /// Whether the block has the key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// A number from `least` to `most`.
    pub(super) fn number(
        &self,
        key: &str,
        least: u32,
        most: u32,
        faults: &mut Vec<Fault>,
    ) -> Option<u32> {
        let value = self.values.get(key)?;
        let digits = match &value.kind {
            Kind::Word(word) if word.bytes().all(|byte| byte.is_ascii_digit()) => word.parse().ok(),
            _ => None,
        };
        let number = digits.filter(|number| (least..=most).contains(number));
        if number.is_none() {
            self.wrong(
                key,
                format!("must be a number from {least} to {most}"),
                faults,
            );
        }
        number
    }

    /// One of several words.
    pub(super) fn choice<T: Copy>(
        &self,
        key: &str,
        choice: Choice<'_, T>,
        faults: &mut Vec<Fault>,
    ) -> Option<T> {
        let value = self.values.get(key)?;
        let found = choice.iter().find(|(word, _)| *word == text(value));
        if found.is_none() {
            let words: Vec<&str> = choice.iter().map(|(word, _)| *word).collect();
            self.wrong(key, format!("must be one of {}", words.join(", ")), faults);
        }
        found.map(|(_, meaning)| *meaning)
    }

    /// A non-empty string in quotes.
    pub(super) fn quoted(&self, key: &str, faults: &mut Vec<Fault>) -> Option<&str> {
        match &self.values.get(key)?.kind {
            Kind::Text(text) if !text.is_empty() => Some(text),
            _ => {
                self.wrong(key, "must be a string in quotes", faults);
                None
            }
        }
    }

    /// A word or a string.
    pub(super) fn word(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(text)
    }
}

/// The first word of a line, as written.
pub(super) fn first_word(line: &Line) -> String {
    line.items.first().map(Item::written).unwrap_or_default()
}

fn text(token: &Token) -> &str {
    match &token.kind {
        Kind::Word(text) | Kind::Text(text) => text,
        Kind::End | Kind::Open | Kind::Close => "",
    }
}
