//! Tests of endpoints that are bound, released, lost or refused.

use super::*;

#[test]
fn a_released_endpoint_wakes_its_waiters_and_can_be_bound_again() {
    let kernel = FakeKernel::new();
    let server = bind(&kernel, SERVER).unwrap();
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| server.receive(LIMIT));
        std::thread::sleep(Duration::from_millis(20));
        let before = Instant::now();
        server.unbind();
        assert!(before.elapsed() < AT_ONCE, "{:?}", before.elapsed());
        let ended = receiving.join().unwrap();
        assert!(
            matches!(ended, Err(EndpointError::Unbound { .. })),
            "{ended:?}"
        );
    });
    assert!(!kernel.has(SERVER));
    let asked = server.sendrec(
        Endpoint::from_raw(2),
        &request(1),
        &mut SharedBuffers::new(),
        LIMIT,
    );
    assert!(matches!(asked, Err(EndpointError::Unbound { .. })));
    drop(bind(&kernel, SERVER).unwrap());
    assert!(!kernel.has(SERVER));
}

#[test]
fn a_client_is_told_when_its_server_goes() {
    let kernel = FakeKernel::new();
    let server = bind(&kernel, SERVER).unwrap();
    let client = kernel.client(10, Some(77));
    client.ask(SERVER, &request(5)).unwrap();
    next_request(&*server);
    drop(server);
    assert_eq!(client.answer(), Err(Code::EDVSSRCDIED));
}

#[test]
fn an_endpoint_that_the_kernel_takes_away_is_lost() {
    let kernel = FakeKernel::new();
    let server = bind(&kernel, SERVER).unwrap();
    Driver::unbind(&*kernel, DcId::FIRST, Endpoint::from_raw(SERVER)).unwrap();
    let lost = server.receive(LIMIT);
    assert!(
        matches!(lost, Err(EndpointError::Unbound { .. })),
        "{lost:?}"
    );
}

#[test]
fn a_failed_bind_returns_the_reason() {
    let kernel = FakeKernel::new();
    kernel.client(SERVER, Some(1));
    assert_eq!(code(bind(&kernel, SERVER).map(drop)), Code::EDVSSLOTUSED);
    assert_eq!(code(bind(&kernel, 221).map(drop)), Code::EDVSBADRANGE);
    let elsewhere = device(&kernel).bind(DcId::new(3).unwrap(), Endpoint::from_raw(2), "");
    assert_eq!(code(elsewhere.map(drop)), Code::EDVSBADDCID);
    kernel.state.lock().bind = Some(Code::EDVSPRIVILEGES);
    let refused = bind(&kernel, 2).map(drop).unwrap_err();
    assert!(refused.to_string().contains("EDVSPRIVILEGES"), "{refused}");
    kernel.state.lock().container.flags = 2;
    assert_eq!(code(bind(&kernel, 2).map(drop)), Code::EDVSDCNOTRUN);
}

#[test]
fn a_negative_endpoint_can_be_bound() {
    let kernel = FakeKernel::new();
    let task = bind(&kernel, -2).unwrap();
    assert!(kernel.has(-2));
    drop(task);
    // The same number as an error code, and no endpoint is bound.
    kernel.state.lock().bind = Some(Code::ENOENT);
    assert_eq!(code(bind(&kernel, -2).map(drop)), Code::ENOENT);
}

#[test]
fn a_machine_without_a_dvs_is_reported() {
    let kernel = FakeKernel::new();
    for (answer, text) in [
        (Code::EPERM, "no DVS is initialised"),
        (Code::ENOTTY, "does not support DVK's calls"),
        (Code::EDVSPRIVILEGES, "EDVSPRIVILEGES"),
    ] {
        kernel.state.lock().dvs = Err(answer);
        let error = Device::on(kernel.clone(), PATH.into()).err().unwrap();
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn the_error_names_the_program_that_can_use_the_device() {
    let error = Device::open(Path::new("/dev/no-such-device"))
        .err()
        .unwrap();
    let text = error.to_string();
    if cfg!(target_arch = "x86") {
        assert!(
            text.contains("/dev/no-such-device") && text.contains("insmod"),
            "{text}"
        );
    } else {
        assert!(text.contains("i686 build"), "{text}");
    }
}
