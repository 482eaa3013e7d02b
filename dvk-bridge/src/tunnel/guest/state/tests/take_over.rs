//! What the next tunnel finds when one is killed.

use super::*;

/// Memory that the guest's frontend keeps from one tunnel to the next.
struct Frontend {
    file: OwnedFd,
}

impl Frontend {
    fn new() -> Self {
        let (file, _) = Inflight::create(2, 8).unwrap();
        Self { file }
    }

    fn notes(&self) -> Inflight {
        Inflight::new(self.file.try_clone().unwrap(), 0, 2, 8)
    }

    /// A tunnel that takes the guest's ring over. The frontend says that the ring is at `base`.
    fn start(&self, guest: &Guest, base: u16) -> State {
        let mut state = guest.state(LONG);
        state.rings[1].base = base;
        state.set_inflight(self.notes());
        state.take_over(1);
        state
    }

    /// The first tunnel of a guest, with the session 7.
    fn first(&self, guest: &Guest) -> State {
        let mut state = self.start(guest, 0);
        state.opened((7, 99, false), 4, 1);
        state
    }
}

#[test]
fn the_next_tunnel_goes_on_with_what_the_one_before_has_left() {
    let (mut guest, _) = Guest::new(LONG);
    let frontend = Frontend::new();
    let mut state = frontend.first(&guest);
    for _ in 0..3 {
        guest.offer(Opcode::Getattr, 16);
    }
    state.take_requests();
    let (first, first_place) = sent(&mut state).unwrap();
    let (_, second_place) = sent(&mut state).unwrap();
    state.finish(first, first_place, Outcome::Done(16));
    // It is killed.
    let next = || {
        let next = frontend.start(&guest, guest.used());
        assert_eq!(next.waiting(), 2);
        next
    };
    let mut lost = next();
    let mut resumed = next();
    // The link had asked for a session before the frontend told of the former one.
    resumed.opened((8, 5, false), 4, 1);
    assert!(sent(&mut resumed).is_none());
    assert_eq!((guest.used(), &resumed.unused), (1, &vec![8]));
    resumed.opened((7, 99, true), 4, 1);
    let (_, place) = sent(&mut resumed).unwrap();
    assert_eq!(place, second_place);
    let (_, place) = sent(&mut resumed).unwrap();
    let is_new = place.slot != first_place.slot || place.number > first_place.number;
    assert!(is_new && place.slot != second_place.slot, "{place:?}");
    // The server has freed the guest meanwhile.
    lost.opened((9, 99, false), 4, 1);
    assert_eq!(lost.session, Session::Lost);
    assert_eq!(
        (guest.used(), guest.error(1), guest.error(2)),
        (3, -107, -107)
    );
}

#[test]
fn a_request_that_came_back_after_the_frontend_had_looked_is_not_carried_out_again() {
    let (mut guest, _) = Guest::new(LONG);
    let frontend = Frontend::new();
    let mut state = frontend.first(&guest);
    guest.offer(Opcode::Getattr, 16);
    state.take_requests();
    let (job, place) = sent(&mut state).unwrap();
    let seen = guest.used();
    state.finish(job, place, Outcome::Done(16));
    let mut next = frontend.start(&guest, seen);
    next.take_requests();
    assert_eq!((next.waiting(), guest.used()), (0, 1));
    // The next request is found all the same.
    guest.offer(Opcode::Getattr, 16);
    next.take_requests();
    assert_eq!(next.waiting(), 1);
}

