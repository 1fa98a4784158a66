//! Every frame encoded and decoded; every truncation; arbitrary bytes.

use proptest::prelude::*;

use super::*;

fn encoded(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

fn full_open() -> Open {
    Open {
        source: "[2001:db8::7]:40000".parse().unwrap(),
        original_destination: "10.96.0.10:443".parse().unwrap(),
        destination_port: NonZeroU16::new(8443),
        acknowledges_drops: true,
    }
}

/// The required fields, and nothing else.
fn least_open() -> Open {
    Open { destination_port: None, acknowledges_drops: false, ..full_open() }
}

fn samples() -> Vec<Frame<'static>> {
    let refused = |text: &str| Refused { reason: Refusal::PolicyDenied, text: text.to_owned() };
    vec![
        Frame::Open(full_open()),
        Frame::Open(least_open()),
        Frame::Accepted(Accepted::default()),
        Frame::Accepted(Accepted {
            seen_source: Some("[2001:db8::7]:61000".parse().unwrap()),
            acknowledges_drops: true,
            keeps_session: true,
        }),
        Frame::Refused(refused("")),
        Frame::Refused(refused("shop/allow-cart: no rule for port 8080")),
        Frame::Data(b"x"),
        Frame::Fin,
        Frame::Reset(ResetCode::ApplicationReset),
        Frame::Reset(ResetCode::Newer(999)),
        Frame::Ignorable(0x80),
    ]
}

#[test]
fn every_frame_comes_back_as_it_went() {
    for frame in samples() {
        assert_eq!(Frame::decode(&encoded(&frame)), Ok(frame.clone()), "{frame:?}");
    }
}

/// The bytes in docs/wire.md: a change to them changes the protocol.
#[test]
fn the_bytes_are_those_of_the_specification() {
    let open = Open {
        source: "10.1.2.3:40000".parse().unwrap(),
        original_destination: "10.96.0.7:80".parse().unwrap(),
        ..least_open()
    };
    let expected = [
        0x01, 0x01, // OPEN, version 1
        0x01, 0x00, 0x06, 10, 1, 2, 3, 0x9c, 0x40, // source
        0x02, 0x00, 0x06, 10, 96, 0, 7, 0x00, 0x50, // original destination
    ];
    assert_eq!(encoded(&Frame::Open(open.clone())), expected);
    let by_the_agents_port = Open { destination_port: NonZeroU16::new(8080), ..open };
    let expected = [&expected[..], &[0x03, 0x00, 0x02, 0x1f, 0x90]].concat();
    assert_eq!(encoded(&Frame::Open(by_the_agents_port)), expected);
    assert_eq!(encoded(&Frame::Accepted(Accepted::default())), [0x02]);
    let accepted =
        Accepted { acknowledges_drops: true, keeps_session: true, ..Accepted::default() };
    assert_eq!(encoded(&Frame::Accepted(accepted)), [0x02, 0x87, 0x00, 0x00, 0x88, 0x00, 0x00]);
    let refused = Refused { reason: Refusal::Draining, text: "bye".to_owned() };
    assert_eq!(
        encoded(&Frame::Refused(refused)),
        [0x03, 0x00, 0x08, 0x85, 0x00, 0x03, b'b', b'y', b'e']
    );
    assert_eq!(encoded(&Frame::Data(b"hi")), [0x04, b'h', b'i']);
    assert_eq!(encoded(&Frame::Fin), [0x05]);
    assert_eq!(encoded(&Frame::Reset(ResetCode::AgentStopping)), [0x06, 0x00, 0x04]);
}

/// Cut anywhere, a frame is either refused or (between two optional fields) a shorter valid one.
#[test]
fn no_truncation_is_mistaken() {
    for frame in samples() {
        let bytes = encoded(&frame);
        for end in 0..bytes.len() {
            if let Ok(shorter) = Frame::decode(&bytes[..end]) {
                assert_ne!(shorter, frame);
                assert_eq!(encoded(&shorter), &bytes[..end], "{frame:?} cut at {end}");
            }
        }
    }
}

