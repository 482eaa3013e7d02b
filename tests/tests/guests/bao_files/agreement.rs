//! Checks that the files of each demonstration agree.

use anyhow::{Result, ensure};

use crate::configuration::{Remote, Vm};
use crate::device_tree::{Interrupt, Tree};
use crate::{Demonstration, Range};

/// A shared peripheral interrupt's first INTID, and a private one's.
const FIRST_SPI: u32 = 32;
const FIRST_PPI: u32 = 16;

/// Triggers, as device trees number them.
const EDGE: u32 = 1;
const LEVEL: u32 = 4;

/// QEMU's first UART, and its virtio slots.
const UART: u64 = 0x900_0000;
const SLOT: u64 = 0x200;

/// The memory of the machine of `scripts/run-bao`, and where Bao starts in it.
const MACHINE: Range = Range(0x4000_0000, 4 << 30);
const BAO: u64 = 0x5000_0000;

fn each(check: impl Fn(&Demonstration) -> Result<()>) -> Result<()> {
    for demonstration in Demonstration::all()? {
        check(&demonstration).map_err(|error| error.context(demonstration.name))?;
    }
    Ok(())
}

impl Demonstration {
    fn backend_vm(&self) -> &Vm {
        &self.bao.vms[0]
    }

    fn frontend_vm(&self) -> &Vm {
        &self.bao.vms[1]
    }

    /// The devices by ID: the backend VM's side and the frontend VM's.
    fn pairs(&self) -> Result<Vec<(&Remote, &Remote)>> {
        let frontends = &self.frontend_vm().remotes;
        ensure!(self.backend_vm().remotes.len() == frontends.len());
        let backends = self.backend_vm().remotes.iter();
        let pairs = backends.map(|backend| {
            let mut same = frontends.iter().filter(|other| other.key == backend.key);
            match (same.next(), same.next()) {
                (Some(frontend), None) => Ok((backend, frontend)),
                _ => anyhow::bail!("not one frontend of {backend:?}"),
            }
        });
        pairs.collect()
    }
}

fn shared_interrupt(intid: u32, trigger: u32) -> Interrupt {
    [0, intid - FIRST_SPI, trigger]
}

#[test]
fn both_sides_of_a_remote_device_are_what_bao_asks_for() -> Result<()> {
    each(|all| {
        ensure!(all.bao.vms.len() == 2);
        ensure!(all.backend_vm().remotes.iter().all(|side| side.is_backend));
        ensure!(!all.frontend_vm().remotes.iter().any(|side| side.is_backend));
        for (index, (backend, frontend)) in all.pairs()?.iter().enumerate() {
            ensure!(backend.shared == frontend.shared);
            ensure!(backend.shared_id == frontend.shared_id);
            ensure!(all.bao.shared.get(backend.shared_id) == Some(&backend.shared.1));
            ensure!(frontend.window.1 == SLOT);
            // The messages are bytes.
            ensure!(backend.key < 256);
            for interrupt in [backend.interrupt, frontend.interrupt] {
                ensure!((FIRST_SPI..256).contains(&interrupt), "{interrupt}");
            }
            for (before, _) in all.pairs()?.iter().take(index) {
                ensure!(before.key != backend.key && before.interrupt != backend.interrupt);
                ensure!(before.shared_id != backend.shared_id);
                ensure!(!before.shared.overlaps(backend.shared));
            }
        }
        Ok(())
    })
}

#[test]
fn device_model_serves_what_bao_sends_it() -> Result<()> {
    each(|all| {
        let pairs = all.pairs()?;
        ensure!(all.model.devices.len() == pairs.len());
        for device in &all.model.devices {
            let index = usize::try_from(device.id)?;
            let Some((backend, frontend)) = pairs.get(index) else {
                anyhow::bail!("there is no device {index}");
            };
            let window = Range(device.window.start(), device.window.len());
            ensure!(window == frontend.window, "device {index}");
            if let Some((memory, path)) = &device.memory {
                ensure!(Range(memory.start(), memory.len()) == backend.shared);
                let node = all
                    .backend
                    .shared
                    .iter()
                    .find(|node| path.to_str() == Some(&format!("/dev/baoipc{}", node.id)));
                ensure!(node.is_some_and(|node| node.region == backend.shared));
            }
        }
        for line in all.yaml.lines() {
            if let Some(irq) = line.trim().strip_prefix("irq: ") {
                let known = |(_, frontend): &(&Remote, &Remote)| {
                    irq == (frontend.interrupt - FIRST_SPI).to_string()
                };
                ensure!(pairs.iter().any(known), "{line}");
            }
        }
        Ok(())
    })
}

#[test]
fn backend_vms_driver_finds_each_device_in_the_order_of_their_ids() -> Result<()> {
    each(|all| {
        let remotes = &all.backend_vm().remotes;
        let regions: Vec<Range> = remotes.iter().map(|remote| remote.shared).collect();
        let interrupts: Vec<Interrupt> = remotes
            .iter()
            .map(|remote| shared_interrupt(remote.interrupt, EDGE))
            .collect();
        let tree = &all.backend;
        match (&tree.dispatchers[..], &tree.controllers[..]) {
            ([dispatcher], []) => {
                ensure!(dispatcher.regions == regions);
                ensure!(dispatcher.interrupts == interrupts);
                ensure!(tree.shared.is_empty());
            }
            ([], [controller]) => {
                ensure!(controller.regions.is_empty());
                ensure!(controller.interrupts == interrupts);
                let shared: Vec<Range> = tree.shared.iter().map(|node| node.region).collect();
                ensure!(shared == regions);
            }
            other => anyhow::bail!("{other:?}"),
        }
        for node in &tree.shared {
            let inside = Range(0, node.region.1);
            ensure!(node.read.end() <= inside.end() && node.write.end() <= inside.end());
            ensure!(node.id < 16 && !node.read.overlaps(node.write));
        }
        for region in regions {
            let is_memory = tree.memory.iter().any(|memory| memory.overlaps(region));
            ensure!(!is_memory, "{region:x?} is memory of the backend VM");
        }
        Ok(())
    })
}

