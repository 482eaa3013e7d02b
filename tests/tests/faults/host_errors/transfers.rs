//! READ and WRITE of a daemon whose host fails, without a guest kernel.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use gangplank_tests::driver::NodeAndFile;
use gangplank_tests::faulty_fs::rules::{Call, Fault, Rule};
use gangplank_tests::faulty_fs::{HostCache, HostWrites};
use rustix::io::Errno;

use crate::fixture::{Fixture, Kind, Range, Reply};
use crate::model::{Faults, FileModel};
use crate::{is_long, seed};

const MIB: u64 = 1 << 20;

/// Bytes of the file whose faults are at chosen offsets.
const CHOSEN_SIZE: u64 = 8 * MIB;

/// Offsets of faults within a request of 1 MiB, beside random ones: the ends of the request, of a
/// page and of 64 KiB.
const CHOSEN_OFFSETS: [u64; 8] = [0, 1, 4095, 4096, 4097, 65_535, 65_536, MIB - 1];

/// Random offsets beside those.
const RANDOM_OFFSETS: usize = 24;

/// Errnos of the faults.
pub(crate) const ERRNOS: [Errno; 5] = [
    Errno::IO,
    Errno::NOSPC,
    Errno::DQUOT,
    Errno::STALE,
    Errno::FBIG,
];

/// Limit of failures that one test prints.
const TOLD: usize = 5;

/// The failures of a test that continues after one.
#[derive(Default)]
struct Failures {
    told: Vec<String>,
    count: usize,
    checked: usize,
}

impl Failures {
    fn note(&mut self, result: Result<()>, context: impl FnOnce() -> String) {
        self.checked += 1;
        if let Err(error) = result {
            self.count += 1;
            if self.told.len() < TOLD {
                self.told.push(format!("{}: {error:#}", context()));
            }
        }
    }

    fn finish(self) -> Result<()> {
        ensure!(
            self.count == 0,
            "{} of {} replies are wrong, such as\n{}",
            self.count,
            self.checked,
            self.told.join("\n")
        );
        Ok(())
    }
}

fn bytes(rng: &mut Rng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rng.fill(&mut bytes);
    bytes
}

/// Bytes to write. They come from a pool, because making random ones takes longer than writing
/// them.
fn data(rng: &mut Rng, length: usize) -> Vec<u8> {
    static POOL: OnceLock<Vec<u8>> = OnceLock::new();
    let pool = POOL.get_or_init(|| bytes(&mut Rng::with_seed(seed()), 3 << 20));
    let start = rng.usize(0..=pool.len() - length);
    pool[start..start + length].to_vec()
}

/// A host that fails at one byte of a request. If the requester handles the count, the bytes before
/// are transferred and the next request gets the error; otherwise the request fails.
pub(crate) fn a_fault_at_a_byte_is_told(kind: Kind) -> Result<()> {
    let mut rng = Rng::with_seed(seed());
    let mut fixture = Fixture::new(HostCache::None, HostWrites::Through, 1, &[])?;
    let content = bytes(&mut rng, usize::try_from(CHOSEN_SIZE)?);
    fixture.control().put("file", &content)?;
    let file = fixture.open("file")?;
    let mut model = FileModel { content };
    let mut failures = Failures::default();
    let mut cases: Vec<(u64, u64)> = CHOSEN_OFFSETS.map(|within| (0, within)).into();
    // In the third request of a copy of 8 MiB.
    cases.push((2 * MIB, 2_572_288 - 2 * MIB));
    cases.push((7 * MIB, MIB - 1));
    cases.extend((0..RANDOM_OFFSETS).map(|_| (rng.u64(0..7 * MIB), rng.u64(0..MIB))));
    for (offset, within) in cases {
        let errno = rng.choice(ERRNOS).unwrap_or(Errno::IO);
        let faults = Faults {
            at_byte: Some((offset + within, errno)),
            ..Faults::default()
        };
        let whole = Range {
            offset,
            size: u32::try_from(MIB)?,
        };
        let rest = Range {
            offset: offset + within,
            size: u32::try_from(MIB - within)?,
        };
        for range in [whole, rest] {
            let result = one(
                &mut fixture,
                &mut model,
                &mut rng,
                file,
                kind,
                range,
                faults,
            );
            failures.note(result, || format!("{kind:?} of {range:?} with {faults:?}"));
        }
    }
    failures.finish()
}

