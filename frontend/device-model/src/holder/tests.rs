//! Device models and a holder, in one process.

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

/// A holder's thread.
pub(crate) struct Held {
    address: SocketAddrUnix,
    thread: thread::JoinHandle<()>,
}

impl Held {
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

    pub(crate) fn client(&self) -> Arc<Holder> {
        let socket = socket();
        connect(&socket, &self.address).unwrap();
        Arc::new(Holder::on(socket))
    }
}

#[test]
fn successor_gets_what_was_kept_and_the_same_eventfds() {
    let held = Held::start("successor");
    let first = Keep::claim(held.client(), 3).unwrap();
    let kick = first.eventfd(Slot::Kick(1)).unwrap();
    first.keep(Slot::Device, std::io::stdin().as_fd()).unwrap();
    kick.write(5).unwrap();
    drop((first, kick));

    let second = claim_when_free(&held, 3);
    assert!(second.left(Slot::Device).unwrap().is_some());
    assert!(second.left(Slot::Journal).unwrap().is_none());
    let kick = second.eventfd(Slot::Kick(1)).unwrap();
    assert_eq!(kick.read().unwrap(), 5);
    let other = second.eventfd(Slot::Kick(2)).unwrap();
    assert!(other.read().is_err());
}

#[test]
fn second_device_model_is_refused_by_name_of_the_first() {
    let held = Held::start("second");
    let first = Keep::claim(held.client(), 0).unwrap();
    let refused = Keep::claim(held.client(), 0).unwrap_err();
    assert!(
        matches!(refused, HolderError::Busy { device: 0, process } if process == std::process::id())
    );
    let _other = Keep::claim(held.client(), 1).unwrap();
    drop(first);
    claim_when_free(&held, 0);
}

#[test]
fn holder_with_nothing_to_hold_ends_with_its_last_client() {
    let held = Held::start("nothing");
    let keep = Keep::claim(held.client(), 0).unwrap();
    keep.keep(Slot::Daemon, std::io::stdin().as_fd()).unwrap();
    keep.forget(Slot::Daemon).unwrap();
    drop(keep);
    held.thread.join().unwrap();
}

#[test]
fn everything_is_kept_again_where_the_holder_was_lost() {
    let [lost, next] = ["lost", "next"].map(Held::start);
    let keep = Keep::claim(lost.client(), 2).unwrap();
    let kick = keep.eventfd(Slot::Kick(0)).unwrap();
    // As if the connection had been made anew to another.
    let keep = keep.moved_to(next.client());
    keep.renew().unwrap();
    drop(keep);
    kick.write(7).unwrap();
    let successor = claim_when_free(&next, 2);
    assert_eq!(successor.eventfd(Slot::Kick(0)).unwrap().read().unwrap(), 7);
}

#[test]
fn everything_is_kept_again_by_a_holder_that_has_it_already() {
    let held = Held::start("again");
    let keep = Keep::claim(held.client(), 2).unwrap();
    keep.keep_for_good(Slot::Device, std::io::stdin().as_fd())
        .unwrap();
    keep.eventfd(Slot::Kick(0)).unwrap();
    for _ in 0..2 {
        keep.renew().unwrap();
    }
    assert!(!keep.is_pending());
}

#[test]
fn what_must_not_be_lost_is_pending_until_there_is_a_holder() {
    let [lost, next] = ["gone", "there"].map(Held::start);
    let client = lost.client();
    let keep = Keep::claim(Arc::clone(&client), 2).unwrap();
    client.hang_up();
    keep.keep_for_good(Slot::Device, std::io::stdin().as_fd())
        .unwrap();
    assert!(keep.is_pending());
    assert!(keep.renew().is_err() && keep.is_pending());
    let keep = keep.moved_to(next.client());
    keep.renew().unwrap();
    assert!(!keep.is_pending());
    drop(keep);
    assert!(
        claim_when_free(&next, 2)
            .left(Slot::Device)
            .unwrap()
            .is_some()
    );
}

#[test]
fn noise_is_answered_and_harms_nobody() {
    let held = Held::start("noise");
    let keep = Keep::claim(held.client(), 0).unwrap();
    keep.keep(Slot::Device, std::io::stdin().as_fd()).unwrap();
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
    assert!(keep.left(Slot::Device).unwrap().is_some());
}

/// The holder learns of a client's end a moment after it.
pub(crate) fn claim_when_free(held: &Held, device: u32) -> Keep {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        match Keep::claim(held.client(), device) {
            Err(HolderError::Busy { .. }) if std::time::Instant::now() < deadline => {
                thread::yield_now();
            }
            claimed => return claimed.unwrap(),
        }
    }
}
