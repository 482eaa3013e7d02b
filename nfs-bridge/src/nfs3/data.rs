//! READ, WRITE, COMMIT.

use std::sync::Arc;

use gangplank_driver::{Buffer, Data, Error, Pending, call};
use gangplank_fuse::{Attr, FsyncFlags, FsyncIn, ReadIn, WriteFlags, WriteIn};
use nfs3_types::nfs3::{
    COMMIT3resfail, COMMIT3resok, Nfs3Option, READ3resfail, WRITE3resfail, WRITE3resok, nfsstat3,
    post_op_attr, stable_how, wcc_data, writeverf3,
};
use rustix::fs::FileType;

use super::attributes::to_nfs;
use super::{Context, Decoded, MAX_IO, Object, handle};
use crate::rpc::reply::Reply;
use crate::share::error::Result;
use crate::share::files::{Access, OpenFile};
use crate::xdr::{DecodeError, Reader, pad, put};

/// Most bytes of data that are copied into a reply. More data stays where the daemon has put it.
const MAX_COPIED: usize = 32 << 10;

/// A file that is open, and a READ of it: a [`Pending`] one, or its reply.
type FirstRead<T> = Option<(Arc<OpenFile>, T)>;

impl Context<'_> {
    pub(super) fn read(&self, args: &mut Reader<'_>, reply: &mut Reply) -> Decoded {
        let object = self.object(handle(args)?);
        let (offset, count) = (args.u64()?, args.u32()?.min(MAX_IO));
        let begun = reply.bytes.len();
        let mut attributes = post_op_attr::None;
        let done = object.and_then(|object| {
            // `put` writes no data; so the results are appended here, the data from the memory
            // that is shared with the daemon.
            let asked = object.ask_attributes()?;
            // With the attributes, and waited for first: it comes last, so this thread is woken
            // once. A caller who may not read cannot take one buffer of the daemon's after the
            // other either. The data that is not permitted is dropped here.
            let first = object.begin_read(offset, count)?;
            let first = first.map(|(file, asked)| (file, asked.wait()));
            let attr = asked.wait()?.attr;
            attributes = Nfs3Option::Some(to_nfs(&attr, object.export()));
            check_regular(&attr)?;
            object.identity.check_read(&attr)?;
            put(&mut reply.bytes, &nfsstat3::NFS3_OK);
            put(&mut reply.bytes, &attributes);
            object.append_data(&attr, offset, count, first, reply)
        });
        if let Err(failure) = done {
            reply.bytes.truncate(begun);
            reply.data = None;
            let failed = READ3resfail {
                file_attributes: attributes,
            };
            let done = Err(failure);
            self.put::<nfs3_types::xdr_codec::Void, _>(&mut reply.bytes, done, failed);
        }
        Ok(())
    }

    pub(super) fn write(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        let object = self.changeable(handle(args)?);
        let (offset, count) = (args.u64()?, args.u32()?);
        let stable: stable_how = args.structure()?;
        let data = args.opaque(usize::try_from(MAX_IO).unwrap_or(usize::MAX))?;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let data = data.get(..count).ok_or(DecodeError::Short)?;
        // Before the data is written: a loss meanwhile concerns it.
        let verf = writeverf3(self.share.write_verifier());
        let mut failed = WRITE3resfail::default();
        let done = object.and_then(|object| {
            let _lock = object.share.lock(object.handle());
            let asked = object.ask_attributes()?;
            // While the daemon looks.
            let first = object.piece(data);
            let before = asked.wait()?.attr;
            let done = object.write_data(&before, offset, data, first, stable);
            failed.file_wcc = object.wcc(Some(&before));
            Ok(WRITE3resok {
                count: done?,
                file_wcc: std::mem::take(&mut failed.file_wcc),
                committed: stable,
                verf,
            })
        });
        self.put(reply, done, failed);
        Ok(())
    }

    pub(super) fn commit(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        let object = self.changeable(handle(args)?);
        let (_offset, _count) = (args.u64()?, args.u32()?);
        let mut failed = COMMIT3resfail {
            file_wcc: wcc_data::default(),
        };
        let done = object.and_then(|object| {
            let before = object.attributes()?;
            let done = object.commit(&before);
            failed.file_wcc = object.wcc(Some(&before));
            done?;
            Ok(COMMIT3resok {
                file_wcc: std::mem::take(&mut failed.file_wcc),
                verf: writeverf3(self.share.write_verifier()),
            })
        });
        self.put(reply, done, failed);
        Ok(())
    }
}

