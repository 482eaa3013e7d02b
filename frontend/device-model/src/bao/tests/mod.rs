//! The port against an emulated driver of every generation.

mod emulated;

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::fd::{Driver, Kernel};
use super::sys::{Abi, CREATE, Family, GENERATIONS, GET_INFO};
use super::{BaoError, BaoPort, Node};
use crate::hypervisor::{GuestRange, Operation, Pending, Port, PortError};
use crate::hypervisor_driver::{ConfiguredMemory, DeviceParams};
use crate::journal::Journal;
use crate::mmio::EventFds;
use emulated::{EmulatedDriver, node};

const WINDOW: u64 = 0xa00_3e00;
const NOTIFY: u64 = WINDOW + 0x50;

fn memory() -> GuestRange {
    GuestRange::new(0x1000_0000, 0x100_0000).unwrap()
}

/// Device 3. Its memory is configured as the file at `path`, if given.
fn params(path: Option<&Path>) -> DeviceParams {
    DeviceParams {
        id: 3,
        window: GuestRange::new(WINDOW, 0x200).unwrap(),
        memory: path.map(|path| ConfiguredMemory::open(memory(), path)),
    }
}

fn port(emulated: &EmulatedDriver) -> BaoPort<EmulatedDriver> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let node = Node::new(emulated.clone(), Path::new("/dev/emulated"), node()).unwrap();
    device(&node, &params(Some(file.path()))).unwrap()
}

fn device(
    node: &Node<EmulatedDriver>,
    params: &DeviceParams,
) -> Result<BaoPort<EmulatedDriver>, BaoError> {
    let journal = Arc::new(Journal::new(params.id).unwrap());
    node.device(node.take_device(params.id)?, params, journal)
}

fn every_generation() -> impl Iterator<Item = (&'static Abi, EmulatedDriver)> {
    GENERATIONS
        .iter()
        .map(|abi| (abi, EmulatedDriver::new(abi)))
}

/// A guest's access as the driver gives it out. The last words differ from generation to
/// generation.
fn request(op: u64, value: u64) -> [u64; 8] {
    [
        3,
        WINDOW + 0x70,
        op,
        value,
        4,
        77,
        78,
        0x5555_0000_0000_0001,
    ]
}

fn words(bytes: &[u8]) -> Vec<u64> {
    let (words, rest) = bytes.as_chunks();
    assert!(rest.is_empty());
    words.iter().map(|word| u64::from_le_bytes(*word)).collect()
}

#[test]
fn every_generation_is_found_by_null_pointers_alone() {
    for (abi, emulated) in every_generation() {
        let port = port(&emulated);
        assert_eq!(port.generation(), abi.name);
        let only = match abi.family {
            Family::Created => CREATE,
            Family::Described => GET_INFO,
        };
        assert_eq!(emulated.state().made, [only.code()], "{}", abi.name);
    }
}

#[test]
fn driver_of_no_known_generation_is_refused_with_the_known_ones() {
    for (abi, emulated) in every_generation() {
        emulated.state().missing = vec![abi.attach];
        let node = Node::new(emulated, Path::new("/dev/emulated"), node()).unwrap();
        let error = device(&node, &params(None)).unwrap_err();
        assert!(matches!(error, BaoError::Generation { .. }), "{error}");
        for known in &GENERATIONS {
            assert!(error.to_string().contains(known.name));
        }
    }
}

#[test]
fn file_that_is_no_node_of_the_driver_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let nodes = [PathBuf::from("/nonexistent/node"), file.path().to_owned()];
    let error = Node::open(&nodes).unwrap_err();
    assert!(
        matches!(&error, BaoError::NotBao { node } if node == file.path()),
        "{error}"
    );
}

#[test]
fn absent_node_is_named() {
    let nodes = ["/nonexistent/a", "/nonexistent/b"].map(PathBuf::from);
    let error = Node::open(&nodes).unwrap_err();
    assert!(
        matches!(&error, BaoError::Node { node, .. } if *node == nodes[1]),
        "{error}"
    );
}

