//! A keeper that takes a guest over from the keeper of an older program.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gangplank_service::signals::Signals;
use gangplank_service::{error_chain, logging};
use rustix::process::{Resource, getpid, getrlimit};

use super::holding::hold;
use super::{Assignment, FAILURE, Keeper, child_signals, name_process};
use crate::config::Config;
use crate::device::reply_pipe::ReplyPipe;
use crate::handover::channel::{Channel, Message, unexpected};
use crate::handover::receiving::{self, Offer};
use crate::sandbox::options::Mode;
use crate::sandbox::{self, Confined, ConfinedKeeper};
use crate::state::arena::Arena;
use crate::state::recovery;
use crate::sys::process;
use crate::trace;

/// Descriptors that a keeper has beside the guest's, and room for one message.
const OWN_DESCRIPTORS: u64 = 16 + 253;

/// The guest that a keeper takes over.
#[derive(Debug)]
pub struct Succession {
    /// The guest's number in the log.
    pub number: u64,
    /// The socket to the acceptor.
    pub control: Channel,
    /// The keeper that has the guest.
    pub predecessor: Channel,
    /// Whether the usual ends of the connection are logged.
    pub is_logged: bool,
    /// The channel by which the supervisor has descriptors held, if it does.
    pub holder: Option<Channel>,
}

/// Takes the guest over, serves it as [`super::run`] does, and ends the process.
///
/// The calling process must have been forked for this guest. It tells the acceptor how far it is:
/// [`Message::Prepared`], [`Message::Placed`], [`Message::Failed`], and waits for
/// [`Message::Take`] and [`Message::Go`]. If the guest has gone, it says [`Message::Gone`].
pub fn take_over(succession: Succession, confined: Confined, config: &Config) -> ! {
    logging::set_guest(succession.number);
    let Succession {
        number,
        mut control,
        predecessor,
        is_logged,
        holder,
    } = succession;
    name_process("keeper", number);
    let holder = (number, holder);
    match succeed(&mut control, predecessor, holder, confined, config) {
        Ok(Some(taken)) => {
            let keeper = Keeper {
                assignment: Assignment {
                    number,
                    connection: taken.connection,
                    control,
                    is_logged,
                    holder: None,
                },
                process: getpid(),
                confined: taken.confined,
                config,
                arena: taken.arena,
                signals: taken.signals,
                replies: taken.replies,
                descriptors: taken.descriptors,
                arrived: taken.arrived,
                is_disconnected: false,
            };
            process::exit(keeper.keep())
        }
        Ok(None) => {
            let _ = control.send(&Message::Gone, &[]);
            process::exit(0)
        }
        Err(reason) => {
            let reason = format!("guest {number}: {reason}");
            // If this fails, the acceptor has ended, and the supervisor ends this process.
            let _ = control.send(&Message::failed(&reason), &[]);
            process::exit(FAILURE)
        }
    }
}

/// What a guest has, in this process.
struct Taken {
    connection: UnixStream,
    confined: ConfinedKeeper,
    arena: Arc<Arena>,
    signals: Signals,
    replies: ReplyPipe,
    descriptors: Vec<RawFd>,
    arrived: Option<HashSet<RawFd>>,
}

/// `None` if the guest has gone.
fn succeed(
    control: &mut Channel,
    predecessor: Channel,
    (number, holder): (u64, Option<Channel>),
    confined: Confined,
    config: &Config,
) -> Result<Option<Taken>, String> {
    let failed = |error: io::Error| error.to_string();
    let Some(offer) = receiving::receive_offer(&predecessor)? else {
        return Ok(None);
    };
    let Offer {
        state,
        connection,
        place,
    } = offer;
    if config.sandbox.mode == Mode::Namespace && place.mount_namespace.is_none() {
        return Err("its keeper has no mount namespace of its own".to_owned());
    }
    let confined = confined.confine_keeper(Some(place)).map_err(in_words)?;
    control.send(&Message::Prepared, &[]).map_err(failed)?;
    wait_for(control, &Message::Take)?;

    let Some(end) = receiving::take(&predecessor).map_err(failed)? else {
        return Ok(None);
    };
    if getrlimit(Resource::Nofile)
        .current
        .is_some_and(|limit| u64::from(end.unsigned_abs()) + OWN_DESCRIPTORS > limit)
    {
        return Err(format!(
            "it has descriptors with numbers up to {end}, which are more than the limit of open \
             descriptors permits"
        ));
    }
    // What the process keeps goes out of the way of the guest's descriptors.
    let moved = |descriptor| process::move_up(descriptor, end).map_err(failed);
    let predecessor = Channel::new(moved(predecessor.into_inner())?);
    control
        .replace(|descriptor| process::move_up(descriptor, end))
        .map_err(failed)?;
    let connection = moved(connection.into())?.into();
    let state = moved(state)?;
    let holder = holder.map(|holder| moved(holder.into_inner()).map(Channel::new));
    let holder = holder.transpose()?;
    let confined = confined.move_descriptors(end).map_err(in_words)?;
    trace::move_up(end).map_err(failed)?;
    let mut descriptors = confined.descriptors().map_err(in_words)?;
    descriptors.retain(|number| *number != predecessor.as_fd().as_raw_fd());
    let arrived = receiving::receive_descriptors(&predecessor, end).map_err(failed)?;
    let signals = child_signals().map_err(failed)?;
    descriptors.push(signals.as_fd().as_raw_fd());
    let replies = ReplyPipe::new().map_err(failed)?;
    descriptors.extend(replies.ends().map(|end| end.as_raw_fd()));
    let arena = Arena::attach(state).map_err(|error| error_chain(&error).to_string())?;
    control.send(&Message::Placed, &[]).map_err(failed)?;
    wait_for(control, &Message::Go)?;
    receiving::wait_for_end(&predecessor).map_err(failed)?;
    if arrived.is_some() {
        // All processes have died, not this guest's worker alone.
        recovery::note_stop(&arena);
        arena.header().is_incomplete.store(1, Ordering::Release);
    }
    hold(number, &connection, holder, &arena, &confined);
    Ok(Some(Taken {
        connection,
        confined,
        arena,
        signals,
        replies,
        descriptors,
        arrived,
    }))
}

fn in_words(error: sandbox::Error) -> String {
    error_chain(&error).to_string()
}

/// Waits until the acceptor says this.
fn wait_for(control: &Channel, expected: &Message) -> Result<(), String> {
    let arrived = control.expect(None).map_err(|error| error.to_string())?;
    match arrived.message == *expected {
        true => Ok(()),
        false => Err(unexpected(&arrived.message).to_string()),
    }
}
