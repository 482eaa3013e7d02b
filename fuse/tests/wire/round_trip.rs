//! What a client encodes has the bytes that a kernel sends, and a server decodes it to the same.

use gangplank_fuse::dir::{DirentWriter, Direntplusses, Dirents};
use gangplank_fuse::*;
use proptest::collection::vec;
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use crate::requests::{material, opcode, with_request};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_request_comes_back_as_it_was(opcode in opcode(), material in material()) {
        with_request(opcode, &material, |request, expected| {
            let mut out = vec![0xee; 3];
            request.encode(&material.header, material.dialect, &mut out).unwrap();
            let (header, args) = InHeader::read_from_prefix(&out[3..]).unwrap();
            assert_eq!(args, expected);
            assert_eq!(header.opcode(), Ok(opcode));
            let bulk = request.operation.bulk_len() as usize;
            assert_eq!(header.len as usize, 40 + args.len() + bulk);
            let expected = (material.header.unique, material.header.node);
            assert_eq!((header.unique(), header.node()), expected);
            assert_eq!(
                (header.uid, header.gid, header.pid),
                (material.header.uid, material.header.gid, material.header.pid)
            );
            assert_eq!(Operation::decode(&header, args, material.dialect), Ok(request));
        });
    }

    #[test]
    fn entries_come_back_as_they_were(
        names in vec(vec(any::<u8>(), 0..60), 0..40),
        room in 0_usize..4096,
        number in any::<u32>(),
    ) {
        let mut buffer = vec![0xaa; room];
        let mut writer = DirentWriter::new(&mut buffer);
        let push = |name: &&Vec<u8>| writer.push(7, 9, number, name).is_ok();
        let pushed = names.iter().take_while(push).count();
        let written = writer.written();
        let found: Vec<_> = Dirents::new(&buffer[..written]).map(Result::unwrap).collect();
        prop_assert_eq!(found.len(), pushed);
        for (entry, name) in found.iter().zip(&names) {
            prop_assert_eq!(entry.name, &name[..]);
            let dirent = entry.dirent;
            prop_assert_eq!((dirent.ino, dirent.off, dirent.r#type), (7, 9, number));
        }
        prop_assert!(buffer[written..].iter().all(|&byte| byte == 0xaa));
    }

    #[test]
    fn entries_with_nodes_come_back_as_they_were(
        names in vec(vec(any::<u8>(), 0..60), 0..20),
        room in 0_usize..4096,
        entry_out in vec(any::<u8>(), 128),
    ) {
        let entry_out = EntryOut::read_from_bytes(&entry_out).unwrap();
        let mut buffer = vec![0xaa; room];
        let mut writer = DirentWriter::new(&mut buffer);
        let push = |name: &&Vec<u8>| writer.push_plus(&entry_out, 7, 9, 4, name).is_ok();
        let pushed = names.iter().take_while(push).count();
        let written = writer.written();
        let found: Vec<_> = Direntplusses::new(&buffer[..written]).map(Result::unwrap).collect();
        prop_assert_eq!(found.len(), pushed);
        for (entry, name) in found.iter().zip(&names) {
            prop_assert_eq!((entry.entry_out, entry.name), (entry_out, &name[..]));
        }
    }

    #[test]
    fn replies_come_back_as_they_were(
        unique in any::<u64>(), payload in vec(any::<u8>(), 0..300), errno in 1..512_i32,
    ) {
        let unique = Unique::new(unique);
        let mut bytes = OutHeader::ok(unique, payload.len()).as_bytes().to_vec();
        bytes.extend_from_slice(&payload);
        let expected = reply::Reply { unique, result: Ok(&payload[..]) };
        prop_assert_eq!(reply::Reply::decode(&bytes).unwrap(), expected);
        let error = OutHeader::error(unique, errno);
        let expected = reply::Reply { unique, result: Err(errno) };
        prop_assert_eq!(reply::Reply::decode(error.as_bytes()).unwrap(), expected);
    }
}
