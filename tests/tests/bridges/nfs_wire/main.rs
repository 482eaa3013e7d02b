//! The NFS server on the wire: what its replies promise over restarts, repetitions and lies.

mod callers;
mod client;
mod locks;
mod stock_programs;

use std::collections::BTreeSet;
use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use nfs3_types::nfs3::{
    COMMIT3args, COMMIT3res, CREATE3args, CREATE3res, GETATTR3args, GETATTR3res, LINK3args,
    LINK3res, NFS_PROGRAM as P, Nfs3Option, Nfs3Result, READ3args, READ3res, READDIR3args,
    READDIR3res, READDIRPLUS3args, READDIRPLUS3res, REMOVE3args, REMOVE3res, RENAME3args,
    RENAME3res, SETATTR3args, SETATTR3res, WRITE3args, WRITE3res, cookieverf3, createhow3,
    createverf3, fattr3, nfs_fh3, nfsstat3, sattr3, stable_how,
};
use nfs3_types::portmap::mapping;
use nfs3_types::xdr_codec::{Opaque, Void};
use nfs3_types::{nfs3, portmap};

use crate::client::{Client, Fixture, entry, results, some};

/// Everything, to everybody, from any port.
const OPEN: &str = "/ *(rw,insecure,no_root_squash)\n";

fn getattr(client: &mut Client, object: &nfs_fh3) -> Result<fattr3> {
    let args = GETATTR3args::from(object.clone());
    match client.nfs::<GETATTR3res>(P::NFSPROC3_GETATTR, &args)? {
        Nfs3Result::Ok(done) => Ok(done.obj_attributes),
        Nfs3Result::Err((status, _)) => bail!("{status}"),
    }
}

fn create(client: &mut Client, dir: &nfs_fh3, name: &str, how: createhow3) -> Result<nfs_fh3> {
    let args = CREATE3args {
        where_: entry(dir, name),
        how,
    };
    match client.nfs::<CREATE3res>(P::NFSPROC3_CREATE, &args)? {
        Nfs3Result::Ok(done) => some(done.obj),
        Nfs3Result::Err((status, _)) => bail!("{status}"),
    }
}

fn unchecked() -> createhow3 {
    createhow3::UNCHECKED(sattr3 {
        mode: Nfs3Option::Some(0o644),
        ..sattr3::default()
    })
}

/// Writes without commitment. Returns the verifier.
fn write(client: &mut Client, file: &nfs_fh3, data: &[u8]) -> Result<[u8; 8]> {
    let args = WRITE3args {
        file: file.clone(),
        offset: 0,
        count: u32::try_from(data.len())?,
        stable: stable_how::UNSTABLE,
        data: Opaque::borrowed(data),
    };
    match client.nfs::<WRITE3res>(P::NFSPROC3_WRITE, &args)? {
        Nfs3Result::Ok(done) => {
            ensure!(done.committed == stable_how::UNSTABLE);
            let before = some(done.file_wcc.before)?;
            let after = some(done.file_wcc.after)?;
            ensure!(before.size <= after.size && after.size >= u64::from(done.count));
            Ok(done.verf.0)
        }
        Nfs3Result::Err((status, _)) => bail!("{status}"),
    }
}

fn commit(client: &mut Client, file: &nfs_fh3) -> Result<[u8; 8]> {
    let args = COMMIT3args {
        file: file.clone(),
        offset: 0,
        count: 0,
    };
    match client.nfs::<COMMIT3res>(P::NFSPROC3_COMMIT, &args)? {
        Nfs3Result::Ok(done) => Ok(done.verf.0),
        Nfs3Result::Err((status, _)) => bail!("{status}"),
    }
}