fn check_regular(attr: &Attr) -> std::result::Result<(), nfsstat3> {
    match FileType::from_raw_mode(attr.mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(nfsstat3::NFS3ERR_ISDIR),
        _ => Err(nfsstat3::NFS3ERR_INVAL),
    }
}

impl Object<'_> {
    fn open(&self, access: Access) -> Result<Arc<OpenFile>> {
        // The caller's permissions were checked. The daemon opens the file with its own.
        self.connection.files.open(&self.node, access)
    }

    /// Asks for the first piece of data, without waiting for it, if the file is open already.
    fn begin_read(&self, offset: u64, count: u32) -> Result<FirstRead<Pending<Data>>> {
        let files = &self.connection.files;
        let Some(file) = files.find(self.node.id, Access::Read) else {
            return Ok(None);
        };
        let asked = self.ask_data(&file, offset, count)?;
        Ok(asked.map(|asked| (file, asked)))
    }

    /// Asks for data, at most as much as one request takes; `None` beyond the end of all files.
    fn ask_data(&self, file: &OpenFile, offset: u64, count: u32) -> Result<Option<Pending<Data>>> {
        if offset.cast_signed() < 0 || count == 0 {
            return Ok(None);
        }
        let wanted = count.min(self.session.max_read());
        let buffer = self
            .session
            .buffer(usize::try_from(wanted).unwrap_or(usize::MAX))?;
        let args = ReadIn {
            fh: file.handle.get(),
            offset,
            ..ReadIn::default()
        };
        let read = call::read(self.node.id, args, buffer);
        Ok(Some(self.session.submit(read)?))
    }

    /// Appends count, end-of-file mark and data of a READ, whose first piece may be there.
    fn append_data(
        &self,
        attr: &Attr,
        offset: u64,
        count: u32,
        first: FirstRead<std::result::Result<Data, Error>>,
        reply: &mut Reply,
    ) -> Result<()> {
        let (file, mut first) = match first {
            Some((file, read)) => (file, Some(read)),
            None => (self.open(Access::Read)?, None),
        };
        // Count, end-of-file mark and length come before the data, and are known after it.
        let bytes = &mut reply.bytes;
        let head = bytes.len();
        bytes.resize(head + 12, 0);
        let mut got = 0;
        let mut ended = false;
        while got < count && !ended {
            let read = match first.take() {
                Some(read) => Some(read),
                None => self
                    .ask_data(&file, offset.saturating_add(got.into()), count - got)?
                    .map(Pending::wait),
            };
            let Some(read) = read else {
                ended = true;
                break;
            };
            let data = read?;
            let is_first = got == 0;
            let wanted = (count - got).min(self.session.max_read());
            let len = u32::try_from(data.len()).unwrap_or(wanted);
            ended = len < wanted;
            got += len;
            // The buffer has the size of what was wanted, and a client may leave the reply.
            let fills = len >= wanted / 2 && data.len() > MAX_COPIED;
            if is_first && (ended || got == count) && fills {
                reply.data = Some(data);
            } else {
                let at = bytes.len();
                bytes.resize(at + data.len(), 0);
                data.bytes()
                    .copy_to(bytes.get_mut(at..).unwrap_or_default());
            }
        }
        let at_end = ended || offset.saturating_add(got.into()) >= attr.size;
        let mut fields = Vec::with_capacity(12);
        put(&mut fields, &got);
        put(&mut fields, &at_end);
        put(&mut fields, &got);
        if let Some(place) = bytes.get_mut(head..head + 12) {
            place.copy_from_slice(&fields);
        }
        if reply.data.is_none() {
            pad(bytes, usize::try_from(got).unwrap_or(0));
        }
        Ok(())
    }

    /// The first of `data` in memory of the daemon, as much as one request takes.
    fn piece(&self, data: &[u8]) -> Result<Buffer> {
        let limit = usize::try_from(self.session.max_write()).unwrap_or(usize::MAX);
        let piece = data.get(..limit).unwrap_or(data);
        let buffer = self.session.buffer(piece.len())?;
        buffer.bytes().copy_from(piece);
        Ok(buffer)
    }

    /// Writes data, whose first piece is in `first`: bytes written.
    fn write_data(
        &self,
        attr: &Attr,
        offset: u64,
        data: &[u8],
        first: Result<Buffer>,
        stable: stable_how,
    ) -> Result<u32> {
        check_regular(attr)?;
        self.identity.check_write(attr)?;
        let len = u64::try_from(data.len()).unwrap_or(u64::MAX);
        let end = offset.checked_add(len);
        if end.is_none_or(|end| end.cast_signed() < 0) {
            return Err(nfsstat3::NFS3ERR_FBIG.into());
        }
        let file = self.open(Access::Write)?;
        let mut written = 0;
        let mut first = Some(first);
        while let Some(rest) = data.get(written..).filter(|rest| !rest.is_empty()) {
            let buffer = first.take().unwrap_or_else(|| self.piece(rest))?;
            let len = buffer.len();
            let flags = match self.identity.uid {
                0 => WriteFlags::empty(),
                _ => WriteFlags::KILL_SUIDGID,
            };
            let args = WriteIn {
                fh: file.handle.get(),
                offset: offset + u64::try_from(written).unwrap_or(0),
                size: u32::try_from(len).unwrap_or(u32::MAX),
                write_flags: flags.bits(),
                ..WriteIn::default()
            };
            match self.session.call(call::write(self.node.id, args, buffer)) {
                Ok(0) => break,
                Ok(count) => written += usize::try_from(count).unwrap_or(0).min(len),
                // The client sends the rest again, and gets the error then.
                Err(error) if written > 0 && error.errno().is_some() => break,
                Err(error) => return Err(error.into()),
            }
        }
        if written == 0 && !data.is_empty() {
            return Err(nfsstat3::NFS3ERR_IO.into());
        }
        match stable {
            stable_how::UNSTABLE => {}
            stable_how::DATA_SYNC => self.sync(&file, FsyncFlags::FDATASYNC)?,
            stable_how::FILE_SYNC => self.sync(&file, FsyncFlags::empty())?,
        }
        Ok(u32::try_from(written).unwrap_or(u32::MAX))
    }

    fn sync(&self, file: &OpenFile, flags: FsyncFlags) -> Result<()> {
        let args = FsyncIn {
            fh: file.handle.get(),
            fsync_flags: flags.bits(),
            ..FsyncIn::default()
        };
        let synced = self.session.fsync(self.node.id, args);
        if synced.is_err() {
            // The host may have dropped what was written before.
            self.share.lose_writes();
        }
        Ok(synced?)
    }

    /// Writes the whole file to the host's disk.
    fn commit(&self, attr: &Attr) -> Result<()> {
        check_regular(attr)?;
        self.identity.check_write(attr)?;
        let files = &self.connection.files;
        let open = files.find(self.node.id, Access::Write);
        // Any open file will do: the host syncs the inode.
        let open = match open {
            Some(open) => open,
            None => self.open(Access::Read)?,
        };
        self.sync(&open, FsyncFlags::empty())?;
        // A client commits when it closes a file. The host cannot execute a file that is open for
        // writing. One that its owner cannot open again stays open for a while.
        if attr.mode & 0o200 != 0 {
            files.close_written(self.node.id);
        }
        Ok(())
    }
}
