//! Checks a document: makes a configuration of it, or a list of its faults.

use std::path::PathBuf;

use log::LevelFilter;

use super::compare::{Checked, compare};
use super::document::{At, Device, Document};
use super::fault::Fault;
use super::{Config, DeviceConfig};
use crate::hypervisor::GuestRange;
use crate::hypervisors;
use crate::mmio::WINDOW_LEN;

/// Bytes of the largest window: more than the registers of any device.
const MAX_WINDOW_LEN: u64 = 0x1_0000;

/// Bytes: registers are 32 bits wide and accessed as such.
const WINDOW_ALIGNMENT: u64 = 4;

/// Bytes: memory is mapped in multiples of a page.
const PAGE: u64 = 4096;

/// Bytes of the longest tag of a file system (virtio 1.2, 5.11.4).
const MAX_TAG_LEN: usize = 36;

/// Bytes of the longest path of a socket (unix(7)), without the zero byte at its end.
const MAX_SOCKET_PATH_LEN: usize = 107;

/// Entries of the smallest queue: Linux reserves 4 entries of each request for headers, and needs
/// some more for data.
const MIN_QUEUE_SIZE: u32 = 8;

/// Entries of the largest split virtqueue (virtio 1.2, 2.7).
const MAX_QUEUE_SIZE: u32 = 32768;

/// vhost-user numbers queues by a byte, and the first queue is the high-priority one.
const MAX_REQUEST_QUEUES: u32 = 255;

/// The last shared peripheral interrupt of a GIC, counted from its first.
const MAX_IRQ: u32 = 987;

/// The faults found so far.
#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add<T>(&mut self, at: &At<T>, key: &str, what: impl Into<String>) {
        self.0.push(Fault::new(at.referenced.line(), key, what));
    }
}

pub(super) fn check(document: Document) -> Result<Config, Vec<Fault>> {
    let mut faults = Faults::default();
    let log_level = document
        .log_level
        .as_ref()
        .and_then(|level| check_level(level, &mut faults));
    let nodes = match &document.nodes {
        None => hypervisors::default_nodes(),
        Some(nodes) => check_nodes(nodes, &mut faults),
    };
    if document.devices.value.is_empty() {
        faults.add(
            &document.devices,
            "devices",
            "the list is empty; name at least one device",
        );
    }
    let checked: Vec<Checked> = document
        .devices
        .value
        .iter()
        .filter_map(|device| check_device(device, &mut faults))
        .collect();
    faults.0.extend(compare(&checked));
    if faults.0.is_empty() {
        Ok(Config {
            log_level,
            nodes,
            devices: checked.into_iter().map(|device| device.config).collect(),
        })
    } else {
        faults.0.sort_by_key(|fault| fault.line);
        Err(faults.0)
    }
}

fn check_level(level: &At<String>, faults: &mut Faults) -> Option<LevelFilter> {
    let parsed = level.value.parse().ok();
    if parsed.is_none() {
        let right = "use off, error, warn, info, debug or trace";
        faults.add(
            level,
            "log_level",
            format!("{:?} is not a log level; {right}", level.value),
        );
    }
    parsed
}

fn check_nodes(nodes: &At<Vec<At<String>>>, faults: &mut Faults) -> Vec<PathBuf> {
    if nodes.value.is_empty() {
        faults.add(
            nodes,
            "nodes",
            "the list is empty; leave the key out for the default nodes",
        );
    }
    let check = |node: &At<String>| check_path(node, "nodes", faults);
    nodes.value.iter().filter_map(check).collect()
}

fn check_path(path: &At<String>, key: &str, faults: &mut Faults) -> Option<PathBuf> {
    if path.value.is_empty() || path.value.contains('\0') {
        faults.add(path, key, "this is no path; a path looks like /dev/bao");
        return None;
    }
    Some(PathBuf::from(&path.value))
}

fn check_device(at: &At<Device>, faults: &mut Faults) -> Option<Checked> {
    let device = &at.value;
    if !check_kind(device, faults) {
        return None; // the other keys have another meaning then
    }
    check_foreign_keys(device, faults);
    check_irq(device, faults);
    let window = check_window(device, faults);
    let memory = check_memory(at, faults);
    let socket = check_socket(at, faults);
    let tag = device.tag.as_ref().map(|tag| check_tag(tag, faults));
    let num_request_queues = check_queue_count(device, faults);
    let queue_size = check_queue_size(device, faults);
    if let (Some(Some((range, _))), Some(count), Some(size)) =
        (&memory, num_request_queues, queue_size)
    {
        check_room(device, *range, count, size, faults);
    }
    if let (Some(window), Some(Some((range, _)))) = (window, &memory)
        && window.overlaps(*range)
    {
        let what = format!("the registers {window} lie in the shared memory {range}");
        faults.add(&device.mmio_addr, "mmio_addr", what);
    }
    Some(Checked {
        config: DeviceConfig {
            id: device.id.value,
            window: window?,
            memory: memory?,
            socket: socket?,
            tag: match tag {
                None => None,
                Some(tag) => Some(tag?),
            },
            num_request_queues: num_request_queues?,
            queue_size: queue_size?,
        },
        line: at.referenced.line(),
        frontend_vm: device.frontend_vm.as_ref().map(|vm| vm.value.clone()),
    })
}