#[test]
fn handles_are_valid_after_restarts_of_server_and_daemon() -> Result<()> {
    let mut fixture = Fixture::new(OPEN)?;
    fs::create_dir_all(fixture.share.path().join("a/b"))?;
    fs::write(fixture.share.path().join("a/b/file"), "content")?;
    let mut client = fixture.server.client(0, 0)?;
    let root = client.mount("/")?;
    let a = client.lookup(&root, "a")?;
    let b = client.lookup(&a, "b")?;
    let file = client.lookup(&b, "file")?;
    let before = getattr(&mut client, &file)?;
    for round in 0..3 {
        match round {
            0 => fixture.server.restart()?,
            1 => fixture.replace_daemon()?,
            _ => {
                fixture.server.restart()?;
                fixture.replace_daemon()?;
                // By another guest, while nobody looked.
                let to = fixture.share.path().join("a/b/other name");
                fs::rename(fixture.share.path().join("a/b/file"), to)?;
            }
        }
        let mut client = fixture.server.client(0, 0)?;
        let after = getattr(&mut client, &file)?;
        ensure!((after.fileid, after.size) == (before.fileid, 7));
        ensure!(client.mount("/")?.data == root.data);
        ensure!(client.lookup(&a, "b")?.data == b.data);
    }
    // Another inode is another file, also by the same name and perhaps with the same number.
    fs::remove_file(fixture.share.path().join("a/b/other name"))?;
    fs::write(fixture.share.path().join("a/b/other name"), "another")?;
    fixture.server.restart()?;
    let mut client = fixture.server.client(0, 0)?;
    let stale = getattr(&mut client, &file).unwrap_err();
    ensure!(stale.to_string() == "NFS3ERR_STALE", "{stale}");
    Ok(())
}

#[test]
fn a_handle_outlives_the_name_it_was_found_by_if_another_link_is_known() -> Result<()> {
    let mut fixture = Fixture::new(OPEN)?;
    let share = fixture.share.path().to_owned();
    for name in ["one", "two"] {
        fs::create_dir(share.join(name))?;
    }
    for name in ["removed", "linked", "lost", "moved"] {
        fs::write(share.join("one").join(name), "")?;
        fs::hard_link(share.join("one").join(name), share.join("two").join(name))?;
    }
    fs::remove_file(share.join("two/linked"))?;
    let mut client = fixture.server.client(0, 0)?;
    let root = client.mount("/")?;
    let one = client.lookup(&root, "one")?;
    let two = client.lookup(&root, "two")?;
    let mut handles = Vec::new();
    for name in ["removed", "linked", "lost", "moved"] {
        handles.push(client.lookup(&one, name)?);
        if name == "linked" {
            let args = LINK3args {
                file: handles[1].clone(),
                link: entry(&two, name),
            };
            let linked = client.nfs::<LINK3res>(P::NFSPROC3_LINK, &args)?;
            ensure!(matches!(linked, Nfs3Result::Ok(_)));
        } else {
            ensure!(client.lookup(&two, name)?.data == handles.last().unwrap().data);
        }
    }
    for name in ["removed", "linked"] {
        let args = REMOVE3args {
            object: entry(&one, name),
        };
        let removed = client.nfs::<REMOVE3res>(P::NFSPROC3_REMOVE, &args)?;
        ensure!(matches!(removed, Nfs3Result::Ok(_)));
    }
    let args = RENAME3args {
        from: entry(&two, "moved"),
        to: entry(&root, "elsewhere"),
    };
    let renamed = client.nfs::<RENAME3res>(P::NFSPROC3_RENAME, &args)?;
    ensure!(matches!(renamed, Nfs3Result::Ok(_)));
    // By another guest.
    for name in ["lost", "moved"] {
        fs::remove_file(share.join("one").join(name))?;
    }
    for _ in 0..2 {
        fixture.server.restart()?;
        fixture.replace_daemon()?;
        let mut client = fixture.server.client(0, 0)?;
        for handle in &handles {
            let attributes = loop {
                match getattr(&mut client, handle) {
                    Err(error) if error.to_string() == "NFS3ERR_JUKEBOX" => {}
                    done => break done?,
                }
            };
            ensure!(attributes.nlink == 1);
        }
    }
    Ok(())
}

/// The confined server writes its log anew.
#[test]
fn the_log_of_handles_stays_short_and_whole_while_files_are_renamed() -> Result<()> {
    let mut fixture = Fixture::new(OPEN)?;
    let names = ["a".repeat(250), "b".repeat(250)];
    fs::write(fixture.share.path().join(&names[0]), "")?;
    let mut client = fixture.server.client(0, 0)?;
    let root = client.mount("/")?;
    let file = client.lookup(&root, &names[0])?;
    let mut largest = 0;
    for turn in 0..5000 {
        let args = RENAME3args {
            from: entry(&root, &names[turn % 2]),
            to: entry(&root, &names[(turn + 1) % 2]),
        };
        let renamed = client.nfs::<RENAME3res>(P::NFSPROC3_RENAME, &args)?;
        ensure!(matches!(renamed, Nfs3Result::Ok(_)));
        if turn % 100 == 0 {
            largest = fixture.server.state_size()?.max(largest);
        }
    }
    ensure!((1 << 19..3 << 19).contains(&largest), "{largest} bytes");
    ensure!(
        fixture.server.state_size()? < 1 << 19,
        "it was not written anew"
    );
    fixture.server.restart()?;
    fixture.replace_daemon()?;
    let mut client = fixture.server.client(0, 0)?;
    loop {
        match getattr(&mut client, &file) {
            Err(error) if error.to_string() == "NFS3ERR_JUKEBOX" => {}
            done => break done.map(drop),
        }
    }
}