#[test]
fn unknown_device_is_named() {
    let emulated = EmulatedDriver::new(&GENERATIONS[0]);
    let node = Node::new(emulated, Path::new("/dev/emulated"), node()).unwrap();
    let params = DeviceParams {
        id: 16,
        ..params(None)
    };
    let error = device(&node, &params).unwrap_err();
    assert!(matches!(error, BaoError::Device { id: 16, .. }), "{error}");
}

#[test]
fn read_is_completed_as_it_came_but_for_its_value() {
    for (abi, emulated) in every_generation() {
        let port = port(&emulated);
        emulated.ask(Ok(request(1, 0)));
        let access = port.next_access().unwrap();
        assert_eq!((access.address, access.width), (WINDOW + 0x70, 4));
        assert_eq!(access.operation, Operation::Read);
        port.complete(access, 0xabcd).unwrap();
        let mut expected = request(1, 0xabcd).to_vec();
        expected.truncate(abi.complete.size() / 8);
        assert_eq!(emulated.state().completed.len(), 1);
        assert_eq!(
            words(&emulated.state().completed[0]),
            expected,
            "{}",
            abi.name
        );
    }
}

#[test]
fn write_is_completed_as_it_came() {
    for (abi, emulated) in every_generation() {
        let port = port(&emulated);
        for op in [0, 7] {
            emulated.ask(Ok(request(op, u64::MAX)));
            let access = port.next_access().unwrap();
            let expected = match op {
                0 => Operation::Write(u64::MAX),
                other => Operation::Unknown(other),
            };
            assert_eq!(access.operation, expected);
            port.complete(access, 0xabcd).unwrap();
            let mut expected = request(op, u64::MAX).to_vec();
            expected.truncate(abi.complete.size() / 8);
            let completed = std::mem::take(&mut emulated.state().completed);
            assert_eq!(words(&completed[0]), expected, "{}", abi.name);
        }
    }
}

#[test]
fn attach_that_a_signal_ended_is_told_from_a_device_that_is_gone() {
    for (abi, emulated) in every_generation() {
        let port = port(&emulated);
        let by_signal = match abi.family {
            Family::Created => Errno::EXIST,
            Family::Described => Errno::FAULT,
        };
        for errno in [by_signal, Errno::INTR] {
            emulated.ask(Err(errno));
            assert!(matches!(port.next_access(), Err(PortError::Interrupted)));
        }
        emulated.ask(Err(Errno::INVAL));
        assert!(matches!(port.next_access(), Err(PortError::Gone)));
        emulated.ask(Err(Errno::IO));
        assert!(matches!(port.next_access(), Err(PortError::Failed { .. })));
    }
    let emulated = EmulatedDriver::new(&GENERATIONS[0]);
    let port = port(&emulated);
    emulated.ask(Err(Errno::PERM));
    assert!(matches!(port.next_access(), Err(PortError::Gone)));
}

#[test]
fn refused_completion_is_told_and_never_repeated() {
    for (_, emulated) in every_generation() {
        let port = port(&emulated);
        for errno in [Errno::PERM, Errno::NOENT, Errno::SRCH, Errno::INTR] {
            emulated.state().complete_error = Some(errno);
            emulated.ask(Ok(request(1, 0)));
            let pending = Pending::next(&port).unwrap();
            let refused = pending.answer(|_| 1);
            assert!(matches!(refused, Err(PortError::Failed { .. })));
            assert_eq!(std::mem::take(&mut emulated.state().completed).len(), 1);
        }
    }
}

#[test]
fn second_thread_that_waits_is_turned_away() {
    let emulated = EmulatedDriver::new(&GENERATIONS[2]);
    let port = Arc::new(port(&emulated));
    let first = {
        let port = Arc::clone(&port);
        thread::spawn(move || port.next_access().map(|access| access.operation))
    };
    emulated.until_attached();
    assert!(matches!(port.next_access(), Err(PortError::Busy)));
    emulated.ask(Ok(request(1, 0)));
    assert_eq!(first.join().unwrap().unwrap(), Operation::Read);
    emulated.ask(Ok(request(1, 0)));
    assert!(port.next_access().is_ok());
}

