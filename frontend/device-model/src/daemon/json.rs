//! The result of `--check` as JSON. The names of the fields are part of the interface.

use std::path::Path;

use serde_json::{Value, json};

use crate::config::{Config, DeviceConfig, Fault};
use crate::hypervisor::GuestRange;

/// A configuration without faults.
pub(super) fn plan(config: &Config) -> Value {
    json!({
        "valid": true,
        "nodes": config.nodes.iter().map(|node| node.to_string_lossy()).collect::<Vec<_>>(),
        "log_level": config.log_level.map(|level| level.as_str().to_lowercase()),
        "devices": config.devices.iter().map(device).collect::<Vec<_>>(),
    })
}

fn device(device: &DeviceConfig) -> Value {
    let memory = device.memory.as_ref().map(|(memory, path)| {
        json!({
            "address": memory.start(),
            "size": memory.len(),
            "path": path.to_string_lossy(),
        })
    });
    json!({
        "id": device.id,
        "tag": device.tag,
        "socket": device.socket.to_string_lossy(),
        "registers": range(device.window),
        "memory": memory,
        "num_request_queues": device.num_request_queues,
        "queue_size": device.queue_size,
    })
}

fn range(range: GuestRange) -> Value {
    json!({ "address": range.start(), "size": range.len() })
}

/// A configuration with faults.
pub(super) fn faults(file: &Path, faults: &[Fault]) -> Value {
    let fault = |fault: &Fault| {
        json!({
            "line": (fault.line > 0).then_some(fault.line),
            "key": fault.key,
            "what": fault.what,
        })
    };
    json!({
        "valid": false,
        "file": file.to_string_lossy(),
        "faults": faults.iter().map(fault).collect::<Vec<_>>(),
    })
}
