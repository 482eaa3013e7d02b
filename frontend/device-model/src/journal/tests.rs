//! What a successor finds after an end at any moment.

use std::os::fd::OwnedFd;

use super::*;

const REQUEST_OF_GUEST: Request = [3, 0xa00_3e70, 1, 0, 4, 9, 0, 0];

/// The journal as a successor sees it.
fn succeed(journal: &Journal) -> Journal {
    let descriptor = journal.descriptor().try_clone_to_owned().unwrap();
    let (journal, readable) = Journal::open(descriptor, 3).unwrap();
    assert!(readable);
    journal
}

#[test]
fn request_is_in_hand_from_when_the_driver_wrote_it_until_it_was_completed() {
    let journal = Journal::new(3).unwrap();
    assert_eq!(succeed(&journal).inherited(), None);
    let place = journal.lay_out();
    assert_eq!(succeed(&journal).inherited(), None);
    place.copy_from(REQUEST_OF_GUEST.as_bytes());
    let in_hand = Some(Inherited::InHand(REQUEST_OF_GUEST));
    assert_eq!(succeed(&journal).inherited(), in_hand);
    let mut answered = REQUEST_OF_GUEST;
    answered[3] = 0x7472_6976;
    let given = journal.about_to_complete(answered);
    let mut bytes = [0; 64];
    given.copy_to(&mut bytes);
    assert_eq!(bytes, answered.as_bytes());
    let doubtful = Some(Inherited::Doubtful(answered));
    assert_eq!(succeed(&journal).inherited(), doubtful);
    journal.free();
    assert_eq!(succeed(&journal).inherited(), None);
}

#[test]
fn doubts_are_kept_until_they_are_settled() {
    let journal = Journal::new(3).unwrap();
    let request = |number| [3, 0, 0, 0, 4, number, 0, 0];
    for number in [1, 2, 2] {
        journal.doubt(request(number));
    }
    let successor = succeed(&journal);
    assert_eq!(successor.doubts(), [request(1), request(2)]);
    successor.settle(|doubt| doubt[5] == 1);
    assert_eq!(succeed(&journal).doubts(), [request(2)]);
    for number in 10..20 {
        journal.doubt(request(number));
    }
    assert_eq!(journal.doubts().len(), DOUBTS.len());
    assert!(journal.doubts().contains(&request(19)));
}

#[test]
fn memory_and_request_in_hand_are_known_to_every_version() {
    let journal = Journal::new(3).unwrap();
    assert_eq!(journal.told_memory(), None);
    let memory = GuestRange::new(0x1000_0000, 0x100_0000);
    journal.note_memory(memory);
    journal.save(&Registers::default());
    journal.lay_out().copy_from(REQUEST_OF_GUEST.as_bytes());
    let mut head: Head = journal.read(HEAD);
    head.version += 1;
    journal.write(HEAD, head);

    let descriptor = journal.descriptor().try_clone_to_owned().unwrap();
    let (later, readable) = Journal::open(descriptor, 3).unwrap();
    assert!(!readable);
    later.start_over();
    let successor = succeed(&later);
    assert_eq!(successor.told_memory(), memory);
    assert_eq!(
        successor.inherited(),
        Some(Inherited::InHand(REQUEST_OF_GUEST))
    );
    assert_eq!(successor.left(), Left::Nothing);
}

#[test]
fn what_is_no_journal_of_the_device_is_refused() {
    let journal = Journal::new(4).unwrap();
    let descriptor = journal.descriptor().try_clone_to_owned().unwrap();
    assert!(matches!(
        Journal::open(descriptor, 3),
        Err(JournalError::Foreign { device: 3 })
    ));
    let null = OwnedFd::from(File::open("/dev/null").unwrap());
    assert!(matches!(
        Journal::open(null, 3),
        Err(JournalError::Foreign { .. })
    ));
    let unsealed = memfd_create("short", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&unsealed, LEN).unwrap();
    assert!(matches!(
        Journal::open(unsealed, 3),
        Err(JournalError::Foreign { .. })
    ));
}

/// A damaged journal is noticed: what may be in hand is not taken for nothing.
#[test]
fn damaged_phase_leaves_the_request_in_doubt() {
    let journal = Journal::new(3).unwrap();
    journal.lay_out().copy_from(REQUEST_OF_GUEST.as_bytes());
    journal.store::<u64>(PHASE, 0x100);
    let doubtful = Some(Inherited::Doubtful(REQUEST_OF_GUEST));
    assert_eq!(succeed(&journal).inherited(), doubtful);
    journal.lay_out();
    journal.store::<u64>(PHASE, 7);
    assert_eq!(succeed(&journal).inherited(), None);
}