#[test]
fn verifier_of_writes_changes_when_something_may_be_lost_and_not_before() -> Result<()> {
    let mut fixture = Fixture::new(OPEN)?;
    let mut client = fixture.server.client(0, 0)?;
    let root = client.mount("/")?;
    let file = create(&mut client, &root, "file", unchecked())?;
    let first = write(&mut client, &file, b"one")?;
    ensure!(write(&mut client, &file, b"two")? == first);
    ensure!(commit(&mut client, &file)? == first);
    fixture.server.restart()?;
    let mut client = fixture.server.client(0, 0)?;
    let second = commit(&mut client, &file)?;
    ensure!(second != first, "the server was killed");
    fixture.replace_daemon()?;
    let third = loop {
        match write(&mut client, &file, b"three") {
            Err(error) if error.to_string() == "NFS3ERR_JUKEBOX" => {}
            done => break done?,
        }
    };
    ensure!(third != second, "the daemon was killed");
    ensure!(commit(&mut client, &file)? == third);
    ensure!(fs::read(fixture.share.path().join("file"))? == b"three");
    Ok(())
}

#[test]
fn a_repeated_call_gets_the_first_reply_also_on_another_connection() -> Result<()> {
    let fixture = Fixture::new(OPEN)?;
    fs::write(fixture.share.path().join("file"), "")?;
    let mut client = fixture.server.client(0, 0)?;
    let root = client.mount("/")?;
    let args = REMOVE3args {
        object: entry(&root, "file"),
    };
    let record = client.record(nfs3::PROGRAM, P::NFSPROC3_REMOVE as u32, &args)?;
    let first = client.exchange(&record)?;
    ensure!(matches!(results::<REMOVE3res>(&first)?, Nfs3Result::Ok(_)));
    fs::write(fixture.share.path().join("file"), "made by another guest")?;
    ensure!(client.exchange(&record)? == first);
    ensure!(fixture.server.client(0, 0)?.exchange(&record)? == first);
    ensure!(fixture.share.path().join("file").exists());
    Ok(())
}

#[test]
fn exclusive_create_succeeds_again_for_its_own_client_alone() -> Result<()> {
    let mut fixture = Fixture::new(OPEN)?;
    let root = fixture.server.client(0, 0)?.mount("/")?;
    let exclusive = |byte| createhow3::EXCLUSIVE(createverf3([byte; 8]));
    let mut client = fixture.server.client(0, 0)?;
    let file = create(&mut client, &root, "file", exclusive(7))?;
    fixture.server.restart()?;
    let mut client = fixture.server.client(0, 0)?;
    let again = create(&mut client, &root, "file", exclusive(7))?;
    ensure!(again.data == file.data);
    let other = create(&mut client, &root, "file", exclusive(8)).unwrap_err();
    ensure!(other.to_string() == "NFS3ERR_EXIST", "{other}");
    let guarded = createhow3::GUARDED(sattr3::default());
    let guarded = create(&mut client, &root, "file", guarded).unwrap_err();
    ensure!(guarded.to_string() == "NFS3ERR_EXIST", "{guarded}");
    Ok(())
}

