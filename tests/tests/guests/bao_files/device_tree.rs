//! The contents of a device tree, as Linux reads them.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property, ToCellInt};

use crate::{Range, run};

/// Type, number and trigger, as a GIC has them.
pub(crate) type Interrupt = [u32; 3];

#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) cpus: usize,
    pub(crate) memory: Vec<Range>,
    /// Of the GIC: distributor, redistributors.
    pub(crate) gic: Vec<Range>,
    pub(crate) timer: Vec<Interrupt>,
    pub(crate) bootargs: String,
    pub(crate) virtio: Vec<Virtio>,
    pub(crate) uarts: Vec<Bound>,
    /// `bao,io-dispatcher`: of ABI B.
    pub(crate) dispatchers: Vec<Bound>,
    /// `bao,virtio-intc`: of ABI A.
    pub(crate) controllers: Vec<Bound>,
    /// `bao,ipcshmem`: of ABI A.
    pub(crate) shared: Vec<Shared>,
}

/// A node with addresses and interrupts.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) regions: Vec<Range>,
    pub(crate) interrupts: Vec<Interrupt>,
}

#[derive(Debug)]
pub(crate) struct Virtio {
    pub(crate) window: Range,
    pub(crate) interrupt: Interrupt,
    pub(crate) is_coherent: bool,
    /// The restricted pool that it is bound to.
    pub(crate) pool: Option<Range>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: u32,
    pub(crate) region: Range,
    /// Offsets and sizes.
    pub(crate) read: Range,
    pub(crate) write: Range,
}

impl Tree {
    pub(crate) fn load(source: &Path) -> Result<Self> {
        let bytes = compile(source)?;
        let tree = Fdt::new(&bytes).map_err(|error| anyhow::anyhow!("{error}"))?;
        Self::read(&tree.root()).with_context(|| format!("what {} says", source.display()))
    }

    fn read(root: &FdtNode<'_>) -> Result<Self> {
        let memory: Vec<_> = root
            .children()
            .filter(|node| is(node, "device_type", "memory"))
            .collect();
        ensure!(memory.len() == 1, "{} memory nodes", memory.len());
        let cpus = root.child("cpus").context("cpus")?;
        let gic = only(root, "arm,gic-v3")?;
        let timer = only(root, "arm,armv8-timer")?;
        let chosen = root.child("chosen").context("chosen")?;
        let bootargs = chosen.property("bootargs").context("bootargs")?;
        let virtio = root.find_compatible("virtio,mmio");
        let uarts = root.find_compatible("arm,pl011");
        let shared = root.find_compatible("bao,ipcshmem");
        Ok(Self {
            cpus: cpus
                .children()
                .filter(|node| is(node, "enable-method", "psci"))
                .count(),
            memory: ranges(&memory[0])?,
            gic: gic.regions,
            timer: timer.interrupts,
            bootargs: bootargs.value_as::<&str>().map_err(described)?.to_owned(),
            virtio: virtio
                .map(|node| read_virtio(root, &node))
                .collect::<Result<_>>()?,
            uarts: uarts.map(|node| read_bound(&node)).collect::<Result<_>>()?,
            dispatchers: all(root, "bao,io-dispatcher")?,
            controllers: all(root, "bao,virtio-intc")?,
            shared: shared
                .map(|node| read_shared(&node))
                .collect::<Result<_>>()?,
        })
    }
}

/// Compiles `source`. A warning of the compiler is an error.
pub(crate) fn compile(source: &Path) -> Result<Vec<u8>> {
    let place = tempfile::tempdir()?;
    let blob = place.path().join("dtb");
    let mut compile = Command::new("dtc");
    compile.args(["-O", "dtb", "-o"]).arg(&blob).arg(source);
    let warnings = run(&mut compile)?;
    ensure!(warnings.is_empty(), "{}: {warnings}", source.display());
    Ok(std::fs::read(&blob)?)
}

fn all(root: &FdtNode<'_>, compatible: &str) -> Result<Vec<Bound>> {
    let nodes = root.find_compatible(compatible);
    nodes.map(|node| read_bound(&node)).collect()
}

