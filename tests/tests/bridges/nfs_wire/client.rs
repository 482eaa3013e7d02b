//! A client that sends what no kernel would, and the server that it talks to.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::{process, tools};
use nfs3_types::nfs3::{
    self, LOOKUP3args, LOOKUP3res, NFS_PROGRAM, Nfs3Option, Nfs3Result, diropargs3, nfs_fh3,
};
use nfs3_types::rpc::{
    accept_stat_data, auth_unix, call_body, msg_body, opaque_auth, reply_body, rpc_msg,
};
use nfs3_types::xdr_codec::{Opaque, Pack, Unpack, Void};
use nfs3_types::{mount, portmap};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};
use tempfile::TempDir;

/// The lock manager's program.
pub(crate) const NLM: u32 = 100_021;

/// The status monitor's program.
pub(crate) const NSM: u32 = 100_024;

/// Limit for a server to start, and for a reply.
const LIMIT: Duration = Duration::from_secs(20);

/// A share with its daemon, and a server on the loopback device.
pub(crate) struct Fixture {
    pub(crate) share: TempDir,
    pub(crate) daemon: Daemon,
    pub(crate) server: Server,
}

impl Fixture {
    pub(crate) fn new(rules: &str) -> Result<Self> {
        Self::with_daemon(rules, &[])
    }

    /// The same on a daemon with `arguments`.
    pub(crate) fn with_daemon(rules: &str, arguments: &[&str]) -> Result<Self> {
        let share = tempfile::Builder::new().prefix("gangplank-").tempdir()?;
        let options = daemon::Options::new(share.path()).arguments(arguments);
        let daemon = Daemon::start(&options)?;
        let server = Server::start(daemon.socket(), rules)?;
        Ok(Self {
            share,
            daemon,
            server,
        })
    }

    /// Kills the daemon and starts another.
    pub(crate) fn replace_daemon(&mut self) -> Result<()> {
        let options = daemon::Options::new(self.share.path());
        self.daemon.replace(&options)
    }
}

/// A server; killed when dropped.
pub(crate) struct Server {
    child: Child,
    dir: TempDir,
    /// Where it serves NFS, and where it answers datagrams.
    addresses: (SocketAddr, SocketAddr),
}

impl Server {
    fn start(backend: &Path, rules: &str) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-nfs-")
            .tempdir()?;
        fs::create_dir(dir.path().join("state"))?;
        fs::write(dir.path().join("exports"), rules)?;
        fs::write(
            dir.path().join("backend"),
            backend.as_os_str().as_encoded_bytes(),
        )?;
        let (child, addresses) = spawn(dir.path())?;
        Ok(Self {
            child,
            dir,
            addresses,
        })
    }

    /// Kills it and starts another with the same state.
    pub(crate) fn restart(&mut self) -> Result<()> {
        process::kill_group(&mut self.child);
        (self.child, self.addresses) = spawn(self.dir.path())?;
        Ok(())
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.addresses.0
    }

    /// Where the port mapper answers datagrams.
    pub(crate) const fn portmap(&self) -> SocketAddr {
        self.addresses.1
    }

    /// A new connection of the user with these ids.
    pub(crate) fn client(&self, uid: u32, gid: u32) -> Result<Client> {
        Self::on(TcpStream::connect(self.address())?, uid, gid)
    }

    /// A connection of root from another address of this machine.
    pub(crate) fn client_from(&self, address: &str) -> Result<Client> {
        self.client_at(SocketAddr::new(address.parse()?, 0))
    }

    /// A connection of root from a reserved port, which needs root.
    pub(crate) fn client_from_reserved_port(&self) -> Result<Client> {
        let mut ports = (600..1024).rev();
        loop {
            let port = ports.next().context("all reserved ports are in use")?;
            match self.client_at(SocketAddr::from(([127, 0, 0, 1], port))) {
                Err(error) if error.downcast_ref() == Some(&Errno::ADDRINUSE) => {}
                connected => return connected,
            }
        }
    }

    fn client_at(&self, from: SocketAddr) -> Result<Client> {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
        rustix::net::bind(&socket, &from)?;
        rustix::net::connect(&socket, &self.address())?;
        Self::on(TcpStream::from(socket), 0, 0)
    }

    fn on(stream: TcpStream, uid: u32, gid: u32) -> Result<Client> {
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_nodelay(true)?;
        let auth = auth_unix {
            uid,
            gid,
            ..auth_unix::default()
        };
        Ok(Client {
            stream,
            auth,
            xid: 1,
        })
    }

    /// Bytes of the files in which it keeps its state.
    pub(crate) fn state_size(&self) -> Result<u64> {
        let mut size = 0;
        for file in fs::read_dir(self.dir.path().join("state"))? {
            size += file?.metadata()?.len();
        }
        Ok(size)
    }

    /// The peak of its memory, in KiB.
    pub(crate) fn peak_memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.context("no VmHWM")?.parse()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
    }
}

