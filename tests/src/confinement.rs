//! What a process may still do, read from /proc outside of it.

use std::fs;

use anyhow::{Context, Result, ensure};

/// `CAP_DAC_OVERRIDE` (linux/capability.h), as a bit of a set.
pub const DAC_OVERRIDE: u64 = 1 << 1;
/// `CAP_SYS_ADMIN`.
pub const SYS_ADMIN: u64 = 1 << 21;
/// `CAP_SYS_RESOURCE`.
pub const SYS_RESOURCE: u64 = 1 << 24;

/// Fails unless each thread of process `pid` has a list of system calls and `no_new_privs`, and no
/// capability but `capabilities`: those of them that this process has as well.
///
/// # Errors
/// What a thread may do beyond that, or the process has ended.
pub fn check(pid: u32, capabilities: u64) -> Result<()> {
    let own = fs::read_to_string("/proc/self/status")?;
    let capabilities = capabilities & mask(&own, "CapPrm")?;
    let mut threads = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = entry?.path().join("status");
        // A thread may have ended.
        let Ok(status) = fs::read_to_string(&path) else {
            continue;
        };
        check_thread(&status, capabilities).with_context(|| format!("{}", path.display()))?;
        threads += 1;
    }
    ensure!(threads > 0, "process {pid} has ended");
    Ok(())
}

/// The mode of seccomp of process `pid`: 0 without a list of system calls, 2 with one.
///
/// # Errors
/// The process has ended.
pub fn seccomp_mode(pid: u32) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(field(&status, "Seccomp")?.to_owned())
}

fn check_thread(status: &str, capabilities: u64) -> Result<()> {
    ensure!(field(status, "Seccomp")? == "2", "no list of system calls");
    ensure!(field(status, "NoNewPrivs")? == "1", "no no_new_privs");
    for set in ["CapInh", "CapAmb"] {
        ensure!(mask(status, set)? == 0, "{set} is not empty");
    }
    for set in ["CapPrm", "CapEff"] {
        let found = mask(status, set)?;
        ensure!(
            found == capabilities,
            "{set} is {found:#x}, not {capabilities:#x}"
        );
    }
    Ok(())
}

fn mask(status: &str, name: &str) -> Result<u64> {
    Ok(u64::from_str_radix(field(status, name)?, 16)?)
}

fn field<'a>(status: &'a str, name: &str) -> Result<&'a str> {
    let mut lines = status.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines
        .find(|(found, _)| *found == name)
        .with_context(|| format!("no {name}"))?;
    Ok(value.trim())
}