#[test]
fn requests_that_nobody_took_while_there_was_no_tunnel_follow_those_in_flight() {
    let (mut guest, _) = Guest::new(LONG);
    let frontend = Frontend::new();
    let mut state = frontend.first(&guest);
    for _ in 0..2 {
        guest.offer(Opcode::Getattr, 16);
    }
    state.take_requests();
    let (_, first) = sent(&mut state).unwrap();
    let (second, place) = sent(&mut state).unwrap();
    // The second comes back first, so the ring does not tell which is in flight.
    state.finish(second, place, Outcome::Done(16));
    guest.offer(Opcode::Getattr, 16);
    let mut next = frontend.start(&guest, guest.used());
    next.take_requests();
    assert_eq!((next.waiting(), next.in_flight[1]), (2, 2));
    next.opened((7, 99, true), 4, 1);
    for number in [0, 2] {
        let (job, place) = sent(&mut next).unwrap();
        assert_eq!((job.head, place == first), (number * 2, number == 0));
        next.finish(job, place, Outcome::Done(16));
    }
    assert!(sent(&mut next).is_none());
    assert_eq!((guest.used(), next.in_flight[1]), (3, 0));
}

#[test]
fn a_tunnel_that_was_killed_as_it_gave_a_request_back_leaves_it_used_once() {
    for is_used in [false, true] {
        let (mut guest, _) = Guest::new(LONG);
        let frontend = Frontend::new();
        let mut state = frontend.first(&guest);
        guest.offer(Opcode::Getattr, 16);
        guest.offer(Opcode::Getattr, 16);
        state.take_requests();
        let (job, first) = sent(&mut state).unwrap();
        frontend.notes().begin_return(1, job.head).unwrap();
        if is_used {
            let mut element = u32::from(job.head).to_le_bytes().to_vec();
            element.extend_from_slice(&16_u32.to_le_bytes());
            guest.write(USED + 4, &element);
            guest.write(USED + 2, &1_u16.to_le_bytes());
        }
        drop(state);
        // It is killed as well, before it has done anything.
        frontend.start(&guest, guest.used());
        let mut next = frontend.start(&guest, guest.used());
        next.take_requests();
        next.opened((7, 99, true), 4, 1);
        let expected = if is_used { 1 } else { 2 };
        assert_eq!(next.waiting(), expected, "used: {is_used}");
        for at in 0..expected {
            let (job, place) = sent(&mut next).unwrap();
            assert_eq!(place == first, !is_used && at == 0);
            next.finish(job, place, Outcome::Done(16));
        }
        assert_eq!(guest.used(), 2);
    }
}

#[test]
fn the_driver_is_signalled_when_a_tunnel_takes_its_ring_over() {
    let (guest, _) = Guest::new(LONG);
    let frontend = Frontend::new();
    let mut state = guest.state(LONG);
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let call = eventfd(0, flags).unwrap();
    state.rings[1].set_signal(Signal::Call, Some(call.try_clone().unwrap()));
    state.set_inflight(frontend.notes());
    state.take_over(1);
    let mut counter = [0; 8];
    assert_eq!(rustix::io::read(&call, &mut counter), Ok(8));
}

#[test]
fn numbers_of_a_slot_go_on_behind_a_request_that_was_given_up() {
    let (mut guest, _) = Guest::new(LONG);
    let frontend = Frontend::new();
    let mut state = frontend.first(&guest);
    guest.offer(Opcode::Setlkw, 16);
    state.take_requests();
    let (_, given_up) = sent(&mut state).unwrap();
    state.give_up(1);
    assert_eq!(guest.error(0), -libc::ENOTCONN);
    let mut next = frontend.start(&guest, guest.used());
    next.opened((7, 99, true), 2, 1);
    guest.offer(Opcode::Getattr, 16);
    next.take_requests();
    let (_, place) = sent(&mut next).unwrap();
    assert_eq!(
        (place.slot, place.number),
        (given_up.slot, given_up.number + 1)
    );
}

