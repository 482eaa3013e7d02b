//! Permissions as chmod(1) takes them: octal or symbolic.

use std::str::FromStr;

/// A change of permissions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModeChange {
    /// These permissions.
    Octal(u32),
    /// Clauses, one after another.
    Symbolic(Vec<Clause>),
}

/// One operation of a symbolic change, such as `g+w`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clause {
    /// The bits of the classes, set-id bits included. `None` for all that the umask permits.
    who: Option<u32>,
    operator: char,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// Bits, for all classes. `conditional` is `X`.
    Bits { bits: u32, conditional: bool },
    /// The permissions of a class: the shift of its bits.
    Class(u32),
}

const RIGHT: &str = "permissions are octal, such as 644, or symbolic, such as u+rw,go-w";

const ALL: u32 = 0o7777;

impl FromStr for ModeChange {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with(|first: char| first.is_ascii_digit()) {
            return match u32::from_str_radix(text, 8) {
                Ok(mode) if mode <= ALL => Ok(Self::Octal(mode)),
                _ => Err(RIGHT),
            };
        }
        let mut clauses = Vec::new();
        for part in text.split(',') {
            let operators = part.find(['+', '-', '=']).ok_or(RIGHT)?;
            let (who, mut rest) = part.split_at(operators);
            let who = classes(who)?;
            while let Some(operator) = rest.chars().next() {
                rest = &rest[1..];
                let end = rest.find(['+', '-', '=']).unwrap_or(rest.len());
                let (what, next) = rest.split_at(end);
                rest = next;
                clauses.push(Clause {
                    who,
                    operator,
                    what: what_of(what)?,
                });
            }
        }
        Ok(Self::Symbolic(clauses))
    }
}

fn classes(letters: &str) -> Result<Option<u32>, &'static str> {
    let mut bits = 0;
    for letter in letters.chars() {
        bits |= match letter {
            'u' => 0o4700,
            'g' => 0o2070,
            'o' => 0o1007,
            'a' => ALL,
            _ => return Err(RIGHT),
        };
    }
    Ok((bits != 0).then_some(bits))
}

fn what_of(letters: &str) -> Result<What, &'static str> {
    match letters {
        "u" => return Ok(What::Class(6)),
        "g" => return Ok(What::Class(3)),
        "o" => return Ok(What::Class(0)),
        _ => {}
    }
    let (mut bits, mut conditional) = (0, false);
    for letter in letters.chars() {
        match letter {
            'r' => bits |= 0o444,
            'w' => bits |= 0o222,
            'x' => bits |= 0o111,
            'X' => conditional = true,
            's' => bits |= 0o6000,
            't' => bits |= 0o1000,
            _ => return Err(RIGHT),
        }
    }
    Ok(What::Bits { bits, conditional })
}

impl ModeChange {
    /// The permissions after the change of `mode`. `umask` limits a change without classes.
    #[must_use]
    pub fn apply(&self, mode: u32, is_directory: bool, umask: u32) -> u32 {
        let clauses = match self {
            // As chmod(1): a directory keeps its set-id bits.
            Self::Octal(octal) if is_directory => return octal | (mode & 0o6000),
            Self::Octal(octal) => return *octal,
            Self::Symbolic(clauses) => clauses,
        };
        clauses.iter().fold(mode & ALL, |mode, clause| {
            clause.apply(mode, is_directory, umask)
        })
    }
}

impl Clause {
    fn apply(self, mode: u32, is_directory: bool, umask: u32) -> u32 {
        let bits = match self.what {
            What::Class(shift) => {
                let bits = (mode >> shift) & 7;
                bits << 6 | bits << 3 | bits
            }
            What::Bits { bits, conditional } if conditional => {
                let can_run = is_directory || mode & 0o111 != 0;
                bits | if can_run { 0o111 } else { 0 }
            }
            What::Bits { bits, .. } => bits,
        };
        let who = self.who.unwrap_or(ALL & !umask);
        let bits = bits & who;
        match self.operator {
            '+' => mode | bits,
            '-' => mode & !bits,
            _ => {
                let classes = self.who.unwrap_or(ALL);
                // A directory's set-id bits stay unless they are named.
                let kept = if is_directory { 0o6000 } else { 0 };
                (mode & !(classes & !kept)) | bits
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbolic_changes_are_those_of_chmod() {
        for (change, before, is_directory, after) in [
            ("644", 0o4755, false, 0o644),
            ("755", 0o2700, true, 0o2755),
            ("u+x", 0o644, false, 0o744),
            ("+x", 0o644, false, 0o755),
            ("+w", 0o444, false, 0o644),
            ("a+w", 0o444, false, 0o666),
            ("go-rwx", 0o777, false, 0o700),
            ("u=rw,go=r", 0o777, false, 0o644),
            ("g=u", 0o741, false, 0o771),
            ("a+X", 0o644, false, 0o644),
            ("a+X", 0o744, false, 0o755),
            ("a+X", 0o644, true, 0o755),
            ("u+s,g+s", 0o755, false, 0o6755),
            ("+t", 0o777, true, 0o1777),
            ("u=", 0o4755, false, 0o055),
            ("u+r-w", 0o200, false, 0o400),
        ] {
            let parsed: ModeChange = change.parse().unwrap();
            let changed = parsed.apply(before, is_directory, 0o022);
            assert_eq!(changed, after, "{change} of {before:o}: {changed:o}");
        }
    }

    #[test]
    fn other_changes_are_refused() {
        for change in ["", "u", "888", "10000", "x+r", "u+y", "u+r,"] {
            assert_eq!(change.parse::<ModeChange>(), Err(RIGHT), "{change}");
        }
    }
}