#[test]
fn a_listing_goes_on_after_a_restart_and_shows_each_name_once() -> Result<()> {
    let mut fixture = Fixture::new(OPEN)?;
    for number in 0..300 {
        fs::write(fixture.share.path().join(format!("name {number}")), "")?;
    }
    let root = fixture.server.client(0, 0)?.mount("/")?;
    let mut names = BTreeSet::new();
    let (mut cookie, mut cookieverf) = (0, cookieverf3::default());
    let mut pages = 0;
    let mut ended = false;
    while !ended {
        if pages == 2 {
            fixture.server.restart()?;
        }
        pages += 1;
        let mut client = fixture.server.client(0, 0)?;
        let dir = root.clone();
        let mut add = |name: &[u8]| -> Result<()> {
            ensure!(names.insert(name.to_vec()), "{name:?} twice");
            Ok(())
        };
        // In turns by both procedures: their cookies are the same.
        if pages % 2 == 0 {
            let args = READDIR3args {
                dir,
                cookie,
                cookieverf,
                count: 2048,
            };
            let Nfs3Result::Ok(page) = client.nfs::<READDIR3res>(P::NFSPROC3_READDIR, &args)?
            else {
                bail!("READDIR")
            };
            for entry in &page.reply.entries.0 {
                add(entry.name.as_ref())?;
                cookie = entry.cookie;
            }
            (cookieverf, ended) = (page.cookieverf, page.reply.eof);
        } else {
            let args = READDIRPLUS3args {
                dir,
                cookie,
                cookieverf,
                dircount: 2048,
                maxcount: 4096,
            };
            let procedure = P::NFSPROC3_READDIRPLUS;
            let Nfs3Result::Ok(page) = client.nfs::<READDIRPLUS3res>(procedure, &args)? else {
                bail!("READDIRPLUS")
            };
            for entry in page.reply.entries.0 {
                add(entry.name.as_ref())?;
                cookie = entry.cookie;
                if entry.name.as_ref() != b".." {
                    let attributes = some(entry.name_attributes)?;
                    let handle = some(entry.name_handle)?;
                    ensure!(getattr(&mut client, &handle)?.fileid == attributes.fileid);
                }
            }
            (cookieverf, ended) = (page.cookieverf, page.reply.eof);
        }
    }
    ensure!(pages > 5 && names.len() == 302, "{pages} {}", names.len());
    let mut client = fixture.server.client(0, 0)?;
    let args = READDIR3args {
        dir: root,
        cookie: 5,
        cookieverf: cookieverf3([9; 8]),
        count: 2048,
    };
    let page = client.nfs::<READDIR3res>(P::NFSPROC3_READDIR, &args)?;
    let Nfs3Result::Err((status, _)) = page else {
        bail!("a cookie of another server was accepted")
    };
    ensure!(status == nfsstat3::NFS3ERR_BAD_COOKIE);
    Ok(())
}

#[test]
fn rules_decide_who_changes_what() -> Result<()> {
    let rules = "/open 127.0.0.1(rw,insecure)\n/read 127.0.0.0/8(ro,insecure)\n\
                 /other 10.0.0.0/8(rw)\n\
                 /open/inner 127.0.0.1(rw,insecure,all_squash,anonuid=4321,anongid=8765)\n";
    let fixture = Fixture::new(rules)?;
    for name in ["open", "open/inner", "read", "other"] {
        let path = fixture.share.path().join(name);
        fs::create_dir(&path)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(&path, mode)?;
    }
    let mut client = fixture.server.client(0, 0)?;
    for (path, error) in [
        ("/", "MNT3ERR_ACCES"),
        ("/other", "MNT3ERR_ACCES"),
        ("/open/missing", "MNT3ERR_NOENT"),
        ("/open/..", "MNT3ERR_INVAL"),
    ] {
        let refused = client.mount(path).unwrap_err().to_string();
        ensure!(refused == error, "{path}: {refused}");
    }
    let read = client.mount("/read")?;
    let refused = create(&mut client, &read, "file", unchecked()).unwrap_err();
    ensure!(refused.to_string() == "NFS3ERR_ROFS", "{refused}");
    let open = client.mount("/open")?;
    // The parent of an export's root is the root itself.
    ensure!(client.lookup(&open, "..")?.data == open.data);
    if rustix::process::geteuid().is_root() {
        create(&mut client, &open, "by root", unchecked())?;
        let made = fs::metadata(fixture.share.path().join("open/by root"))?;
        ensure!((made.uid(), made.gid()) == (65534, 65534));
        let inner = client.mount("/open/inner")?;
        create(&mut client, &inner, "file", unchecked())?;
        let made = fs::metadata(fixture.share.path().join("open/inner/file"))?;
        ensure!((made.uid(), made.gid()) == (4321, 8765));
        // A user owns what it makes, and nobody else may change that.
        let mut user = fixture.server.client(1000, 100)?;
        let file = create(&mut user, &open, "by user", unchecked())?;
        let made = fs::metadata(fixture.share.path().join("open/by user"))?;
        ensure!((made.uid(), made.gid()) == (1000, 100));
        let args = SETATTR3args {
            object: file,
            new_attributes: sattr3 {
                mode: Nfs3Option::Some(0o777),
                ..sattr3::default()
            },
            guard: Nfs3Option::None,
        };
        let mut other = fixture.server.client(1001, 100)?;
        let refused = other.nfs::<SETATTR3res>(P::NFSPROC3_SETATTR, &args)?;
        let Nfs3Result::Err((status, _)) = refused else {
            bail!("another user changed the mode")
        };
        ensure!(status == nfsstat3::NFS3ERR_PERM);
    }
    Ok(())
}

