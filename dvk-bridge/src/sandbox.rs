//! Confines the program before it reads the first byte from a peer: a node, a program at a switch,
//! the kernel's DVK, a daemon or a capture.
//!
//! | command | keeps beside threads, Unix sockets and open descriptors |
//! | --- | --- |
//! | `switch` | nothing |
//! | `serve` | memory to share with a daemon; what its carriers need |
//! | `forward` | what its carriers need |
//! | `tunnel` | memory that a frontend keeps; what its carriers need |
//! | `mount` | mounting, until it has mounted; unmounting |
//! | `dump` | TCP with `--listen` |
//! | `status` | nothing |
//!
//! A node needs TCP. It resolves its peers' names again whenever it connects, and a C library reads
//! any files and, where it is glibc, loads shared libraries for that. So a node whose peers have
//! addresses keeps less than one whose peers have names.
//!
//! Landlock leaves every command but `mount` no file, except that it removes its own sockets, and
//! that it reads files to resolve names. The kernel lets no process that Landlock restricts unmount
//! anything, so it is not used for `mount`.

use std::path::Path;

use gangplank_sandbox::landlock::Files;
use gangplank_sandbox::seccomp::{self, CallList, Conditional, Seccomp, common};
use gangplank_sandbox::{Capability, Error, Kept};

use crate::abi::ioctl;
use crate::carrier::node::NodeConfig;

/// Ports below this one take a capability (ip(7), `ip_unprivileged_port_start`).
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

/// What a command needs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Needs<'a> {
    /// The sockets that it has created, and removes when it ends.
    pub(crate) sockets: Vec<&'a Path>,
    /// Whether it connects to sockets of other users.
    pub(crate) connects: bool,
    /// The node that it becomes.
    pub(crate) node: Option<&'a NodeConfig>,
    /// Whether it uses TCP otherwise.
    pub(crate) tcp: bool,
    /// Whether it makes calls of the kernel's DVK.
    pub(crate) device: bool,
    /// Whether it makes memory to share with a daemon or a frontend.
    pub(crate) memory: bool,
    /// Whether it mounts.
    pub(crate) mount: bool,
}

/// Confines the process to `needs`. It must have one thread.
pub(crate) fn confine(seccomp: Seccomp, needs: &Needs<'_>) -> Result<(), Error> {
    let kept = Kept {
        capabilities: &needs.capabilities(),
        files: needs.files()?,
        calls: &needs.calls(),
    };
    gangplank_sandbox::confine(seccomp, kept)
}

/// Gives up mounting, in all threads.
pub(crate) fn after_mounting(seccomp: Seccomp, needs: &Needs<'_>) -> Result<(), Error> {
    seccomp::install(seccomp, &needs.mounted_calls())
}

impl Needs<'_> {
    fn capabilities(&self) -> Vec<Capability> {
        let mut kept = Vec::new();
        if self.connects || !self.sockets.is_empty() {
            // To connect to another user's socket, and to remove the own one from another user's
            // directory.
            kept.push(Capability::CAP_DAC_OVERRIDE);
        }
        if self
            .node
            .is_some_and(|node| node.port_base < FIRST_UNPRIVILEGED_PORT)
        {
            kept.push(Capability::CAP_NET_BIND_SERVICE);
        }
        if self.mount {
            kept.push(Capability::CAP_SYS_ADMIN);
        }
        kept
    }

    /// Whether a peer has a name that is no address.
    fn resolves_names(&self) -> bool {
        self.node
            .is_some_and(|node| node.peers.iter().any(|peer| !peer.has_address()))
    }

    fn files(&self) -> Result<Option<Files>, Error> {
        if self.mount {
            return Ok(None);
        }
        let mut files = match self.resolves_names() {
            true => Files::readable(),
            false => Files::default(),
        };
        for path in &self.sockets {
            files.remove_beside(path)?;
        }
        Ok(Some(files))
    }

    /// As [`Self::calls`], once it has mounted.
    fn mounted_calls(&self) -> CallList {
        let mut list = self.calls();
        list.allowed.retain(|group| *group != MOUNTING);
        list
    }

    fn calls(&self) -> CallList {
        let mut list = common::server();
        let int = Conditional::int;
        if self.node.is_some() || self.tcp {
            list.conditional.extend([
                int(libc::SYS_socket, 0, libc::AF_INET),
                int(libc::SYS_socket, 0, libc::AF_INET6),
            ]);
        }
        if self.resolves_names() {
            list.allowed.extend([common::OPENING, RESOLVING]);
            list.conditional.extend([
                int(libc::SYS_socket, 0, libc::AF_NETLINK),
                common::ioctl(FIONREAD),
            ]);
            #[cfg(target_env = "gnu")]
            // glibc loads the libraries of nsswitch.conf(5).
            list.allowed.push(&[libc::SYS_mmap, libc::SYS_mprotect]);
        } else if !self.mount {
            list.refused.extend(common::NO_FILES);
        }
        if self.device {
            list.conditional.push(common::ioctls_of_type(ioctl::TYPE));
        }
        if self.memory {
            list.allowed.push(SHARED_MEMORY);
            list.conditional
                .push(int(libc::SYS_fcntl, 1, libc::F_ADD_SEALS));
        }
        if self.mount {
            list.allowed.extend([MOUNTING, MOUNTED]);
            list.conditional.extend([
                common::ioctl(FUSE_CLONE),
                // Before the second list.
                int(libc::SYS_prctl, 0, libc::PR_SET_NO_NEW_PRIVS),
            ]);
        }
        list
    }
}