/// Random transfers, one after another, each with other faults of the host. The model must permit
/// every reply.
pub(crate) fn random_faults_are_told(kind: Kind) -> Result<()> {
    let rounds = if is_long() { 100_000 } else { 4_000 };
    let mut rng = Rng::with_seed(seed() ^ 1);
    let mut fixture = Fixture::new(HostCache::None, HostWrites::Through, 1, &[])?;
    let content = bytes(&mut rng, usize::try_from(3 * MIB)?);
    fixture.control().put("file", &content)?;
    let file = fixture.open("file")?;
    let mut model = FileModel { content };
    let mut failures = Failures::default();
    for round in 0..rounds {
        let range = random_range(&mut rng, 3 * MIB);
        let faults = random_faults(&mut rng, range);
        let result = one(
            &mut fixture,
            &mut model,
            &mut rng,
            file,
            kind,
            range,
            faults,
        );
        failures.note(result, || {
            format!("round {round}: {kind:?} of {range:?} with {faults:?}")
        });
    }
    failures.finish()
}

fn random_range(rng: &mut Rng, end: u64) -> Range {
    let size = match rng.u8(0..4) {
        0 => rng.u32(1..=16),
        1 => rng.u32(1..=16) * 4096,
        2 => rng.u32(1..=131_072),
        _ => rng.u32(1..=1 << 20),
    };
    let offset = rng.u64(0..end - u64::from(size));
    let offset = if rng.bool() { offset & !4095 } else { offset };
    Range { offset, size }
}

fn random_faults(rng: &mut Rng, range: Range) -> Faults {
    let mut faults = Faults::default();
    let size = u64::from(range.size);
    if rng.u8(0..3) == 0 {
        // Also behind the range, where a fault must not matter.
        let byte = range.offset + rng.u64(0..size + size / 4 + 1);
        let errno = rng.choice(ERRNOS).unwrap_or(Errno::IO);
        faults.at_byte = Some((byte, errno));
    }
    if rng.u8(0..3) == 0 {
        // Enough that one request does not become thousands.
        faults.at_most = Some(rng.u64(size.div_ceil(16)..=size));
    }
    if rng.u8(0..4) == 0 {
        let errno = match rng.u8(0..4) {
            0 => Errno::INTR,
            _ => rng.choice(ERRNOS).unwrap_or(Errno::IO),
        };
        faults.one_call = Some((rng.u64(0..4), errno));
    }
    faults
}

/// Sends one transfer and checks its reply and what is in the file then.
fn one(
    fixture: &mut Fixture,
    model: &mut FileModel,
    rng: &mut Rng,
    file: NodeAndFile,
    kind: Kind,
    range: Range,
    faults: Faults,
) -> Result<()> {
    let data = match kind.is_read() {
        true => Vec::new(),
        false => data(rng, usize::try_from(range.size)?),
    };
    for rule in faults.rules(kind, "file") {
        fixture.control().set(rule);
    }
    let reply = fixture.transfer(file, kind, range, &data);
    fixture.control().clear();
    let reply = reply?;
    if kind.is_read() {
        return model.check_read(kind, range, &faults, &reply);
    }
    let found = fixture.control().content("file")?;
    let result = model.check_write(kind, range, &data, &faults, &reply, found.clone());
    // Each failure is printed once.
    model.content = found;
    result
}

/// Requests in flight at a time.
const IN_FLIGHT: usize = 8;

/// Request queues.
const QUEUES: u32 = 2;

/// Bytes of each file of the requests in flight.
const SMALL: u64 = MIB / 2;

