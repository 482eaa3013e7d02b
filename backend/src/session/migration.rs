//! The session of a guest that leaves for another daemon, or arrives from one.

use gangplank_fuse::{InitFlags, InitIn, KERNEL_VERSION, MIN_KERNEL_MINOR_VERSION};

use super::file_system::FileSystem;
use super::{Session, negotiation};
use crate::state::migration::{
    Extension, GuestState, Init, MigratedGuest, NegotiatedErrors, NegotiatedOptions, ROOT_ID,
    TransferError,
};

/// The minor version in virtiofsd's reply to INIT (virtiofsd 1.14, `KERNEL_MINOR_VERSION` in
/// `src/fuse.rs`).
const VIRTIOFSD_MINOR: u32 = 38;

/// What virtiofsd accepts of every guest (virtiofsd 1.14, `init` in `src/server.rs`).
const VIRTIOFSD_FLAGS: InitFlags = InitFlags::ASYNC_READ
    .union(InitFlags::BIG_WRITES)
    .union(InitFlags::PARALLEL_DIROPS)
    .union(InitFlags::AUTO_INVAL_DATA)
    .union(InitFlags::ASYNC_DIO)
    .union(InitFlags::ATOMIC_O_TRUNC)
    .union(InitFlags::MAX_PAGES)
    .union(InitFlags::INIT_EXT);

/// Flags that change what the guest sends or expects, so that both daemons must have accepted them,
/// with their options.
const BINDING: [(InitFlags, &str); 8] = [
    (InitFlags::WRITEBACK_CACHE, "--writeback"),
    (
        InitFlags::SUBMOUNTS,
        "announced submounts (not --no-announce-submounts)",
    ),
    (InitFlags::POSIX_ACL, "--posix-acl"),
    (InitFlags::HANDLE_KILLPRIV_V2, "--killpriv-v2"),
    (
        InitFlags::POSIX_LOCKS.union(InitFlags::FLOCK_LOCKS),
        "--locks=host",
    ),
    (
        InitFlags::NO_OPEN_SUPPORT.union(InitFlags::NO_OPENDIR_SUPPORT),
        "--readonly with --cache=always",
    ),
    (InitFlags::SECURITY_CTX, "--security-label"),
    (InitFlags::SETXATTR_EXT, "--posix-acl"),
];

impl<F: FileSystem> Session<F> {
    /// The stream of a guest that leaves. Changes nothing, so that the guest may stay.
    ///
    /// # Errors
    /// The guest cannot leave.
    pub fn save(&self) -> Result<Vec<u8>, TransferError> {
        let init = *self.init.lock();
        let state = match init {
            Some(init) => GuestState {
                options: options_of(init.features()),
                extension: Some(Extension {
                    init: Some(init),
                    errors: errors_of(init.features()),
                    waker: self.events.as_ref().and_then(|events| events.known_waker()),
                    ..Extension::default()
                }),
                ..self.file_system.save()?
            },
            None => GuestState {
                next_inode: ROOT_ID + 1,
                extension: Some(Extension::default()),
                ..GuestState::default()
            },
        };
        Ok(MigratedGuest::new(state)?.encode()?)
    }

    /// Takes over a guest by its stream, in place of the one that was served so far.
    ///
    /// # Errors
    /// The guest cannot arrive. The session is then as before INIT.
    pub fn load(&self, stream: &[u8]) -> Result<(), TransferError> {
        self.end();
        let guest = MigratedGuest::decode(stream)?;
        // A worker that died while a guest arrived leaves inodes without a session.
        self.file_system.destroy();
        if guest.inodes.is_empty() {
            return Ok(());
        }
        let init = init_of(&guest);
        if init.minor < MIN_KERNEL_MINOR_VERSION {
            return Err(TransferError::Version(init.minor));
        }
        let mut offer = InitIn {
            major: KERNEL_VERSION,
            minor: init.minor,
            ..InitIn::default()
        };
        offer.set_features(init.features());
        let wanted = self.file_system.resume(offer.features());
        let wanted = wanted.map_err(|_| TransferError::Refused)?;
        let reply = negotiation::accept(&offer, wanted);
        let missing = init.features() - reply.features();
        for (flags, option) in BINDING {
            if missing.intersects(flags) {
                return Err(TransferError::Option(option));
            }
        }
        self.file_system.load(&guest)?;
        *self.init.lock() = Some(Init {
            minor: reply.minor.min(offer.minor),
            flags: init.flags,
        });
        if let (Some(events), Some(extension)) = (&self.events, &guest.extension) {
            events.resume_waker(extension.waker);
        }
        self.dialect.set(Some(reply.dialect(&offer)));
        if let Some(record) = self.record() {
            record.open(&offer);
        }
        Ok(())
    }
}

impl Init {
    fn features(self) -> InitFlags {
        InitFlags::from_bits_retain(self.flags)
    }
}

/// What INIT has negotiated. virtiofsd's stream says of it only what its options change.
fn init_of(guest: &MigratedGuest) -> Init {
    let extension = guest.extension.as_ref();
    if let Some(init) = extension.and_then(|extension| extension.init) {
        return init;
    }
    let options = guest.options;
    let acl = InitFlags::POSIX_ACL | InitFlags::DONT_MASK | InitFlags::SETXATTR_EXT;
    let flags = [
        (options.writeback, InitFlags::WRITEBACK_CACHE),
        (options.announce_submounts, InitFlags::SUBMOUNTS),
        (options.posix_acl, acl),
        (options.supplementary_group, InitFlags::CREATE_SUPP_GROUP),
    ];
    let flags = flags.into_iter().filter(|(has, _)| *has);
    let flags = flags.fold(VIRTIOFSD_FLAGS, |all, (_, flags)| all | flags);
    Init {
        minor: VIRTIOFSD_MINOR,
        flags: flags.bits(),
    }
}

fn options_of(flags: InitFlags) -> NegotiatedOptions {
    NegotiatedOptions {
        writeback: flags.contains(InitFlags::WRITEBACK_CACHE),
        announce_submounts: flags.contains(InitFlags::SUBMOUNTS),
        posix_acl: flags.contains(InitFlags::POSIX_ACL),
        supplementary_group: flags.contains(InitFlags::CREATE_SUPP_GROUP),
    }
}

/// A guest that opens no files closes none either.
fn errors_of(flags: InitFlags) -> NegotiatedErrors {
    let no_open = flags.contains(InitFlags::NO_OPEN_SUPPORT);
    NegotiatedErrors {
        no_open,
        no_opendir: flags.contains(InitFlags::NO_OPENDIR_SUPPORT),
        no_flush: no_open,
    }
}