/// Memory that a daemon maps as well, or that a frontend keeps.
const SHARED_MEMORY: &[libc::c_long] = &[libc::SYS_memfd_create, libc::SYS_ftruncate];

/// Until the directory is mounted. Then the process installs its second list.
const MOUNTING: &[libc::c_long] = &[libc::SYS_mount, libc::SYS_seccomp];

/// While the directory is mounted. Each thread that serves the mount opens `/dev/fuse`.
const MOUNTED: &[libc::c_long] = &[
    libc::SYS_umount2,
    libc::SYS_openat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
];

/// Resolving names, beside opening files: queries to several servers, to servers without a
/// connection, and the name of this host.
const RESOLVING: &[libc::c_long] = &[
    libc::SYS_sendto,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_uname,
];

/// `FIONREAD` (asm-generic/ioctls.h).
const FIONREAD: u32 = 0x541b;

/// `FUSE_DEV_IOC_CLONE` (linux/fuse.h).
const FUSE_CLONE: u32 = 0x8004_e500;

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use std::net::{TcpListener, ToSocketAddrs};
    use std::os::unix::net::UnixStream;

    use gangplank_sandbox::seccomp::testing::under;
    use rustix::io::Errno;

    use super::*;
    use crate::abi::NodeId;
    use crate::carrier::node::PeerConfig;

    fn node(host: &str) -> NodeConfig {
        let mut node = NodeConfig::new(NodeId::FIRST);
        node.peers = vec![PeerConfig::new(NodeId::FIRST, host)];
        node
    }

    fn open() -> Result<(), Errno> {
        let flags = rustix::fs::OFlags::RDONLY;
        rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty()).map(drop)
    }

    #[test]
    fn program_without_a_node_uses_unix_sockets_and_opens_nothing() {
        under(&Needs::default().calls(), || {
            UnixStream::pair().unwrap();
            assert_eq!(open(), Err(Errno::ACCESS));
            let refused = Some(Errno::DOM.raw_os_error());
            assert_eq!(
                TcpListener::bind("127.0.0.1:0").unwrap_err().raw_os_error(),
                refused
            );
            assert_eq!(rustix::process::chroot("/"), Err(Errno::DOM));
            let name = rustix::fs::memfd_create("name", rustix::fs::MemfdFlags::CLOEXEC);
            assert_eq!(name.unwrap_err(), Errno::DOM);
        });
    }

    #[test]
    fn node_opens_files_only_to_resolve_names() {
        let named = node("localhost");
        let needs = Needs {
            node: Some(&named),
            ..Needs::default()
        };
        assert!(needs.files().unwrap().is_some());
        under(&needs.calls(), || {
            TcpListener::bind("127.0.0.1:0").unwrap();
            assert_eq!(open(), Ok(()));
            assert!(("localhost", 1).to_socket_addrs().unwrap().count() > 0);
            // Not to be found; the look-up ends without a call outside of the list.
            let _ = ("no-such-host.invalid", 1).to_socket_addrs();
        });
        let addressed = node("127.0.0.1");
        let needs = Needs {
            node: Some(&addressed),
            ..Needs::default()
        };
        under(&needs.calls(), || {
            TcpListener::bind("127.0.0.1:0").unwrap();
            assert_eq!(open(), Err(Errno::ACCESS));
        });
    }

    #[test]
    fn mounting_is_given_up_and_unmounting_is_not() {
        let needs = Needs {
            mount: true,
            ..Needs::default()
        };
        assert!(needs.files().unwrap().is_none());
        let list = needs.mounted_calls();
        let listed = |call| list.allowed.iter().any(|group| group.contains(&call));
        assert!(listed(libc::SYS_umount2) && !listed(libc::SYS_mount));
        assert!(!listed(libc::SYS_seccomp) && !listed(libc::SYS_execve));
    }

    #[test]
    fn capabilities_follow_the_command() {
        let low = NodeConfig {
            port_base: 900,
            ..node("127.0.0.1")
        };
        let needs = Needs {
            connects: true,
            node: Some(&low),
            ..Needs::default()
        };
        assert_eq!(
            needs.capabilities(),
            [
                Capability::CAP_DAC_OVERRIDE,
                Capability::CAP_NET_BIND_SERVICE
            ]
        );
        assert!(Needs::default().capabilities().is_empty());
    }
}