#[test]
fn kicks_are_matched_by_queue_on_32_bits_of_queue_notify() {
    for (abi, emulated) in every_generation() {
        let port = port(&emulated);
        let eventfds = EventFds::connect(&port, 3).unwrap();
        let number = |queue| u32::try_from(eventfds.kick(queue).unwrap().as_raw_fd()).unwrap();
        let expected = [0, 1, 2].map(|queue| (number(queue), NOTIFY, u64::from(queue)));
        assert_eq!(emulated.state().ioeventfds, expected, "{}", abi.name);
        assert_eq!(emulated.state().irqfds, [eventfds.call().as_raw_fd()]);
    }
}

#[test]
fn disconnecting_gets_around_a_driver_that_assigns_again_and_works_with_a_mended_one() {
    for mended in [false, true] {
        for (abi, emulated) in every_generation() {
            emulated.state().mended = mended;
            let port = port(&emulated);
            let eventfds = EventFds::connect(&port, 2).unwrap();
            eventfds.disconnect(&port).unwrap();
            assert_eq!(emulated.state().ioeventfds, [], "{}", abi.name);
            assert!(emulated.state().irqfds.is_empty(), "{}", abi.name);
        }
    }
}

#[test]
fn eventfds_kept_from_an_earlier_life_are_connected_already() {
    for (_, emulated) in every_generation() {
        let port = port(&emulated);
        let kept = EventFd::new(EFD_NONBLOCK).unwrap();
        for _ in 0..2 {
            port.connect_kick(0, &kept).unwrap();
            port.connect_interrupt(&kept).unwrap();
        }
        assert_eq!(emulated.state().ioeventfds.len(), 1);
        assert_eq!(emulated.state().irqfds.len(), 1);
    }
}

#[test]
fn devices_descriptor_outlives_its_port_and_every_failure() {
    for (_, emulated) in every_generation() {
        drop(port(&emulated));
        let node = Node::new(emulated.clone(), Path::new("/dev/emulated"), node()).unwrap();
        let absent = params(Some(Path::new("/nonexistent/memory")));
        assert!(device(&node, &absent).is_err());
        let open = fs::read_dir("/proc/self/fd").unwrap();
        let devices = open
            .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
            .filter(|target| target.to_string_lossy().contains(&emulated.name));
        assert_eq!(devices.count(), 2);
    }
}

#[test]
fn memory_is_the_drivers_where_it_tells_and_must_not_differ() {
    for (abi, emulated) in every_generation() {
        let node = Node::new(emulated.clone(), Path::new("/dev/emulated"), node()).unwrap();
        match (device(&node, &params(None)), abi.family) {
            (Ok(port), Family::Described) => assert_eq!(port.memory().range, memory()),
            (Err(BaoError::NoMemory { id: 3 }), Family::Created) => {}
            (other, _) => panic!("{}: {other:?}", abi.name),
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        emulated.state().memory.1 -= 0x1000;
        match (device(&node, &params(Some(file.path()))), abi.family) {
            (Err(BaoError::OtherMemory { configured, .. }), Family::Described) => {
                assert_eq!(configured, memory());
            }
            (Ok(port), Family::Created) => assert_eq!(port.memory().range, memory()),
            (other, _) => panic!("{}: {other:?}", abi.name),
        }
        emulated.state().memory = (u64::MAX, 2);
        if abi.family == Family::Described {
            let error = device(&node, &params(None)).unwrap_err();
            assert!(matches!(error, BaoError::BadMemory { .. }), "{error}");
        }
        let absent = params(Some(Path::new("/nonexistent/memory")));
        emulated.state().memory = (0x1000_0000, 0x100_0000);
        let error = device(&node, &absent).unwrap_err();
        assert!(matches!(error, BaoError::MemoryNode { .. }), "{error}");
    }
}

#[test]
fn memory_with_a_node_of_its_own_is_reached_through_that() {
    for (_, emulated) in every_generation() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let node = Node::new(emulated, Path::new("/dev/emulated"), node()).unwrap();
        let port = device(&node, &params(Some(file.path()))).unwrap();
        let descriptor = port.memory().descriptor.as_raw_fd();
        let target = fs::read_link(format!("/proc/self/fd/{descriptor}")).unwrap();
        assert_eq!(target, file.path());
    }
}

