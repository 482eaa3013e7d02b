//! A frontend and its driver: the input is a sequence of vhost-user messages with descriptors, and
//! of writes into the memory that these give to the device, on a connection as a worker serves it.
//!
//! Whatever comes, the connection is served until the frontend hangs up, or it ends with an error
//! that names the frontend's fault. Then no descriptor stays open. `chains` looks at descriptor
//! chains alone, more often.
#![no_main]

mod frontend;
#[allow(dead_code, reason = "the other targets read more")]
mod input;

use std::fs;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Once};
use std::thread;
use std::time::{Duration, Instant};

use gangplank_backend::device::Options;
use gangplank_backend::device::connection::{self, Guest};
use gangplank_backend::device::reply_pipe::ReplyPipe;
use gangplank_backend::device::request::{Handled, Handler, IoMode, Request};
use gangplank_backend::state::arena::{Arena, Limits};
use gangplank_backend::state::migration::TransferError;
use libfuzzer_sys::fuzz_target;

use frontend::{Frontend, MAX_RING_SIZE};
use input::Input;

/// Bytes of a request that the handler reads, and of a reply, at most.
const MAX_LEN: usize = 4096;

/// How long the threads of a connection that has ended may take to close their descriptors.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Answers requests with their own bytes.
struct Echo;

impl Handler for Echo {
    fn handle(&self, mut request: Box<Request>, mode: IoMode) -> Handled {
        let (mut reader, mut writer, scratch) = request.parts();
        scratch.input.resize(reader.remaining().min(MAX_LEN), 0);
        let len = reader.read(&mut scratch.input);
        if mode == IoMode::NonBlocking && len % 3 == 1 {
            return Handled::WouldBlock(request);
        }
        let written = writer.write(&scratch.input);
        request.set_reply_len(written);
        Handled::Replied(request)
    }

    fn end_waits(&self) {}

    fn save_state(&self) -> Result<Vec<u8>, TransferError> {
        Ok(vec![1; MAX_LEN])
    }

    fn load_state(&self, stream: &[u8]) -> Result<(), TransferError> {
        match stream.len() % 2 {
            0 => Ok(()),
            _ => Err(TransferError::Unsupported),
        }
    }

    fn reset(&self) {}
}

fuzz_target!(|bytes: &[u8]| {
    static SIGPIPE: Once = Once::new();
    // As Rust's runtime does in a program of its own.
    // SAFETY: an ignored signal runs no handler.
    SIGPIPE.call_once(|| unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    });
    let before = open_descriptors();
    serve(&mut Input::new(bytes));
    let deadline = Instant::now() + CLOSE_TIMEOUT;
    while open_descriptors() > before {
        assert!(Instant::now() < deadline, "descriptors stay open");
        thread::sleep(Duration::from_millis(1));
    }
});

/// Number of open descriptors.
fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("listed").count()
}

fn serve(input: &mut Input<'_>) {
    let options = Options {
        max_queue_size: MAX_RING_SIZE,
        max_guest_memory: 1 << 20,
        max_memory_regions: 12,
        busy_poll: Duration::ZERO,
        ..Options::default()
    };
    let arena = Arena::new(Limits {
        inode_bytes: 0,
        descriptors: 0,
        rings: usize::try_from(options.rings()).expect("a small number"),
        ring_size: MAX_RING_SIZE.into(),
    });
    let arena = arena.expect("memory for the guest's state");
    let replies = ReplyPipe::new().expect("a pipe");
    let handler: Arc<dyn Handler> = Arc::new(Echo);
    let (near, far) = UnixStream::pair().expect("sockets");
    thread::scope(|scope| {
        let (options, arena, replies, handler) = (&options, &arena, &replies, &handler);
        let served = scope.spawn(move || {
            let guest = Guest {
                number: 1,
                arena,
                replies,
                kept: None,
            };
            // Hangs up when it returns.
            let far = far;
            connection::serve(&far, options, handler, guest)
        });
        Frontend::new(near).run(input);
        if let Err(error) = served.join().expect("a panic ends the process") {
            assert!(!error.is_own(), "{error:?}");
        }
    });
}
