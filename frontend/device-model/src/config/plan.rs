//! A configuration as text for people.

use std::fmt;

use super::{Config, DeviceConfig};
use crate::hypervisors;

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<String> = self
            .nodes
            .iter()
            .map(|node| node.display().to_string())
            .collect();
        writeln!(
            f,
            "hypervisor: {}, by {}",
            hypervisors::names(),
            nodes.join(", else ")
        )?;
        if let Some(level) = self.log_level {
            writeln!(f, "log level: {}", level.as_str().to_lowercase())?;
        }
        self.devices.iter().try_for_each(|device| device.fmt(f))?;
        for (index, device) in self.devices.iter().enumerate() {
            let before = self.devices.iter().take(index);
            let same = before
                .into_iter()
                .find(|other| other.socket == device.socket);
            if let Some(other) = same {
                writeln!(
                    f,
                    "note: devices {} and {} have the same daemon, which has to serve several \
                     guests, as gangplankd does",
                    other.id, device.id
                )?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for DeviceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "device {}: file system", self.id)?;
        match &self.tag {
            Some(tag) => writeln!(f, "  tag        {tag}")?,
            None => writeln!(f, "  tag        the daemon's; the guest waits for it")?,
        }
        writeln!(f, "  daemon     {}", self.socket.display())?;
        writeln!(f, "  registers  {}", self.window)?;
        match &self.memory {
            Some((range, path)) => writeln!(f, "  memory     {range}, from {}", path.display())?,
            None => writeln!(f, "  memory     as the hypervisor's driver tells")?,
        }
        writeln!(
            f,
            "  queues     1 of high priority, {} for requests, of up to {} entries",
            self.num_request_queues, self.queue_size
        )
    }
}