#[test]
fn a_mount_that_waits_for_a_new_session_has_no_place_in_it_yet() {
    let (mut guest, _) = Guest::new(LONG);
    let frontend = Frontend::new();
    let mut state = frontend.first(&guest);
    guest.offer(Opcode::Init, 16);
    state.take_requests();
    let (job, place) = sent(&mut state).unwrap();
    state.finish(job, place, Outcome::Lost);
    assert_eq!(state.session, Session::Closed);
    assert!(frontend.notes().used_slots().unwrap().is_empty());
    state.opened((8, 100, false), 4, 1);
    let former = Former {
        generation: 100,
        session: 8,
    };
    assert_eq!(frontend.notes().former().unwrap(), Some(former));
    let mut next = frontend.start(&guest, guest.used());
    next.opened((8, 100, true), 4, 1);
    let (_, place) = sent(&mut next).unwrap();
    assert_eq!((place.session, place.number), (8, 1));
}

#[test]
fn notes_that_begin_in_the_middle_of_a_session_tell_where_its_slots_are() {
    let (mut guest, mut state) = Guest::new(LONG);
    let frontend = Frontend::new();
    state.opened((7, 99, false), 2, 1);
    guest.offer(Opcode::Getattr, 16);
    state.take_requests();
    let (job, place) = sent(&mut state).unwrap();
    state.finish(job, place, Outcome::Done(16));
    // A relay that pauses its guest and resumes it has the tunnel make other memory.
    state.set_inflight(frontend.notes());
    let mut next = frontend.start(&guest, guest.used());
    next.opened((7, 99, true), 2, 1);
    guest.offer(Opcode::Getattr, 16);
    next.take_requests();
    let (_, after) = sent(&mut next).unwrap();
    assert_eq!((after.slot, after.number), (place.slot, place.number + 1));
}

#[test]
fn a_request_of_a_lost_session_is_not_carried_out_in_the_next_one() {
    let (mut guest, _) = Guest::new(LONG);
    let frontend = Frontend::new();
    let mut state = frontend.first(&guest);
    guest.offer(Opcode::Write, 16);
    guest.offer(Opcode::Init, 16);
    state.take_requests();
    let (write, _) = sent(&mut state).unwrap();
    let (init, place) = sent(&mut state).unwrap();
    assert_eq!(
        write.head, 0,
        "the server has the write and does not answer"
    );
    state.finish(init, place, Outcome::Lost);
    state.opened((8, 100, false), 4, 1);
    let mut next = frontend.start(&guest, guest.used());
    assert_eq!((guest.used(), guest.error(0)), (1, -libc::ENOTCONN));
    assert_eq!((next.waiting(), next.in_flight[1]), (1, 1));
    next.opened((8, 100, true), 4, 1);
    let (job, place) = sent(&mut next).unwrap();
    assert_eq!((job.head, place.session), (2, 8));
    assert!(sent(&mut next).is_none());
}

#[test]
fn a_slot_of_a_driver_that_has_begun_anew_is_free() {
    let (mut guest, _) = Guest::new(LONG);
    let frontend = Frontend::new();
    let mut state = frontend.first(&guest);
    guest.offer(Opcode::Setlkw, 16);
    state.take_requests();
    sent(&mut state).unwrap();
    let mut next = guest.state(LONG);
    next.set_inflight(frontend.notes());
    next.opened((7, 99, true), 2, 1);
    guest.write(USED + 2, &5_u16.to_le_bytes());
    next.rings[1].base = 1;
    next.take_over(1);
    guest.offer(Opcode::Getattr, 16);
    next.take_requests();
    assert!(sent(&mut next).is_some(), "the only slot is in use");
}

#[test]
fn a_guest_that_resets_its_device_does_not_get_the_session_of_the_tunnel_before() {
    let (guest, _) = Guest::new(LONG);
    let frontend = Frontend::new();
    frontend.first(&guest);
    let mut next = frontend.start(&guest, 0);
    // The link asks for that session meanwhile.
    next.reset();
    assert_eq!(next.unused, [7]);
    next.opened((7, 99, true), 4, 1);
    assert_eq!((next.session, &next.unused), (Session::Closed, &vec![7, 7]));
    next.opened((8, 5, false), 4, 1);
    assert_eq!(next.session, Session::Open(8));
}
