//! The bound endpoints and their programs.

use std::collections::{BTreeMap, HashMap};

use crate::abi::{Code, DcId, DcLimits, Endpoint, Header};

/// A bound endpoint.
struct Entry {
    program: u64,
    endpoint: Endpoint,
    name: String,
}

/// All bound endpoints.
pub(super) struct Table {
    dcs: HashMap<DcId, DcLimits>,
    /// Keyed by container and slot.
    entries: BTreeMap<(i32, i32), Entry>,
}

impl Table {
    pub(super) fn new(dcs: HashMap<DcId, DcLimits>) -> Self {
        Self {
            dcs,
            entries: BTreeMap::new(),
        }
    }

    /// Binds `endpoint` of container `dc` for `program`. A second bind by the same program changes
    /// nothing, since a program that connects while it binds may send it twice.
    pub(super) fn bind(
        &mut self,
        program: u64,
        dc: i32,
        endpoint: Endpoint,
        name: &str,
    ) -> Result<(), Code> {
        let limits = DcId::new(dc).and_then(|dc| self.dcs.get(&dc));
        let limits = limits.ok_or(Code::EDVSBADDCID)?;
        if !limits.contains(endpoint) {
            return Err(Code::EDVSBADRANGE);
        }
        let key = (dc, endpoint.slot());
        if let Some(entry) = self.entries.get(&key) {
            let own = entry.program == program && entry.endpoint == endpoint;
            return own.then_some(()).ok_or(Code::EDVSSLOTUSED);
        }
        let name = name.to_owned();
        self.entries.insert(
            key,
            Entry {
                program,
                endpoint,
                name,
            },
        );
        Ok(())
    }

    /// Unbinds `endpoint` if `program` has it. Returns whether it had.
    pub(super) fn unbind(&mut self, program: u64, dc: i32, endpoint: Endpoint) -> bool {
        let key = (dc, endpoint.slot());
        let entry = self.entries.get(&key);
        if !entry.is_some_and(|it| it.program == program && it.endpoint == endpoint) {
            return false;
        }
        self.entries.remove(&key).is_some()
    }

    /// Unbinds all endpoints of `program` and returns them.
    pub(super) fn unbind_all(&mut self, program: u64) -> Vec<(i32, Endpoint)> {
        let theirs = self.entries.iter().filter(|(_, it)| it.program == program);
        let theirs: Vec<_> = theirs.map(|(&(dc, _), it)| (dc, it.endpoint)).collect();
        self.entries.retain(|_, it| it.program != program);
        theirs
    }

    /// The program that a command of `program` is for, if `program` has its source.
    pub(super) fn receiver(&self, program: u64, header: &Header) -> Result<u64, Code> {
        let find = |endpoint: Endpoint| {
            let entry = self.entries.get(&(header.dc, endpoint.slot()));
            entry.filter(|it| it.endpoint == endpoint)
        };
        if find(header.src).is_none_or(|it| it.program != program) {
            return Err(Code::EDVSNOTBIND);
        }
        let receiver = find(header.dst).ok_or(Code::EDVSDSTDIED)?;
        Ok(receiver.program)
    }

    /// The bound endpoints: container, endpoint, program, name.
    pub(super) fn entries(&self) -> impl Iterator<Item = (i32, Endpoint, u64, &str)> {
        let entries = self.entries.iter();
        entries.map(|(&(dc, _), it)| (dc, it.endpoint, it.program, it.name.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Command;

    fn table() -> Table {
        let dc = DcId::new(0).unwrap();
        Table::new(HashMap::from([(dc, DcLimits::USUAL)]))
    }

    fn command(src: i32, dst: i32) -> Header {
        Header {
            src: Endpoint::from_raw(src),
            dst: Endpoint::from_raw(dst),
            ..Header::new(Command::SEND_MSG)
        }
    }

    #[test]
    fn a_slot_is_one_programs() {
        let mut table = table();
        let one = Endpoint::from_raw(1);
        assert_eq!(table.bind(7, 0, one, "a"), Ok(()));
        assert_eq!(table.bind(7, 0, one, "a"), Ok(()));
        assert_eq!(table.bind(8, 0, one, "b"), Err(Code::EDVSSLOTUSED));
        assert_eq!(table.bind(8, 1, one, "b"), Err(Code::EDVSBADDCID));
        let beyond = Endpoint::from_raw(221);
        assert_eq!(table.bind(8, 0, beyond, "b"), Err(Code::EDVSBADRANGE));
        assert!(!table.unbind(8, 0, one));
        assert!(table.unbind(7, 0, one));
        assert_eq!(table.bind(8, 0, one, "b"), Ok(()));
    }

    #[test]
    fn a_program_cannot_send_as_another() {
        let mut table = table();
        table.bind(7, 0, Endpoint::from_raw(1), "a").unwrap();
        table.bind(8, 0, Endpoint::from_raw(2), "b").unwrap();
        assert_eq!(table.receiver(7, &command(1, 2)), Ok(8));
        assert_eq!(table.receiver(8, &command(1, 2)), Err(Code::EDVSNOTBIND));
        assert_eq!(table.receiver(7, &command(1, 3)), Err(Code::EDVSDSTDIED));
    }

    #[test]
    fn an_exit_releases_all_endpoints() {
        let mut table = table();
        table.bind(7, 0, Endpoint::from_raw(1), "a").unwrap();
        table.bind(7, 0, Endpoint::from_raw(-2), "b").unwrap();
        table.bind(8, 0, Endpoint::from_raw(2), "c").unwrap();
        assert_eq!(
            table.unbind_all(7),
            [(0, Endpoint::from_raw(-2)), (0, Endpoint::from_raw(1))]
        );
        assert_eq!(table.entries().count(), 1);
    }
}