fn spawn(dir: &Path) -> Result<(Child, (SocketAddr, SocketAddr))> {
    let log_path = dir.join("log");
    let log = File::create(&log_path)?;
    let mut command = process::tied(tools::nfs()?, None);
    command
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--portmap",
            "127.0.0.1:0",
        ])
        .arg("--backend")
        .arg(fs::read_to_string(dir.join("backend"))?)
        .arg("--exports")
        .arg(dir.join("exports"))
        .arg("--state")
        .arg(dir.join("state"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let mut child = process::spawn(command)?;
    let deadline = Instant::now() + LIMIT;
    loop {
        let log = fs::read_to_string(&log_path)?;
        let address = |before: &str| {
            let (_, rest) = log.split_once(before)?;
            rest.split([',', '\n']).next()?.trim().parse().ok()
        };
        let addresses = address("listening at ").zip(address("port mapper at "));
        if let (Some(addresses), true) = (addresses, log.contains("connected to the daemon")) {
            return Ok((child, addresses));
        }
        if Instant::now() > deadline || child.try_wait()?.is_some() {
            process::kill_group(&mut child);
            bail!("the server does not start\n{log}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The version of a program.
const fn version(program: u32) -> u32 {
    match program {
        portmap::PROGRAM => 2,
        NLM => 4,
        NSM => 1,
        _ => 3,
    }
}

/// A connection.
pub(crate) struct Client {
    stream: TcpStream,
    auth: auth_unix,
    xid: u32,
}

impl Client {
    /// The record of a call, without its header.
    pub(crate) fn record(&self, program: u32, procedure: u32, args: &impl Pack) -> Result<Vec<u8>> {
        let body = call_body {
            rpcvers: 2,
            prog: program,
            vers: version(program),
            proc: procedure,
            cred: opaque_auth::auth_unix(&self.auth),
            verf: opaque_auth::default(),
        };
        let message = rpc_msg {
            xid: self.xid,
            body: msg_body::CALL(body),
        };
        let mut record = Vec::new();
        message.pack(&mut record)?;
        args.pack(&mut record)?;
        Ok(record)
    }

    /// Calls a procedure with arguments as bytes. Returns the results.
    pub(crate) fn raw(&mut self, program: u32, procedure: u32, args: &[u8]) -> Result<Vec<u8>> {
        self.xid += 1;
        let mut record = self.record(program, procedure, &Void)?;
        record.extend_from_slice(args);
        let reply = self.exchange(&record)?;
        results::<Void>(&reply)?;
        // Behind the header of a reply that was accepted.
        Ok(reply.get(24..).unwrap_or_default().to_vec())
    }

    /// Sends a record, and returns the record of the reply.
    pub(crate) fn exchange(&mut self, record: &[u8]) -> Result<Vec<u8>> {
        let header = u32::try_from(record.len())? | 1 << 31;
        self.send(&[&header.to_be_bytes()[..], record].concat())?;
        let mut header = [0; 4];
        self.stream.read_exact(&mut header)?;
        let len = u32::from_be_bytes(header);
        ensure!(len & 1 << 31 != 0, "a reply in several fragments");
        let mut reply = vec![0; usize::try_from(len & !(1 << 31))?];
        self.stream.read_exact(&mut reply)?;
        Ok(reply)
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Whether the server has closed the connection, perhaps after replies.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).is_ok()
    }

    fn call<T: Unpack>(&mut self, program: u32, procedure: u32, args: &impl Pack) -> Result<T> {
        self.xid += 1;
        let record = self.record(program, procedure, args)?;
        results(&self.exchange(&record)?)
    }

    /// Calls a procedure of NFS.
    pub(crate) fn nfs<T: Unpack>(&mut self, procedure: NFS_PROGRAM, args: &impl Pack) -> Result<T> {
        self.call(nfs3::PROGRAM, procedure as u32, args)
    }

    /// Calls a procedure of the port mapper.
    pub(crate) fn portmap<T: Unpack>(&mut self, procedure: u32, args: &impl Pack) -> Result<T> {
        self.call(portmap::PROGRAM, procedure, args)
    }

    /// The handle of a path, by MOUNT.
    pub(crate) fn mount(&mut self, path: &str) -> Result<nfs_fh3> {
        let args = mount::dirpath(Opaque::borrowed(path.as_bytes()));
        self.xid += 1;
        let procedure = mount::MOUNT_PROGRAM::MOUNTPROC3_MNT as u32;
        let record = self.record(mount::PROGRAM, procedure, &args)?;
        match results(&self.exchange(&record)?)? {
            mount::mountres3::Ok(done) => Ok(nfs_fh3 {
                data: Opaque::owned(done.fhandle.0.into_owned()),
            }),
            mount::mountres3::Err(status) => bail!("{status}"),
        }
    }

    /// The handle of a name.
    pub(crate) fn lookup(&mut self, dir: &nfs_fh3, name: &str) -> Result<nfs_fh3> {
        let args = LOOKUP3args {
            what: what(dir, name),
        };
        match self.nfs::<LOOKUP3res>(NFS_PROGRAM::NFSPROC3_LOOKUP, &args)? {
            Nfs3Result::Ok(done) => Ok(done.object),
            Nfs3Result::Err((status, _)) => bail!("{name}: {status}"),
        }
    }
}

/// A directory and a name.
pub(crate) fn what<'a>(dir: &nfs_fh3, name: &'a str) -> diropargs3<'a> {
    diropargs3 {
        dir: dir.clone(),
        name: name.as_bytes().into(),
    }
}

/// The results in the record of a reply.
pub(crate) fn results<T: Unpack>(reply: &[u8]) -> Result<T> {
    let mut rest = reply;
    let (message, _) = rpc_msg::unpack(&mut rest)?;
    match message.body {
        msg_body::REPLY(reply_body::MSG_ACCEPTED(accepted)) => match accepted.reply_data {
            accept_stat_data::SUCCESS => Ok(T::unpack(&mut rest)?.0),
            other => bail!("{other:?}"),
        },
        other => bail!("{other:?}"),
    }
}

/// The value of an option of NFS.
pub(crate) fn some<T: Pack + Unpack>(value: Nfs3Option<T>) -> Result<T> {
    match value {
        Nfs3Option::Some(value) => Ok(value),
        Nfs3Option::None => bail!("it is not there"),
    }
}