#[test]
fn frontend_vm_finds_each_device_and_gives_it_the_shared_memory_alone() -> Result<()> {
    each(|all| {
        let (vm, tree) = (all.frontend_vm(), &all.frontend);
        ensure!(tree.virtio.len() == vm.remotes.len());
        ensure!(tree.dispatchers.is_empty() && tree.controllers.is_empty());
        for remote in &vm.remotes {
            let node = tree.virtio.iter().find(|node| node.window == remote.window);
            let Some(node) = node else {
                anyhow::bail!("no node for {remote:?}");
            };
            ensure!(node.interrupt == shared_interrupt(remote.interrupt, EDGE));
            ensure!(node.is_coherent);
            ensure!(node.pool == Some(remote.shared), "{:x?}", node.pool);
            ensure!(tree.memory.contains(&remote.shared), "it is not mapped");
            // Bao traps only accesses outside the VM's own regions.
            let devices = vm.devices.iter().map(|device| device.range);
            let memory = vm.memory.iter().map(|memory| memory.range);
            let mut others = devices.chain(memory).chain([remote.shared]);
            ensure!(!others.any(|other| other.overlaps(remote.window)));
        }
        Ok(())
    })
}

#[test]
fn vms_are_told_of_the_memory_processors_and_interrupts_they_have() -> Result<()> {
    each(|all| {
        for (vm, tree) in [
            (all.backend_vm(), &all.backend),
            (all.frontend_vm(), &all.frontend),
        ] {
            let pools = tree.virtio.iter().filter_map(|node| node.pool);
            let own = vm.memory.iter().map(|memory| memory.range);
            let mut expected: Vec<Range> = own.chain(pools).collect();
            let mut told = tree.memory.clone();
            expected.sort_by_key(|range| range.0);
            told.sort_by_key(|range| range.0);
            ensure!(told == expected, "{told:x?} but {expected:x?}");
            ensure!(vm.cpus == u64::try_from(tree.cpus)?);
            ensure!(u64::from(vm.affinity.count_ones()) == vm.cpus);
            ensure!(vm.entry == vm.base && vm.base == vm.memory[0].range.0);
            let gic: Vec<u64> = tree.gic.iter().map(|range| range.0).collect();
            ensure!(gic == vm.gic);
            check_timer(vm, tree)?;
        }
        ensure!(all.backend_vm().affinity & all.frontend_vm().affinity == 0);
        Ok(())
    })
}

/// The virtual timer, which is the third in the list.
fn check_timer(vm: &Vm, tree: &Tree) -> Result<()> {
    let [kind, number, _] = tree.timer[2];
    ensure!(kind == 1, "a private interrupt");
    let mut all = vm.devices.iter().flat_map(|device| &device.interrupts);
    ensure!(all.any(|&intid| intid == number + FIRST_PPI));
    Ok(())
}

#[test]
fn each_vm_has_a_console_of_the_machine() -> Result<()> {
    each(|all| {
        let (backend, frontend) = (&all.backend, &all.frontend);
        ensure!(backend.bootargs.contains("console=hvc0"));
        let slots = &all.backend_vm().devices[0];
        ensure!(slots.range.1 == SLOT * u64::try_from(slots.interrupts.len())?);
        ensure!(backend.virtio.len() == slots.interrupts.len());
        let addresses = (slots.range.0..).step_by(usize::try_from(SLOT)?);
        for ((node, address), &intid) in backend.virtio.iter().zip(addresses).zip(&slots.interrupts)
        {
            ensure!(node.window == Range(address, SLOT));
            ensure!(node.interrupt == shared_interrupt(intid, EDGE));
            ensure!(node.pool.is_none());
        }

        ensure!(frontend.bootargs.contains("console=ttyAMA0"));
        let device = &all.frontend_vm().devices[0];
        let [uart] = &frontend.uarts[..] else {
            anyhow::bail!("{:?}", frontend.uarts);
        };
        ensure!(uart.regions == [device.range] && device.range.0 == UART);
        ensure!(uart.interrupts == [shared_interrupt(device.interrupts[0], LEVEL)]);
        Ok(())
    })
}

#[test]
fn vms_fit_into_the_machine_beside_bao() -> Result<()> {
    each(|all| {
        let mut taken = vec![Range(BAO, 1)];
        for vm in &all.bao.vms {
            for memory in &vm.memory {
                let Some(start) = memory.placed else {
                    anyhow::bail!("{memory:x?} is anywhere");
                };
                let range = Range(start, memory.range.1);
                ensure!(range.0 >= MACHINE.0 && range.end() <= MACHINE.end());
                ensure!(!taken.iter().any(|other| other.overlaps(range)));
                taken.push(range);
            }
        }
        // QEMU's virtio devices are the backend VM's, and know the machine's addresses only.
        let own = &all.backend_vm().memory[0];
        ensure!(own.placed == Some(own.range.0));
        Ok(())
    })
}

/// A compiler for Linux defines `linux` as 1, which must not change the names.
#[test]
fn images_are_looked_for_under_the_names_the_guide_gives_them() -> Result<()> {
    each(|all| {
        ensure!(all.backend_vm().image == "/images/linux_backend.bin");
        ensure!(all.frontend_vm().image == "/images/linux_frontend.bin");
        Ok(())
    })
}