#[test]
fn a_port_that_any_user_may_call_from_is_refused_unless_the_rule_permits_it() -> Result<()> {
    let fixture = Fixture::new("/secure *(rw)\n/insecure *(rw,insecure)\n")?;
    for name in ["secure", "insecure"] {
        fs::create_dir(fixture.share.path().join(name))?;
    }
    let mut user = fixture.server.client(0, 0)?;
    let insecure = user.mount("/insecure")?;
    getattr(&mut user, &insecure)?;
    let refused = user.mount("/secure").unwrap_err().to_string();
    ensure!(refused == "MNT3ERR_ACCES", "{refused}");
    if rustix::process::geteuid().is_root() {
        let mut kernel = fixture.server.client_from_reserved_port()?;
        let secure = kernel.mount("/secure")?;
        getattr(&mut kernel, &secure)?;
        // The handle alone is of no use.
        let refused = getattr(&mut user, &secure).unwrap_err().to_string();
        ensure!(refused == "NFS3ERR_PERM", "{refused}");
    }
    Ok(())
}

#[test]
fn reads_end_at_the_end_and_large_ones_arrive_whole() -> Result<()> {
    let fixture = Fixture::new(OPEN)?;
    let content: Vec<u8> = (0..3_000_001_u32).map(|n| n.to_le_bytes()[1]).collect();
    fs::write(fixture.share.path().join("file"), &content)?;
    let mut client = fixture.server.client(0, 0)?;
    let root = client.mount("/")?;
    let file = client.lookup(&root, "file")?;
    for (offset, count) in [(0, 1 << 20), (2_900_000, 1 << 20), (1, 7), (4_000_000, 1)] {
        let args = READ3args {
            file: file.clone(),
            offset,
            count,
        };
        let Nfs3Result::Ok(read) = client.nfs::<READ3res<'static>>(P::NFSPROC3_READ, &args)? else {
            bail!("READ")
        };
        let from = usize::try_from(offset)?.min(content.len());
        let to = content.len().min(from + usize::try_from(count)?);
        ensure!(*read.data == content[from..to], "{offset}");
        ensure!(read.eof == (to == content.len()), "{offset}");
    }
    Ok(())
}

#[test]
fn the_port_mapper_tells_the_port_by_both_protocols() -> Result<()> {
    let fixture = Fixture::new(OPEN)?;
    let mut client = fixture.server.client(0, 0)?;
    let asked = mapping {
        prog: nfs3::PROGRAM,
        vers: nfs3::VERSION,
        prot: portmap::IPPROTO_TCP,
        port: 0,
    };
    let port: u32 = client.portmap(3, &asked)?;
    ensure!(port == u32::from(fixture.server.address().port()));
    Ok(())
}

