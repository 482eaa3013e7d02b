//! What a successor finds, at whatever moment its predecessor ends.

use std::os::fd::OwnedFd;

use super::*;

const REQUEST_OF_GUEST: Request = [3, 0xa00_3e70, 1, 0, 4, 9, 0, 0];

/// The journal as a successor opens it.
fn succeed(journal: &Journal) -> Journal {
    let descriptor = journal.descriptor().try_clone_to_owned().unwrap();
    let (journal, readable) = Journal::open(descriptor, 3).unwrap();
    assert!(readable);
    journal
}

#[test]
fn request_is_in_hand_from_when_the_driver_wrote_it_until_it_was_completed() {
    let journal = Journal::new(3).unwrap();
    assert_eq!(succeed(&journal).unfinished(), None);
    let memory = journal.prepare_attach();
    assert_eq!(succeed(&journal).unfinished(), None);
    memory.copy_from(REQUEST_OF_GUEST.as_bytes());
    let in_hand = Some(Unfinished::Taken(REQUEST_OF_GUEST));
    assert_eq!(succeed(&journal).unfinished(), in_hand);
    let mut answered = REQUEST_OF_GUEST;
    answered[3] = 0x7472_6976;
    let given = journal.begin_complete(answered);
    let mut bytes = [0; 64];
    given.copy_to(&mut bytes);
    assert_eq!(bytes, answered.as_bytes());
    let doubtful = Some(Unfinished::Uncertain(answered));
    assert_eq!(succeed(&journal).unfinished(), doubtful);
    journal.end_request();
    assert_eq!(succeed(&journal).unfinished(), None);
}

#[test]
fn doubts_are_kept_until_they_are_settled() {
    let journal = Journal::new(3).unwrap();
    let request = |number| [3, 0, 0, 0, 4, number, 0, 0];
    for number in [1, 2, 2] {
        journal.set_aside(request(number));
    }
    let successor = succeed(&journal);
    assert_eq!(successor.uncertain(), [request(1), request(2)]);
    successor.drop_uncertain(|doubt| doubt[5] == 1);
    assert_eq!(succeed(&journal).uncertain(), [request(2)]);
    for number in 10..20 {
        journal.set_aside(request(number));
    }
    assert_eq!(journal.uncertain().len(), UNCERTAIN.len());
    assert!(journal.uncertain().contains(&request(19)));
}

#[test]
fn memory_and_request_in_hand_are_known_to_every_version() {
    let journal = Journal::new(3).unwrap();
    assert_eq!(journal.memory(), None);
    let memory = GuestRange::new(0x1000_0000, 0x100_0000);
    journal.set_memory(memory);
    journal.save(&Registers::default());
    journal
        .prepare_attach()
        .copy_from(REQUEST_OF_GUEST.as_bytes());
    let mut head: Head = journal.read(HEAD);
    head.version += 1;
    journal.write(HEAD, head);

    let descriptor = journal.descriptor().try_clone_to_owned().unwrap();
    let (later, readable) = Journal::open(descriptor, 3).unwrap();
    assert!(!readable);
    later.reset();
    let successor = succeed(&later);
    assert_eq!(successor.memory(), memory);
    assert_eq!(
        successor.unfinished(),
        Some(Unfinished::Taken(REQUEST_OF_GUEST))
    );
    assert_eq!(successor.saved_registers(), SavedRegisters::None);
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

/// A damaged journal is noticed: a request that may have been taken is not forgotten.
#[test]
fn damaged_phase_leaves_the_request_in_doubt() {
    let journal = Journal::new(3).unwrap();
    journal
        .prepare_attach()
        .copy_from(REQUEST_OF_GUEST.as_bytes());
    journal.store::<u64>(PHASE, 0x100);
    let doubtful = Some(Unfinished::Uncertain(REQUEST_OF_GUEST));
    assert_eq!(succeed(&journal).unfinished(), doubtful);
    journal.prepare_attach();
    journal.store::<u64>(PHASE, 7);
    assert_eq!(succeed(&journal).unfinished(), None);
}