fn only(root: &FdtNode<'_>, compatible: &str) -> Result<Bound> {
    let found: [Bound; 1] = all(root, compatible)?
        .try_into()
        .map_err(|found: Vec<_>| anyhow::anyhow!("{} of {compatible}", found.len()))?;
    let [found] = found;
    Ok(found)
}

fn read_bound(node: &FdtNode<'_>) -> Result<Bound> {
    let interrupts = cells(node, "interrupts")?;
    let (chunks, rest) = interrupts.as_chunks::<3>();
    ensure!(rest.is_empty(), "{}: {interrupts:?}", node.name());
    Ok(Bound {
        regions: ranges(node)?,
        interrupts: chunks.to_vec(),
    })
}

fn read_virtio(root: &FdtNode<'_>, node: &FdtNode<'_>) -> Result<Virtio> {
    let name = node.name();
    let bound = read_bound(node)?;
    let pool = match cells(node, "memory-region")?.as_slice() {
        [] => None,
        [phandle] => Some(read_pool(root, *phandle)?),
        several => anyhow::bail!("{name}: {several:?}"),
    };
    match (&bound.regions[..], &bound.interrupts[..]) {
        (&[window], &[interrupt]) => Ok(Virtio {
            window,
            interrupt,
            is_coherent: node.property("dma-coherent").is_some(),
            pool,
        }),
        _ => anyhow::bail!("{name}: {bound:?}"),
    }
}

/// The region of a pool that Linux can copy through.
fn read_pool(root: &FdtNode<'_>, phandle: u32) -> Result<Range> {
    let reserved = root.child("reserved-memory").context("reserved-memory")?;
    ensure!(reserved.property("ranges").is_some(), "no ranges");
    let pool = reserved
        .children()
        .find(|node| cells(node, "phandle").is_ok_and(|cells| cells == [phandle]))
        .with_context(|| format!("nothing has the phandle {phandle}"))?;
    ensure!(pool.is_compatible("restricted-dma-pool"));
    ensure!(pool.property("no-map").is_none(), "it is not mapped");
    match ranges(&pool)?.as_slice() {
        &[region] => Ok(region),
        several => anyhow::bail!("{several:?}"),
    }
}

fn read_shared(node: &FdtNode<'_>) -> Result<Shared> {
    let pair = |name: &str| match cells(node, name)?.as_slice() {
        &[offset, size] => Ok(Range(offset.into(), size.into())),
        other => anyhow::bail!("{name}: {other:?}"),
    };
    match (
        cells(node, "id")?.as_slice(),
        read_bound(node)?.regions.as_slice(),
    ) {
        (&[id], &[region]) => Ok(Shared {
            id,
            region,
            read: pair("read-channel")?,
            write: pair("write-channel")?,
        }),
        other => anyhow::bail!("{other:?}"),
    }
}

/// The addresses and sizes in `reg`, two cells each.
fn ranges(node: &FdtNode<'_>) -> Result<Vec<Range>> {
    let Some(property) = node.property("reg") else {
        return Ok(Vec::new());
    };
    let entries = property
        .as_prop_encoded_array([2, 2])
        .map_err(described)?
        .map(|[address, size]| {
            Ok(Range(
                address.to_int::<u64>().map_err(described)?,
                size.to_int::<u64>().map_err(described)?,
            ))
        });
    entries.collect()
}

/// The cells of a property; none where there is no such property.
fn cells(node: &FdtNode<'_>, name: &str) -> Result<Vec<u32>> {
    let Some(property) = node.property(name) else {
        return Ok(Vec::new());
    };
    let (cells, rest) = property.value().as_chunks::<4>();
    ensure!(rest.is_empty(), "{name} has {} bytes", rest.len());
    Ok(cells.iter().map(|cell| u32::from_be_bytes(*cell)).collect())
}

fn is(node: &FdtNode<'_>, property: &str, value: &str) -> bool {
    node.property(property)
        .is_some_and(|property| property.value_as::<&str>().is_ok_and(|text| text == value))
}

/// Converts the crate's errors, which lack the standard library's trait.
fn described(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}
