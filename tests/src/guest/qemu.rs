//! The command line of a QEMU guest, emulated: no KVM, so it runs wherever the tests run.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Result, bail};

use super::kernel::{Kernel, Release};
use super::{Machine, Memory, Options, Qemu, Switch};
use crate::cache;
use crate::packages::{self, Arch, Suite};
use crate::process::{self, User};

/// Kernel arguments that make emulated guests several times faster: no translation-cache misses
/// from randomised layouts, no mitigations for real processors.
const FAST: &str = "norandmaps nokaslr mitigations=off";

/// Guests with a card so far. Two at one switch need different addresses.
static CARDS: AtomicU8 = AtomicU8::new(1);

/// A command that boots `kernel` with its console on standard input and output and the monitor
/// protocol on `dir`'s `qmp.sock`.
///
/// # Errors
/// When QEMU cannot be had, or has no card for the switch.
pub(super) fn command(
    kernel: &Kernel,
    options: &Options,
    initrd: &Path,
    dir: &Path,
) -> Result<Command> {
    let (program, machine, cpu, console) = match options.machine {
        Machine::QemuAarch64 => {
            // The A57 has no pages of 16 KiB.
            let cpu = match options.release {
                Release::Pages16K => "cortex-a76",
                _ => "cortex-a57",
            };
            ("qemu-system-aarch64", "virt", cpu, "ttyAMA0")
        }
        _ => ("qemu-system-x86_64", "q35", "qemu64", "ttyS0"),
    };
    let memory = options.memory_mib;
    let backend = match options.memory {
        Memory::Shared => "memory-backend-memfd,share=on",
        Memory::PrivateFile => "memory-backend-memfd,share=off",
        Memory::Anonymous => "memory-backend-ram",
    };
    let mut append = format!("console={console} panic=-1 quiet {FAST}");
    for argument in options.kernel_arguments() {
        append.push(' ');
        append.push_str(&argument);
    }
    let mut command = tied(program, options.qemu, options.user)?;
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args([
            "-machine",
            &format!("{machine},accel=tcg,memory-backend=mem"),
        ])
        .args(["-cpu", cpu])
        .args(["-smp", &options.processors.to_string()])
        .args(["-m", &format!("{memory}M")])
        .args(["-object", &format!("{backend},id=mem,size={memory}M")])
        .args(["-chardev", "stdio,id=console,signal=off"])
        .args(["-serial", "chardev:console"])
        .arg("-qmp")
        .arg(format!(
            "unix:{},server=on,wait=off",
            dir.join("qmp.sock").display()
        ))
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", &append]);
    if options.reconnects {
        command.arg("--preconfig");
    }
    if let Some(socket) = &options.incoming {
        command
            .arg("-incoming")
            .arg(format!("unix:{}", socket.display()));
    }
    for (index, share) in options.shares.iter().enumerate() {
        command
            .arg("-chardev")
            .arg(format!(
                "socket,id=fs{index},path={}{}",
                share.socket.display(),
                match (options.reconnects, options.qemu) {
                    (false, _) => "",
                    (true, Qemu::Host) => ",reconnect=1",
                    (true, Qemu::Backports) => ",reconnect-ms=1000",
                }
            ))
            .arg("-device")
            .arg(format!(
                "vhost-user-fs-pci,chardev=fs{index},tag={},queue-size={},num-request-queues={}",
                share.tag, options.queue_size, options.request_queues
            ));
    }
    if let Some(switch) = &options.switch {
        let card = CARDS.fetch_add(1, Ordering::Relaxed);
        command
            .args(["-netdev", &netdev(switch, dir)?])
            .arg("-device")
            .arg(format!(
                "virtio-net-pci,netdev=net,romfile=,mac=52:54:00:00:00:{card:02x}"
            ));
    }
    for (index, image) in options.disks.iter().enumerate() {
        command
            .arg("-drive")
            .arg(format!(
                "if=none,format=raw,id=disk{index},file={}",
                image.display()
            ))
            .args(["-device", &format!("virtio-blk-pci,drive=disk{index}")]);
    }
    for (index, (directory, tag)) in options.plan9.iter().enumerate() {
        command
            .arg("-fsdev")
            .arg(format!(
                "local,id=plan9_{index},path={},security_model=passthrough,multidevs=remap",
                directory.display()
            ))
            .arg("-device")
            .arg(format!("virtio-9p-pci,fsdev=plan9_{index},mount_tag={tag}"));
    }
    Ok(command)
}

/// The value of `-netdev` for a card at `switch`. Its own socket, if it needs one, is in `dir`.
fn netdev(switch: &Switch, dir: &Path) -> Result<String> {
    Ok(match switch {
        Switch::Packets(_) => bail!("QEMU has no card for {switch:?}"),
        Switch::Streams(path) => format!(
            "stream,id=net,server=off,addr.type=unix,addr.path={}",
            path.display()
        ),
        Switch::Datagrams(path) => format!(
            "dgram,id=net,local.type=unix,local.path={},remote.type=unix,remote.path={}",
            dir.join("card").display(),
            path.display()
        ),
    })
}

/// A command for `program` of this QEMU, without arguments.
fn tied(program: &str, qemu: Qemu, user: Option<User>) -> Result<Command> {
    if qemu == Qemu::Host {
        return Ok(process::tied(program, user));
    }
    let tree = cache::once("qemu-backports", |tree| {
        packages::unpack_closure_of(Suite::Backports, &["qemu-system-x86"], Arch::Amd64, tree)
    })?;
    // With the libraries that it was built for.
    let libraries = tree.join("usr/lib/x86_64-linux-gnu");
    let mut command = process::tied(libraries.join("ld-linux-x86-64.so.2"), user);
    command
        .arg("--library-path")
        .arg(&libraries)
        .arg(tree.join("usr/bin").join(program));
    for data in ["qemu", "seabios"] {
        command.arg("-L").arg(tree.join("usr/share").join(data));
    }
    command.arg("-L").arg(tree.join("usr/lib/ipxe/qemu"));
    Ok(command)
}