/// Many transfers in flight on several queues, each of its own file, while faults come and go:
/// bytes read are the file's, acknowledged data is written, and only permitted counts are short.
pub(crate) fn transfers_in_flight_are_answered_right(arguments: &[&str]) -> Result<()> {
    let rounds = if is_long() { 50_000 } else { 1_500 };
    let mut rng = Rng::with_seed(seed() ^ 2);
    let mut all = vec!["--num-request-queues=2"];
    all.extend(arguments);
    let mut fixture = Fixture::new(HostCache::None, HostWrites::Through, QUEUES, &all)?;
    let mut files = Vec::new();
    for index in 0..IN_FLIGHT {
        let name = format!("file-{index}");
        let content = bytes(&mut rng, usize::try_from(SMALL)?);
        fixture.control().put(&name, &content)?;
        files.push((fixture.open(&name)?, name, FileModel { content }));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let changer = {
        let (stop, control, seed) = (Arc::clone(&stop), fixture.control().clone(), seed() ^ 3);
        thread::spawn(move || {
            let mut rng = Rng::with_seed(seed);
            while !stop.load(Ordering::Relaxed) {
                control.clear();
                for call in [Call::Read, Call::Write] {
                    let byte = rng.u64(0..SMALL);
                    let errno = rng.choice(ERRNOS).unwrap_or(Errno::IO);
                    let bytes = rng.u64(16_384..SMALL);
                    control.set(Rule::new(call, Fault::AtMost { bytes }));
                    control.set(Rule::new(call, Fault::AtByte { byte, errno }));
                }
                thread::sleep(Duration::from_micros(rng.u64(0..400)));
            }
        })
    };
    let result = in_flight(&mut fixture, &mut files, &mut rng, rounds);
    stop.store(true, Ordering::Relaxed);
    if changer.join().is_err() {
        bail!("the thread that changes the faults panicked");
    }
    result
}

type OpenFile = (NodeAndFile, String, FileModel);

fn in_flight(
    fixture: &mut Fixture,
    files: &mut [OpenFile],
    rng: &mut Rng,
    rounds: usize,
) -> Result<()> {
    let mut failures = Failures::default();
    for round in 0..rounds {
        let mut sent = Vec::new();
        for (index, (file, _, _)) in files.iter().enumerate() {
            let kind = rng.choice(Kind::ALL).unwrap_or(Kind::DirectRead);
            let range = random_range(rng, SMALL.max(2 * MIB));
            let range = Range {
                offset: range.offset % (SMALL / 2),
                size: range.size.min(u32::try_from(SMALL / 2)?),
            };
            let data = match kind.is_read() {
                true => Vec::new(),
                false => data(rng, usize::try_from(range.size)?),
            };
            let ticket = fixture.submit(1 + index % 2, *file, kind, range, &data)?;
            sent.push((kind, range, data, ticket));
        }
        for ((_, name, model), (kind, range, data, ticket)) in files.iter_mut().zip(sent) {
            let reply = fixture.finish(kind, ticket)?;
            let result = check_anyhow(fixture, name, model, (kind, range), &data, &reply);
            failures.note(result, || {
                format!("round {round}: {kind:?} of {range:?} of {name}")
            });
        }
    }
    failures.finish().context("with several requests in flight")
}

/// Checks what holds for a reply with any faults.
fn check_anyhow(
    fixture: &Fixture,
    name: &str,
    model: &mut FileModel,
    (kind, range): (Kind, Range),
    data: &[u8],
    reply: &Reply,
) -> Result<()> {
    let wanted = usize::try_from(range.size)?;
    let count = match reply {
        Reply::Read(found) => {
            let start = usize::try_from(range.offset)?;
            let expected = model.content.get(start..start + wanted);
            let expected = expected.context("the file has shrunk")?;
            ensure!(expected.starts_with(found), "the bytes are not the file's");
            Some(found.len())
        }
        Reply::Written(count) => Some(*count),
        Reply::Failed(errno) => {
            ensure!(ERRNOS.contains(errno), "{errno} is not the host's");
            None
        }
    };
    if !kind.is_read() {
        let found = fixture.control().content(name)?;
        let acknowledged = count.unwrap_or(0).min(wanted);
        let result = model.take_over(range.offset, data, acknowledged, found.clone());
        model.content = found;
        result?;
    }
    match count {
        Some(0) => bail!("the reply moves nothing and is no error"),
        Some(count) if count < wanted && !kind.may_be_short() => {
            bail!("the reply counts {count} of {wanted} bytes, and that count is not used")
        }
        _ => Ok(()),
    }
}
