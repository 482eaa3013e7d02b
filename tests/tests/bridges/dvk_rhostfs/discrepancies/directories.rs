//! Listing directories.

use std::fs;

use anyhow::{Result, ensure};
use gangplank_dvk::abi::Endpoint;
use rustix::io::Errno;

use super::{EBADF, ENOENT};
use crate::fixture::Fixture;

#[test]
fn d13_directories_are_listed_across_reopening_while_names_go() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    fs::create_dir(fixture.path("many"))?;
    let expected: Vec<String> = (0..500).map(|number| format!("file-{number:03}")).collect();
    for name in &expected {
        fixture.put(&format!("many/{name}"), b"")?;
    }
    ensure!(client.names("//many").unwrap() == expected);

    // Like rm -r: listed names are removed before the listing continues.
    let (mut seen, mut position) = (Vec::new(), 0);
    loop {
        let entries = client.getdents("//many", position, 40).unwrap();
        let Some(last) = entries.last() else { break };
        position = last.cookie;
        for entry in entries.iter().filter(|entry| !entry.name.starts_with('.')) {
            client.unlink(&format!("//many/{}", entry.name)).unwrap();
            seen.push(entry.name.clone());
        }
    }
    seen.sort();
    ensure!(seen == expected, "{} of {}", seen.len(), expected.len());
    ensure!(client.rmdir("//many") == Ok(()));
    Ok(())
}

#[test]
fn d13_entries_are_laid_out_as_the_originals_were() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    fixture.put("hola.txt", b"")?;
    let long = "n".repeat(255);
    fixture.put(&long, b"")?;
    let entries = client.getdents("//", 0, 100).unwrap();
    let find = |name: &str| entries.iter().find(|entry| entry.name == name).unwrap();
    let hola = find("hola.txt");
    ensure!(hola.raw.reclen == 20 && hola.raw.kind == 8);
    ensure!(hola.raw.name[8..].iter().all(|byte| *byte == 0) && hola.raw.padding == 0);
    ensure!(find(&long).raw.reclen == 268);
    ensure!(find(".").raw.kind == 4);
    ensure!(
        entries
            .iter()
            .all(|entry| entry.cookie > 0 && entry.raw.ino != 0)
    );
    Ok(())
}

#[test]
fn d13_handles_of_directories_are_positive_and_belong_to_one_client() -> Result<()> {
    let fixture = Fixture::new()?;
    let (client, other) = (
        fixture.client(),
        fixture.client_at(Endpoint::from_raw(11), 101),
    );
    fixture.put("file", b"")?;
    let directory = client.opendir("//").unwrap();
    ensure!((1..=i32::MAX.cast_unsigned()).contains(&directory));
    ensure!(other.readdir(directory) == Err(EBADF));
    ensure!(other.closedir(directory) == Err(EBADF));
    ensure!(client.seekdir(directory, i32::MAX) == Ok(()));
    ensure!(
        client.readdir(directory) == Err(Errno::STALE.raw_os_error()),
        "nobody knows what comes behind an unknown position; the original client takes it for the \
         end"
    );
    ensure!(client.seekdir(directory, 0) == Ok(()));
    ensure!(client.readdir(directory).unwrap().is_some());
    ensure!(client.closedir(directory) == Ok(()) && client.closedir(directory) == Err(EBADF));
    ensure!(client.opendir("//file") == Err(Errno::NOTDIR.raw_os_error()));
    ensure!(client.opendir("//none") == Err(ENOENT));
    for _ in 0..100 {
        // Never closed.
        ensure!(client.opendir("//").unwrap() != 0);
    }
    Ok(())
}