/// Whether the device is a file system behind vhost-user.
fn check_kind(device: &Device, faults: &mut Faults) -> bool {
    let kinds = [
        (&device.device_type, "type", "fs"),
        (&device.data_plane, "data_plane", "vhost_user"),
    ];
    let mut right = true;
    for (written, key, served) in kinds {
        if written.value != served {
            let what = format!("{:?} is not served here; {served} is", written.value);
            faults.add(written, key, what);
            right = false;
        }
    }
    right
}

fn check_foreign_keys(device: &Device, faults: &mut Faults) {
    let mut refuse = |line: Option<u64>, key: &str, owner: &str| {
        if let Some(line) = line {
            let what = format!("this key belongs to a {owner}; remove it from a file system");
            faults.0.push(Fault::new(line, key, what));
        }
    };
    refuse(line(&device.file_path), "file_path", "block device");
    refuse(line(&device.read_only), "read_only", "block device");
    refuse(line(&device.root_device), "root_device", "block device");
    refuse(
        line(&device.advertise_flush),
        "advertise_flush",
        "block device",
    );
    refuse(line(&device.tap_name), "tap_name", "network device");
    refuse(line(&device.mac_addr), "mac_addr", "network device");
    refuse(line(&device.guest_cid), "guest_cid", "vsock device");
    refuse(line(&device.pty_alias), "pty_alias", "console");
}

fn line<T>(written: &Option<At<T>>) -> Option<u64> {
    written.as_ref().map(|at| at.referenced.line())
}

/// The device model does not use the number. An impossible one is a sign of a mistake.
fn check_irq(device: &Device, faults: &mut Faults) {
    if let Some(irq) = &device.irq
        && irq.value > MAX_IRQ
    {
        let what = format!("{} is not an interrupt; use 0 to {MAX_IRQ}", irq.value);
        faults.add(irq, "irq", what);
    }
}

fn check_window(device: &Device, faults: &mut Faults) -> Option<GuestRange> {
    let len = device
        .window_size
        .as_ref()
        .map_or(WINDOW_LEN, |at| at.value);
    if let Some(at) = &device.window_size
        && (!(WINDOW_LEN..=MAX_WINDOW_LEN).contains(&len) || !len.is_multiple_of(WINDOW_ALIGNMENT))
    {
        let right = format!(
            "use a multiple of {WINDOW_ALIGNMENT} from {WINDOW_LEN:#x} to {MAX_WINDOW_LEN:#x}"
        );
        faults.add(at, "window_size", format!("{len:#x} is not valid; {right}"));
        return None;
    }
    let address = &device.mmio_addr;
    if !address.value.is_multiple_of(WINDOW_ALIGNMENT) {
        let what = misaligned(address.value, WINDOW_ALIGNMENT);
        faults.add(address, "mmio_addr", what);
        return None;
    }
    let window = GuestRange::new(address.value, len);
    if window.is_none() {
        let what = format!(
            "{len:#x} bytes from {:#x} go past the last address; {:#x} is the highest valid one",
            address.value,
            u64::MAX - len + 1
        );
        faults.add(address, "mmio_addr", what);
    }
    window
}

/// The memory, or `Some(None)` if the driver reports it; `None` if the keys contradict each other.
fn check_memory(at: &At<Device>, faults: &mut Faults) -> Option<Option<(GuestRange, PathBuf)>> {
    let device = &at.value;
    let (addr, size, path) = match (&device.shmem_addr, &device.shmem_size, &device.shmem_path) {
        (None, None, None) => return Some(None),
        (Some(addr), Some(size), Some(path)) => (addr, size, path),
        (addr, size, path) => {
            let keys = [
                ("shmem_addr", addr.is_none()),
                ("shmem_size", size.is_none()),
                ("shmem_path", path.is_none()),
            ];
            for (key, _) in keys.into_iter().filter(|(_, missing)| *missing) {
                let right = "shmem_addr, shmem_size and shmem_path go together, give all or none";
                faults.add(at, key, format!("it is missing: {right}"));
            }
            return None;
        }
    };
    let mut right = true;
    for (key, written) in [("shmem_addr", addr), ("shmem_size", size)] {
        if !written.value.is_multiple_of(PAGE) {
            faults.add(written, key, misaligned(written.value, PAGE));
            right = false;
        }
    }
    let path = check_path(path, "shmem_path", faults);
    let range = GuestRange::new(addr.value, size.value);
    if range.is_none() {
        let what = match size.value {
            0 => "0 bytes are no memory; 0x1000000 bytes are 16 MiB".to_owned(),
            _ => format!(
                "{:#x} bytes from {:#x} go past the last address",
                size.value, addr.value
            ),
        };
        faults.add(size, "shmem_size", what);
    }
    right.then_some(Some((range?, path?)))
}