#[test]
fn hostile_bytes_get_an_error_or_lose_the_connection_and_nothing_else() -> Result<()> {
    let fixture = Fixture::new(OPEN)?;
    let mut good = fixture.server.client(0, 0)?;
    let root = good.mount("/")?;
    let memory = fixture.server.peak_memory()?;
    // Records that are longer than allowed, or never end.
    for bytes in [[0xff; 64], [0x7f; 64], [0; 64]] {
        let mut bad = fixture.server.client(0, 0)?;
        let all = bytes.repeat(8);
        // The server may close before it has read all.
        let _ = bad.send(&all);
        ensure!(bad.is_closed() || bytes[0] == 0xff);
    }
    // Each procedure of each program with arguments that are random, cut off, or claim lengths.
    let mut random = fastrand::Rng::with_seed(7);
    for program in [
        nfs3::PROGRAM,
        nfs3_types::mount::PROGRAM,
        portmap::PROGRAM,
        client::NLM,
        client::NSM,
        1,
    ] {
        for procedure in 0..24 {
            for round in 0..12 {
                let mut bad = fixture.server.client(0, 0)?;
                let mut record = bad.record(program, procedure, &Void)?;
                if round % 3 == 0 {
                    record.extend([0, 0, 0, 32]);
                    record.extend(root.data.iter());
                }
                if round % 3 == 1 {
                    record.extend([0xff; 4]);
                }
                let len = random.usize(..200);
                record.extend((0..len).map(|_| match random.u8(..4) {
                    0 => random.u8(..),
                    1 => 0xff,
                    _ => 0,
                }));
                if round == 11 {
                    // Beyond number and type: what is no call has no reply.
                    let at = random.usize(8..record.len());
                    record[at] ^= 1 << random.u8(..8);
                }
                let reply = bad.exchange(&record);
                ensure!(
                    reply.is_ok(),
                    "program {program} procedure {procedure}: {reply:?}"
                );
            }
        }
    }
    // The others are served, and nothing was allocated that a length claimed.
    getattr(&mut good, &root)?;
    let grown = fixture.server.peak_memory()?.saturating_sub(memory);
    ensure!(grown < 64 << 10, "{grown} KiB more");
    Ok(())
}

#[test]
fn clients_that_take_no_replies_hold_up_nobody() -> Result<()> {
    let fixture = Fixture::new(OPEN)?;
    fs::write(fixture.share.path().join("file"), vec![7; 1 << 20])?;
    let mut good = fixture.server.client(0, 0)?;
    let root = good.mount("/")?;
    let file = good.lookup(&root, "file")?;
    let memory = fixture.server.peak_memory()?;
    let args = READ3args {
        file,
        offset: 0,
        count: 1 << 20,
    };
    let record = good.record(nfs3::PROGRAM, P::NFSPROC3_READ as u32, &args)?;
    let header = u32::try_from(record.len())? | 1 << 31;
    let call = [&header.to_be_bytes()[..], &record].concat();
    // More of them than the server has workers, each with more calls than it may have at once.
    let mut stuck = Vec::new();
    for _ in 0..20 {
        let mut client = fixture.server.client(0, 0)?;
        client.send(&call.repeat(200))?;
        stuck.push(client);
    }
    for _ in 0..20 {
        getattr(&mut good, &root)?;
    }
    let grown = fixture.server.peak_memory()?.saturating_sub(memory);
    // The limit of all, one reply for each, and what the workers have.
    ensure!(grown < (64 + 20 + 32) << 10, "{grown} KiB more");
    Ok(())
}

#[test]
fn clients_that_connect_and_say_nothing_keep_nobody_else_out() -> Result<()> {
    let fixture = Fixture::new(OPEN)?;
    let mut silent = Vec::new();
    for _ in 0..64 {
        for address in ["127.0.0.2", "127.0.0.3"] {
            silent.push(fixture.server.client_from(address)?);
        }
    }
    let mut client = fixture.server.client(0, 0)?;
    let root = client.mount("/")?;
    // One address gets half of the places.
    let mut more = fixture.server.client_from("127.0.0.2")?;
    ensure!(more.mount("/").is_err(), "an address has all places");
    getattr(&mut client, &root)?;
    Ok(())
}

#[test]
fn datagrams_reach_the_port_mapper_alone() -> Result<()> {
    let fixture = Fixture::new(OPEN)?;
    let client = fixture.server.client(0, 0)?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut buffer = [0; 512];
    let mut ask = |record: &[u8]| -> Result<Vec<u8>> {
        socket.send_to(record, fixture.server.portmap())?;
        let len = socket.recv(&mut buffer)?;
        Ok(buffer[..len].to_vec())
    };
    let asked = mapping {
        prog: nfs3::PROGRAM,
        vers: nfs3::VERSION,
        prot: portmap::IPPROTO_TCP,
        port: 0,
    };
    let reply = ask(&client.record(portmap::PROGRAM, 3, &asked)?)?;
    let port: u32 = results(&reply)?;
    ensure!(port == u32::from(fixture.server.address().port()));
    let refused = ask(&client.record(nfs3::PROGRAM, 0, &Void)?)?;
    let refused = results::<Void>(&refused).unwrap_err().to_string();
    ensure!(refused == "PROG_UNAVAIL", "{refused}");
    Ok(())
}
