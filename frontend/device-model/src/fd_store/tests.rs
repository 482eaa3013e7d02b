//! Device models and an fd store in one process.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use zerocopy::IntoBytes;

use super::process::serve;
use super::*;

fn socket() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

/// An fd store in a thread.
pub(crate) struct TestFdStore {
    address: SocketAddrUnix,
    thread: thread::JoinHandle<()>,
}

impl TestFdStore {
    pub(crate) fn start(name: &str) -> Self {
        let name = format!("gangplank-test:{}:{name}", std::process::id());
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
        let listener = socket();
        bind(&listener, &address).unwrap();
        listen(&listener, 8).unwrap();
        Self {
            address,
            thread: thread::spawn(move || serve(&listener).unwrap()),
        }
    }

    pub(crate) fn client(&self) -> Arc<FdStore> {
        let socket = socket();
        connect(&socket, &self.address).unwrap();
        Arc::new(FdStore::on(socket))
    }
}

#[test]
fn successor_gets_what_was_kept_and_the_same_eventfds() {
    let held = TestFdStore::start("successor");
    let first = Entry::claim(held.client(), 3).unwrap();
    let kick = first.eventfd(Slot::Kick(1)).unwrap();
    first.put(Slot::Device, std::io::stdin().as_fd()).unwrap();
    kick.write(5).unwrap();
    drop((first, kick));

    let second = claim_when_free(&held, 3);
    assert!(second.get(Slot::Device).unwrap().is_some());
    assert!(second.get(Slot::Journal).unwrap().is_none());
    let kick = second.eventfd(Slot::Kick(1)).unwrap();
    assert_eq!(kick.read().unwrap(), 5);
    let other = second.eventfd(Slot::Kick(2)).unwrap();
    assert!(other.read().is_err());
}

#[test]
fn second_device_model_is_refused_by_name_of_the_first() {
    let held = TestFdStore::start("second");
    let first = Entry::claim(held.client(), 0).unwrap();
    let refused = Entry::claim(held.client(), 0).unwrap_err();
    assert!(matches!(
        refused,
        FdStoreError::Busy { device: 0, process } if process == std::process::id()
    ));
    let _other = Entry::claim(held.client(), 1).unwrap();
    drop(first);
    claim_when_free(&held, 0);
}

#[test]
fn holder_with_nothing_to_hold_ends_with_its_last_client() {
    let held = TestFdStore::start("nothing");
    let entry = Entry::claim(held.client(), 0).unwrap();
    entry.put(Slot::Backend, std::io::stdin().as_fd()).unwrap();
    entry.remove(Slot::Backend).unwrap();
    drop(entry);
    held.thread.join().unwrap();
}

#[test]
fn everything_is_kept_again_where_the_holder_was_lost() {
    let [lost, next] = ["lost", "next"].map(TestFdStore::start);
    let entry = Entry::claim(lost.client(), 2).unwrap();
    let kick = entry.eventfd(Slot::Kick(0)).unwrap();
    // As if the entry's connection had been made again, to another fd store.
    let entry = entry.moved_to(next.client());
    entry.renew().unwrap();
    drop(entry);
    kick.write(7).unwrap();
    let successor = claim_when_free(&next, 2);
    assert_eq!(successor.eventfd(Slot::Kick(0)).unwrap().read().unwrap(), 7);
}

#[test]
fn everything_is_kept_again_by_a_holder_that_has_it_already() {
    let held = TestFdStore::start("again");
    let entry = Entry::claim(held.client(), 2).unwrap();
    entry
        .put_permanent(Slot::Device, std::io::stdin().as_fd())
        .unwrap();
    entry.eventfd(Slot::Kick(0)).unwrap();
    for _ in 0..2 {
        entry.renew().unwrap();
    }
    assert!(!entry.is_pending());
}

#[test]
fn what_must_not_be_lost_is_pending_until_there_is_a_holder() {
    let [lost, next] = ["gone", "there"].map(TestFdStore::start);
    let client = lost.client();
    let entry = Entry::claim(Arc::clone(&client), 2).unwrap();
    client.hang_up();
    entry
        .put_permanent(Slot::Device, std::io::stdin().as_fd())
        .unwrap();
    assert!(entry.is_pending());
    assert!(entry.renew().is_err() && entry.is_pending());
    let entry = entry.moved_to(next.client());
    entry.renew().unwrap();
    assert!(!entry.is_pending());
    drop(entry);
    assert!(
        claim_when_free(&next, 2)
            .get(Slot::Device)
            .unwrap()
            .is_some()
    );
}

#[test]
fn noise_is_answered_and_harms_nobody() {
    let held = TestFdStore::start("noise");
    let entry = Entry::claim(held.client(), 0).unwrap();
    entry.put(Slot::Device, std::io::stdin().as_fd()).unwrap();
    let noisy = socket();
    connect(&noisy, &held.address).unwrap();
    let noise = [
        [0xffu8; 16].as_slice(),
        &[1],
        &[0; 64],
        [0u32; 4].as_bytes(),
    ];
    for bytes in noise {
        rustix::net::send(&noisy, bytes, rustix::net::SendFlags::NOSIGNAL).unwrap();
        let mut answer = [0u32; 4];
        let read = rustix::io::read(&noisy, answer.as_mut_bytes()).unwrap();
        assert_eq!((read, answer[1]), (16, 6), "{bytes:?}");
    }
    assert!(entry.get(Slot::Device).unwrap().is_some());
}

/// The fd store notices a client's end a moment later.
pub(crate) fn claim_when_free(held: &TestFdStore, device: u32) -> Entry {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        match Entry::claim(held.client(), device) {
            Err(FdStoreError::Busy { .. }) if std::time::Instant::now() < deadline => {
                thread::yield_now();
            }
            claimed => return claimed.unwrap(),
        }
    }
}