fn misaligned(value: u64, alignment: u64) -> String {
    let below = value - value % alignment;
    let next = match below.checked_add(alignment) {
        Some(above) => format!("{below:#x} and {above:#x} are next"),
        None => format!("{below:#x} is next"),
    };
    format!("{value:#x} is not a multiple of {alignment:#x}; {next}")
}

/// The socket as written, or under the name that bao-virtio or bao-virtio-dm gives it. The two
/// differ in that name, and in the keys of their files.
fn check_socket(at: &At<Device>, faults: &mut Faults) -> Option<PathBuf> {
    let device = &at.value;
    match (&device.socket, &device.socket_path) {
        (Some(socket), None) => {
            let path = check_path(socket, "socket", faults)?;
            check_socket_len(path, socket, "socket", faults)
        }
        (None, Some(prefix)) => {
            let name = match device.shmem_path {
                Some(_) => "Fs.sock".to_owned(),
                None => format!("Fs{}.sock", device.id.value),
            };
            let mut path = check_path(prefix, "socket_path", faults)?.into_os_string();
            path.push(name);
            check_socket_len(path.into(), prefix, "socket_path", faults)
        }
        (Some(socket), Some(_)) => {
            let right = "give either of them";
            faults.add(
                socket,
                "socket",
                format!("socket_path is given as well; {right}"),
            );
            None
        }
        (None, None) => {
            let right = "give the path of the daemon's socket";
            faults.add(
                at,
                "socket",
                format!("it is missing, and so is socket_path; {right}"),
            );
            None
        }
    }
}

fn check_socket_len(
    path: PathBuf,
    at: &At<String>,
    key: &str,
    faults: &mut Faults,
) -> Option<PathBuf> {
    let len = path.as_os_str().len();
    if len > MAX_SOCKET_PATH_LEN {
        let what = format!(
            "{} has {len} bytes; no socket's path has more than {MAX_SOCKET_PATH_LEN}",
            path.display()
        );
        faults.add(at, key, what);
        return None;
    }
    Some(path)
}

fn check_tag(tag: &At<String>, faults: &mut Faults) -> Option<String> {
    let len = tag.value.len();
    if !(1..=MAX_TAG_LEN).contains(&len) {
        let what = format!("it has {len} bytes; a tag has 1 to {MAX_TAG_LEN}");
        faults.add(tag, "tag", what);
        return None;
    }
    if tag.value.contains(['\n', '\0']) {
        let right = "use a single word";
        faults.add(
            tag,
            "tag",
            format!("it has a line break or a zero byte in it; {right}"),
        );
        return None;
    }
    Some(tag.value.clone())
}

fn check_queue_count(device: &Device, faults: &mut Faults) -> Option<u16> {
    let Some(count) = &device.num_request_queues else {
        return Some(1);
    };
    if !(1..=MAX_REQUEST_QUEUES).contains(&count.value) {
        let what = format!(
            "{} is not valid; use 1 to {MAX_REQUEST_QUEUES}",
            count.value
        );
        faults.add(count, "num_request_queues", what);
        return None;
    }
    u16::try_from(count.value).ok()
}

fn check_queue_size(device: &Device, faults: &mut Faults) -> Option<u16> {
    let Some(size) = &device.queue_size else {
        return Some(1024);
    };
    if !(MIN_QUEUE_SIZE..=MAX_QUEUE_SIZE).contains(&size.value) || !size.value.is_power_of_two() {
        let what = format!(
            "{} is not valid; use a power of two from {MIN_QUEUE_SIZE} to {MAX_QUEUE_SIZE}",
            size.value
        );
        faults.add(size, "queue_size", what);
        return None;
    }
    u16::try_from(size.value).ok()
}

/// Checks that the memory is larger than the queues' rings.
fn check_room(device: &Device, memory: GuestRange, requests: u16, size: u16, faults: &mut Faults) {
    let entries = u64::from(size);
    let rings = (16 * entries + 6 + 2 * entries + 6 + 8 * entries) * (u64::from(requests) + 1);
    if let Some(at) = &device.shmem_size
        && memory.len() <= rings
    {
        let what = format!(
            "it is {:#x}, but the rings alone take {rings:#x} bytes; \
             use more memory, or smaller or fewer queues",
            memory.len()
        );
        faults.add(at, "shmem_size", what);
    }
}
