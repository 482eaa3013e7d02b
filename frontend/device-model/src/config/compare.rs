//! Checks that devices do not contradict each other.

use super::DeviceConfig;
use super::fault::Fault;

/// A device that is valid by itself, with what is needed to compare it with others.
pub(super) struct Checked {
    pub(super) config: DeviceConfig,
    pub(super) line: u64,
    pub(super) frontend_vm: Option<String>,
}

/// Everything that contradicts between any two of `devices`.
pub(super) fn compare(devices: &[Checked]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (index, device) in devices.iter().enumerate() {
        for other in devices.iter().take(index) {
            compare_two(other, device, &mut faults);
        }
    }
    faults
}

/// Compares a device with one before it.
fn compare_two(first: &Checked, second: &Checked, faults: &mut Vec<Fault>) {
    let mut add = |key: &str, what: String| faults.push(Fault::new(second.line, key, what));
    let (a, b) = (&first.config, &second.config);
    let before = first.line;
    if a.id == b.id {
        let what = format!(
            "{} is the device's in line {before}; each device needs its own",
            b.id
        );
        add("id", what);
    }
    if let (Some((of_a, path_a)), Some((of_b, path_b))) = (&a.memory, &b.memory)
        && path_a == path_b
        && of_a != of_b
    {
        let what = format!(
            "{} is {of_a} for the device in line {before}, and {of_b} here; \
             use the same range for both",
            path_b.display()
        );
        add("shmem_path", what);
    }
    if first.frontend_vm != second.frontend_vm {
        return; // the checks below are about addresses of one guest
    }
    if a.window.overlaps(b.window) {
        let what = format!(
            "{} overlaps the device's in line {before}, {}; \
             if the devices belong to different VMs, say so by frontend_vm",
            b.window, a.window
        );
        add("mmio_addr", what);
    }
    for (window, memory) in [(a.window, &b.memory), (b.window, &a.memory)] {
        if let Some((memory, _)) = memory
            && window.overlaps(*memory)
        {
            let what = format!(
                "registers {window} and shared memory {memory} overlap between this device and the \
                 one in line {before}"
            );
            add("mmio_addr", what);
        }
    }
    if let (Some((of_a, _)), Some((of_b, _))) = (&a.memory, &b.memory)
        && of_a != of_b
        && of_a.overlaps(*of_b)
    {
        let what = format!(
            "{of_b} overlaps {of_a}, of the device in line {before}; \
             use the same range or separate ones"
        );
        add("shmem_addr", what);
    }
    if a.tag.is_some() && a.tag == b.tag {
        let what = format!("the device in line {before} has it already; each device needs its own");
        add("tag", what);
    }
}