#[test]
fn kernel_is_not_asked_with_an_argument_too_short_for_the_call() {
    let refused = Kernel.call(
        std::os::fd::AsFd::as_fd(&node()),
        GENERATIONS[0].attach,
        Some([0; 47].as_mut_slice().into()),
    );
    assert_eq!(refused, Err(Errno::INVAL));
    let unknown = Kernel.call(
        std::os::fd::AsFd::as_fd(&node()),
        GENERATIONS[0].attach,
        Some([0; 48].as_mut_slice().into()),
    );
    assert_eq!(unknown, Err(Errno::NOTTY));
}

/// A successor's port of the same driver and journal.
fn successor(emulated: &EmulatedDriver, journal: &Arc<Journal>) -> Arc<BaoPort<EmulatedDriver>> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let node = Node::new(emulated.clone(), Path::new("/dev/emulated"), node()).unwrap();
    let taken = node.take_device(3).unwrap();
    let params = params(Some(file.path()));
    Arc::new(node.device(taken, &params, Arc::clone(journal)).unwrap())
}

#[test]
fn access_in_hand_is_completed_by_the_successor_once() {
    for (_, emulated) in every_generation() {
        let journal = Arc::new(Journal::new(3).unwrap());
        let first = successor(&emulated, &journal);
        emulated.ask(Ok(request(1, 0)));
        // Its process ends here: the request is neither completed nor dropped.
        let _ = first.next_access().unwrap();
        for _ in 0..2 {
            let second = successor(&emulated, &journal);
            let access = second.next_access().unwrap();
            assert_eq!(
                (access.address, access.operation),
                (WINDOW + 0x70, Operation::Read)
            );
            assert_eq!(emulated.state().completed.len(), 0);
        }
        let third = successor(&emulated, &journal);
        let access = third.next_access().unwrap();
        third.complete(access, 7).unwrap();
        assert_eq!(emulated.state().completed.len(), 1);
        emulated.ask(Ok(request(0, 5)));
        let next = successor(&emulated, &journal).next_access().unwrap();
        assert_eq!(next.operation, Operation::Write(5));
    }
}

/// The journal of a process that has ended within COMPLETE.
fn left_completing(abi: &Abi) -> Arc<Journal> {
    let journal = Journal::new(3).unwrap();
    let mut request = request(1, 7);
    request[abi.complete.size() / 8..].fill(0);
    journal.begin_complete(request);
    Arc::new(journal)
}

fn attach(port: &Arc<BaoPort<EmulatedDriver>>) -> thread::JoinHandle<Operation> {
    let port = Arc::clone(port);
    thread::spawn(move || port.next_access().unwrap().operation)
}

#[test]
fn completion_in_doubt_is_made_up_for_while_the_guest_is_quiet() {
    for (abi, emulated) in every_generation() {
        let journal = left_completing(abi);
        let port = successor(&emulated, &journal);
        let attached = attach(&port);
        emulated.until_attached();
        Arc::clone(&port).complete_uncertain().unwrap();
        let completed = emulated.until_completed();
        let mut expected = request(1, 7).to_vec();
        expected.truncate(abi.complete.size() / 8);
        assert_eq!(words(&completed), expected, "{}", abi.name);
        emulated.ask(Ok(request(1, 0)));
        assert_eq!(attached.join().unwrap(), Operation::Read);
        assert_eq!(journal.uncertain(), [[0; 8]; 0]);
        assert_eq!(emulated.state().completed.len(), 1);
    }
}

#[test]
fn completion_in_doubt_is_settled_by_the_next_access_from_the_same_place() {
    for (abi, emulated) in every_generation() {
        let journal = left_completing(abi);
        let port = successor(&emulated, &journal);
        emulated.ask(Ok(request(0, 1)));
        assert_eq!(port.next_access().unwrap().operation, Operation::Write(1));
        assert_eq!(journal.uncertain(), [[0; 8]; 0]);
        Arc::clone(&port).complete_uncertain().unwrap();
        assert_eq!(emulated.state().completed.len(), 0);
    }
}

#[test]
fn completion_in_doubt_is_not_settled_by_another_cpu() {
    for (abi, emulated) in every_generation() {
        let journal = left_completing(abi);
        let port = successor(&emulated, &journal);
        let mut other = request(0, 1);
        other[5] += 1;
        emulated.ask(Ok(other));
        port.next_access().unwrap();
        assert_eq!(journal.uncertain().len(), 1);
    }
}