#[test]
fn each_fault_has_its_name() {
    use FrameError as E;
    let open = |fields: &[u8]| [&[kind::OPEN, VERSION][..], fields].concat();
    let addresses = &encoded(&Frame::Open(least_open()))[2..];
    let with = |field: &[u8]| open(&[addresses, field].concat());
    let long_text = [&[kind::REFUSED, 0, 1, 0x85, 0x02, 0x01][..], &[b'a'; 513]].concat();
    for (bytes, error) in [
        (vec![], E::Empty),
        (vec![kind::DATA; 16_385], E::Oversized),
        (vec![kind::DATA], E::EmptyData),
        (vec![0x00], E::UnknownFrame(0)),
        (vec![0x07, 1, 2], E::UnknownFrame(7)),
        (vec![0x7f], E::UnknownFrame(0x7f)),
        (vec![kind::FIN, 0], E::TrailingBytes),
        (vec![kind::RESET], E::Truncated),
        (vec![kind::RESET, 0], E::Truncated),
        (vec![kind::RESET, 0, 1, 2], E::TrailingBytes),
        (vec![kind::REFUSED, 0], E::Truncated),
        (vec![kind::OPEN], E::Truncated),
        (vec![kind::OPEN, 2], E::Version(2)),
        (open(&[]), E::MissingField(0x01)),
        (open(&[0x01, 0, 6, 1, 2, 3, 4, 0, 80]), E::MissingField(0x02)),
        (open(&[0x01, 0, 7, 1, 2, 3, 4, 0, 80]), E::Truncated),
        (open(&[0x01, 0, 5, 1, 2, 3, 4, 0]), E::InvalidField(0x01)),
        (open(&[0x01, 0]), E::Truncated),
        (with(&addresses[..21]), E::RepeatedField(0x01)),
        (with(&[0x03, 0, 0]), E::InvalidField(0x03)),
        (with(&[0x03, 0, 2, 0, 0]), E::InvalidField(0x03)),
        (with(&[0x03, 0, 3, 0, 0, 80]), E::InvalidField(0x03)),
        (with(&[0x04, 0, 0]), E::UnknownField(0x04)),
        (with(&[0x87, 0, 1, 1]), E::InvalidField(0x87)),
        (vec![kind::REFUSED, 0, 1, 0x85, 0, 1, 0xff], E::InvalidField(0x85)),
        (vec![kind::REFUSED, 0, 1, 0x85, 0, 1, 0x1b], E::InvalidField(0x85)),
        (vec![kind::ACCEPTED, 0x01, 0, 0], E::UnknownField(0x01)),
        (long_text, E::InvalidField(0x85)),
    ] {
        assert_eq!(Frame::decode(&bytes), Err(error), "{bytes:02x?}");
    }
    assert_eq!(Frame::decode(&with(&[0xff, 0, 2, 1, 2])), Frame::decode(&open(addresses)));
}

#[test]
fn texts_that_are_too_long_or_dangerous_are_cut_when_written() {
    let text = format!("\x1b[2J{}é", "ü".repeat(400));
    let frame = Frame::Refused(Refused { reason: Refusal::PolicyDenied, text });
    let Ok(Frame::Refused(back)) = Frame::decode(&encoded(&frame)) else { panic!("not decoded") };
    assert!(back.text.len() <= MAX_TEXT_BYTES && back.text.len() > MAX_TEXT_BYTES - 4);
    assert!(back.text.starts_with("[2Jü"));
}

#[test]
fn a_mapped_address_is_an_ipv4_address() {
    let open = Open { source: "[::ffff:10.0.0.1]:7".parse().unwrap(), ..full_open() };
    let Ok(Frame::Open(back)) = Frame::decode(&encoded(&Frame::Open(open))) else { panic!() };
    assert_eq!(back.source, "10.0.0.1:7".parse().unwrap());
}

fn address() -> impl Strategy<Value = SocketAddr> {
    any::<(IpAddr, u16)>().prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
}

proptest! {
    #[test]
    fn any_bytes_decode_or_fail_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(frame) = Frame::decode(&bytes) {
            let again = encoded(&frame);
            prop_assert_eq!(Frame::decode(&again), Ok(frame));
        }
    }

    /// Random bytes seldom pass the first check, so this damages a valid frame.
    #[test]
    fn a_damaged_frame_decodes_or_fails_without_panic(
        which in 0..11usize,
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
        extra in proptest::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut bytes = encoded(&samples()[which]);
        let at = at.index(bytes.len());
        bytes[at] = value;
        bytes.splice(at..at, extra);
        if let Ok(frame) = Frame::decode(&bytes) {
            let again = encoded(&frame);
            prop_assert_eq!(Frame::decode(&again), Ok(frame));
        }
    }

    #[test]
    fn any_open_comes_back(
        source in address(),
        original_destination in address(),
        destination_port in any::<Option<NonZeroU16>>(),
        acknowledges_drops in any::<bool>(),
    ) {
        let frame = Frame::Open(Open {
            source,
            original_destination,
            destination_port,
            acknowledges_drops,
        });
        let bytes = encoded(&frame);
        prop_assert_eq!(Frame::decode(&bytes), Ok(frame));
    }

    #[test]
    fn any_refusal_comes_back(code in any::<u16>(), text in "\\PC{0,170}") {
        let frame = Frame::Refused(Refused { reason: Refusal::from_wire(code), text });
        let bytes = encoded(&frame);
        prop_assert_eq!(Frame::decode(&bytes), Ok(frame));
    }
}
