//! The decoder of a migration stream: any input is refused, or gives a guest that can be loaded in
//! order and that comes back from the encoder as it was.
#![no_main]

use std::collections::HashSet;

use gangplank_backend::state::migration::{Location, MigratedGuest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(guest) = MigratedGuest::decode(bytes) else {
        return;
    };
    let mut opened = HashSet::new();
    for inode in &guest.inodes {
        if let Location::Child { parent, name } = &inode.location {
            assert!(opened.contains(parent), "{inode:?} comes before its parent");
            assert!(!name.contains(['/', '\0']) && name != "..");
        }
        assert!(opened.insert(inode.id), "{inode:?} is there twice");
    }
    assert!(
        guest
            .handles
            .iter()
            .all(|handle| opened.contains(&handle.inode))
    );
    let again = guest
        .encode()
        .expect("a guest that was short is short again");
    assert_eq!(MigratedGuest::decode(&again).as_ref(), Ok(&guest));
});
