//! The servers of tunnels that `serve` runs beside its rhostfs servers.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use log::info;
use serde_json::{Value, json};

use super::config::VirtqueueBlock;
use super::service::{Carriers, ServeError, bind};
use crate::status::Report;
use crate::tunnel::server::Server;

/// One server of tunnels of the configuration.
pub(super) struct ServedTunnels {
    block: VirtqueueBlock,
    /// Set once its endpoints are bound.
    server: OnceLock<Server>,
}

impl ServedTunnels {
    pub(super) fn new(block: VirtqueueBlock) -> Self {
        Self {
            block,
            server: OnceLock::new(),
        }
    }

    /// Runs the server in its thread.
    pub(super) fn serve(&self, carriers: &Carriers, stop: &AtomicBool) -> Result<(), ServeError> {
        let block = &self.block;
        let carrier = carriers.get(&block.name, block.carrier_kind)?;
        let mut endpoints = Vec::new();
        for endpoint in &block.endpoints {
            match bind(&block.name, (block.dc, *endpoint), carrier, stop)? {
                Some(bound) => endpoints.push(bound),
                None => return Ok(()),
            }
        }
        info!("{}", described(block));
        let server = Server::new(endpoints, block.options.clone());
        self.server.get_or_init(|| server).run(stop);
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(ServeError::Unbound {
            server: block.name.clone(),
        })
    }
}

impl Report for ServedTunnels {
    fn report(&self, to: &mut String) {
        to.push_str(&described(&self.block));
        to.push('\n');
        match self.server.get() {
            Some(server) => server.report(to),
            None => to.push_str("  its endpoints are not bound yet\n"),
        }
    }

    fn json(&self) -> Value {
        let mut object = plan(&self.block);
        if let Some(object) = object.as_object_mut() {
            let server = self.server.get().map(Report::json);
            object.insert("kind".to_owned(), "virtqueue_server".into());
            object.insert("server".to_owned(), server.into());
        }
        object
    }
}

/// What a block serves, with names that stay.
pub(super) fn plan(block: &VirtqueueBlock) -> Value {
    let endpoints = block.endpoints.iter().map(|endpoint| endpoint.raw());
    json!({
        "name": block.name,
        "dc": block.dc.raw(),
        "endpoints": endpoints.collect::<Vec<_>>(),
        "socket": block.options.socket.to_string_lossy(),
        "carrier": block.carrier_kind.name(),
    })
}

/// Describes a server in a line.
pub(super) fn described(block: &VirtqueueBlock) -> String {
    let first = block.endpoints.first().map_or(0, |endpoint| endpoint.raw());
    let last = block.endpoints.last().map_or(0, |endpoint| endpoint.raw());
    format!(
        "{}: endpoints {first} to {last} of container {} carry the requests of guests to {}",
        block.name,
        block.dc,
        block.options.socket.display()
    )
}
