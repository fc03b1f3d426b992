use std::{
    fs::File,
    io::Write,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Instant,
};

use proptest::prelude::*;

use super::*;
use crate::{
    config::{Rate, RateLimit},
    virtio::testing::{
        Buffer::{Readable, Writable},
        DATA, Driver, REGION_BOUNDARY, Used,
    },
};

const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const RX: usize = 0;
const TX: usize = 1;
const NO_HEADER: [u8; HEADER_BYTES] = [0; HEADER_BYTES];

/// A device over a socket that keeps frames apart, as a tap does, and its other end.
fn device_with(change: impl FnOnce(&mut Net)) -> (Net, File) {
    let mut fds = [0; 2];
    // SAFETY: the kernel writes two descriptors.
    let made = unsafe {
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr())
    };
    assert_eq!(made, 0);
    // SAFETY: both are new, and nobody else's.
    let [tap, host] = fds.map(|fd| unsafe { File::from_raw_fd(fd) });
    let mut net = over(Tap::nonblocking(tap).unwrap());
    change(&mut net);
    (net, host)
}

fn over(tap: Tap) -> Net {
    Net {
        tap: Arc::new(tap),
        mac: MAC,
        mtu: 1500,
        addresses: Vec::new(),
        receive_limiter: None,
        transmit_limiter: None,
        counters: Arc::default(),
    }
}

fn guest() -> (Driver, File, Net) {
    let (mut net, host) = device_with(|_| ());
    (Driver::new(&mut net), host, net)
}

fn guest_without_mergeable_buffers() -> (Driver, File, Net) {
    let (mut net, host) = device_with(|_| ());
    let features = net.features() & !(1 << VIRTIO_NET_F_MRG_RXBUF);
    (Driver::with_features(&mut net, features), host, net)
}

/// A frame from the guest.
fn frame(bytes: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..bytes).map(|n| n as u8).collect();
    if bytes >= 12 {
        frame[6..12].copy_from_slice(&MAC.0);
    }
    frame
}

fn packet(header: &[u8; HEADER_BYTES], frame: &[u8]) -> Vec<u8> {
    [&header[..], frame].concat()
}

/// Sends these bytes in one chain; the device always gives it back.
fn send(driver: &mut Driver, packet: &[u8]) {
    driver.write(DATA, packet);
    let used = driver.submit(TX, &[Readable(DATA, packet.len() as u32)]);
    assert_eq!(used.len(), 1, "the chain comes back");
    assert_eq!(used[0].written, 0);
    assert!(!driver.interrupt.is_reset_needed());
}

/// What the host's end has received, frame by frame.
fn heard(host: &File) -> Vec<Vec<u8>> {
    let mut heard = Vec::new();
    let mut buffer = vec![0; MAX_PACKET_BYTES + 100];
    loop {
        // SAFETY: the kernel writes to `buffer`, which is as long as it is told.
        let count = unsafe {
            let (fd, buffer) = (host.as_raw_fd(), &mut buffer);
            libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
        };
        let Ok(count) = usize::try_from(count) else { return heard };
        heard.push(buffer[..count].to_vec());
    }
}

#[test]
fn the_config_space_has_the_address_and_the_mtu() {
    let (net, _host) = device_with(|_| ());
    let mut config = [0xff; 16];
    net.read_config(0, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0xdc, 5, 0, 0, 0, 0]);
}

#[test]
fn frames_of_the_guest_arrive_as_they_are() {
    let (mut driver, host, net) = guest();
    let sent = packet(&NO_HEADER, &frame(100));
    driver.write(DATA, &sent);
    // Cut anywhere.
    let used = driver.submit(TX, &[Readable(DATA, 5), Readable(DATA + 5, 107)]);
    assert_eq!(used, [Used { head: 0, written: 0 }]);
    assert_eq!(heard(&host), [sent]);
    let report = net.counters.report();
    assert_eq!((report.sent_frames, report.sent_bytes), (1, 100));
}

#[test]
fn frames_for_the_guest_arrive_as_they_are() {
    let (mut driver, mut host, net) = guest_without_mergeable_buffers();
    driver.queues[RX].add(&[Writable(DATA, 12), Writable(DATA + 100, 2000)]);
    driver.kick(RX);
    host.write_all(&packet(&NO_HEADER, &frame(60))).unwrap();
    driver.run();
    assert_eq!(driver.queues[RX].take_used(), [Used { head: 0, written: 72 }]);
    assert_eq!(driver.read(DATA, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(driver.read(DATA + 100, 60), frame(60));
    assert_ne!(driver.interrupt.status(), 0, "the driver is told");
    assert_eq!(net.counters.report().received_bytes, 60);
}

#[test]
fn a_large_frame_is_spread_over_mergeable_buffers() {
    let (mut driver, mut host, _net) = guest();
    for n in 0..4 {
        driver.queues[RX].add(&[Writable(DATA + n * 0x1000, 500)]);
    }
    driver.kick(RX);
    driver.interrupt.acknowledge(u32::MAX);
    host.write_all(&packet(&NO_HEADER, &frame(1200))).unwrap();
    driver.run();
    let used = driver.queues[RX].take_used();
    assert_eq!(used.iter().map(|used| used.written).collect::<Vec<_>>(), [500, 500, 212]);
    assert_eq!(driver.read(DATA + 10, 2), [3, 0], "num_buffers");
    let parts = [(DATA + 12, 488), (DATA + 0x1000, 500), (DATA + 0x2000, 212)];
    let got: Vec<u8> =
        parts.iter().flat_map(|&(start, length)| driver.read(start, length)).collect();
    assert_eq!(got, frame(1200));
    assert_ne!(driver.interrupt.status(), 0);
    // The fourth is there for the next one.
    host.write_all(&packet(&NO_HEADER, &frame(60))).unwrap();
    driver.run();
    assert_eq!(driver.queues[RX].take_used().len(), 1);
    assert_eq!(driver.read(DATA + 0x3000 + 10, 2), [1, 0]);
}

// Hostile case 21.

#[test]
fn wrong_lengths_and_headers_are_dropped_and_counted() {
    let (mut driver, host, net) = guest();
    let flagged = |at: usize, value: u8| {
        let mut header = NO_HEADER;
        header[at] = value;
        packet(&header, &frame(100))
    };
    let bad = [
        vec![0; 1],
        NO_HEADER.to_vec(),
        packet(&NO_HEADER, &frame(13)),
        packet(&NO_HEADER, &frame(1519)),
        packet(&NO_HEADER, &frame(65535)),
        packet(&NO_HEADER, &frame(MAX_FRAME_BYTES + 1)),
        flagged(0, 0xff),
        flagged(1, 3),
        flagged(1, 0x80),
        // A checksum that begins before the frame's payload does.
        flagged(0, 1),
    ];
    for packet in &bad {
        send(&mut driver, packet);
    }
    assert!(heard(&host).is_empty());
    assert_eq!(net.counters.report().send_malformed, bad.len() as u64);
    send(&mut driver, &packet(&NO_HEADER, &frame(60)));
    assert_eq!(heard(&host).len(), 1, "the queue works on");
}

#[test]
fn the_longest_frames_pass_and_longer_chains_do_not() {
    let (mut driver, host, net) = guest();
    let mut header = NO_HEADER;
    header[..10].copy_from_slice(&[1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0]);
    send(&mut driver, &packet(&header, &frame(65549)));
    assert_eq!(heard(&host)[0].len(), 65561);
    // A mebibyte, of which nothing is read.
    assert_eq!(driver.submit(TX, &[Readable(DATA, 1 << 20)]).len(), 1);
    assert_eq!(net.counters.report().send_malformed, 1);
}

#[test]
fn a_frame_across_two_memory_regions_arrives() {
    let (mut driver, host, _net) = guest();
    let sent = packet(&NO_HEADER, &frame(100));
    driver.write(REGION_BOUNDARY - 50, &sent);
    driver.submit(TX, &[Readable(REGION_BOUNDARY - 50, 112)]);
    assert_eq!(heard(&host), [sent]);
}

#[test]
fn what_was_not_negotiated_does_not_reach_the_guest() {
    let (mut net, mut host) = device_with(|_| ());
    let mut driver = Driver::with_features(&mut net, RING_FEATURES);
    driver.queues[RX].add(&[Writable(DATA, 2000)]);
    driver.queues[RX].add(&[Writable(DATA, 2000)]);
    driver.kick(RX);
    let mut header = NO_HEADER;
    header[..10].copy_from_slice(&[1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0]);
    host.write_all(&packet(&header, &frame(1500))).unwrap();
    // That a checksum was seen to be right is only left out.
    header = NO_HEADER;
    header[0] = 2;
    host.write_all(&packet(&header, &frame(60))).unwrap();
    driver.run();
    assert_eq!(driver.queues[RX].take_used().len(), 1);
    assert_eq!(driver.read(DATA, 2), [0, 0]);
    assert_eq!(net.counters.report().receive_dropped, 1);
}

// Hostile case 22.

#[test]
fn frames_of_others_are_dropped_and_counted() {
    let (mut net, host) = device_with(|net| net.addresses = vec!["10.0.0.2".parse().unwrap()]);
    let mut driver = Driver::new(&mut net);
    let mut spoofed = frame(60);
    spoofed[11] = 2;
    send(&mut driver, &packet(&NO_HEADER, &spoofed));
    let mut ipv4 = frame(60);
    ipv4[12..15].copy_from_slice(&[8, 0, 0x45]);
    ipv4[26..30].copy_from_slice(&[10, 0, 0, 1]);
    send(&mut driver, &packet(&NO_HEADER, &ipv4));
    assert!(heard(&host).is_empty());
    assert_eq!(net.counters.report().send_spoofed, 2);
    ipv4[29] = 2;
    send(&mut driver, &packet(&NO_HEADER, &ipv4));
    assert_eq!(heard(&host).len(), 1);
}

#[test]
fn a_receive_queue_that_is_never_refilled_holds_one_frame() {
    let (mut driver, mut host, net) = guest();
    // SAFETY: takes numbers and no pointer.
    unsafe { libc::fcntl(host.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    let mut taken = 0;
    for _ in 0..100_000 {
        // Until the socket, as the tap would, takes no more.
        if host.write(&packet(&NO_HEADER, &frame(1000))).is_err() {
            break;
        }
        taken += 1;
        driver.run();
    }
    assert!(taken < 100_000, "the device reads on");
    assert_eq!(net.counters.report(), Default::default());
    // A kick without buffers changes nothing; with them, everything arrives.
    driver.kick(RX);
    let mut received = 0;
    while received < taken {
        while driver.queues[RX].free_count() > 0 {
            driver.queues[RX].add(&[Writable(DATA, 1500)]);
        }
        driver.kick(RX);
        received += driver.queues[RX].take_used().len();
    }
    assert_eq!(net.counters.report().received_frames, taken as u64);
    // The tap is heard again.
    host.write_all(&packet(&NO_HEADER, &frame(60))).unwrap();
    driver.run();
    assert_eq!(driver.queues[RX].take_used().len(), 1);
}

#[test]
fn an_interface_that_is_gone_keeps_nobody_busy() {
    for frame_waits in [false, true] {
        let (mut driver, mut host, net) = guest();
        if frame_waits {
            host.write_all(&packet(&NO_HEADER, &frame(60))).unwrap();
            driver.run();
        }
        drop(host);
        // Panics if the worker never waits.
        driver.run();
        driver.queues[RX].add(&[Writable(DATA, 1500)]);
        driver.kick(RX);
        assert_eq!(driver.queues[RX].take_used().len(), usize::from(frame_waits));
        send(&mut driver, &packet(&NO_HEADER, &frame(60)));
        assert_eq!(net.counters.report().send_dropped, 1);
    }
}

#[test]
fn a_frame_that_does_not_fit_is_dropped_and_counted() {
    for mut guest in [guest(), guest_without_mergeable_buffers()] {
        let (driver, host, net) = (&mut guest.0, &mut guest.1, &guest.2);
        let before = driver.snapshot();
        driver.queues[RX].add(&[Writable(DATA, 100)]);
        driver.kick(RX);
        host.write_all(&packet(&NO_HEADER, &frame(1000))).unwrap();
        driver.run();
        assert_eq!(driver.queues[RX].take_used(), []);
        driver.assert_unchanged_except(&before, &[]);
        assert_eq!(net.counters.report().receive_dropped, 1);
        host.write_all(&packet(&NO_HEADER, &frame(60))).unwrap();
        driver.run();
        assert_eq!(driver.queues[RX].take_used().len(), 1, "the buffer is still there");
    }
}

#[test]
fn buffers_that_hold_no_header_latch_the_queue() {
    let (mut driver, mut host, _net) = guest();
    driver.queues[RX].add(&[Readable(DATA, 100)]);
    driver.kick(RX);
    host.write_all(&packet(&NO_HEADER, &frame(60))).unwrap();
    driver.run();
    assert!(driver.interrupt.is_reset_needed());
    send_still_works(&mut driver, &host);
}

fn send_still_works(driver: &mut Driver, host: &File) {
    driver.write(DATA, &packet(&NO_HEADER, &frame(60)));
    assert_eq!(driver.submit(TX, &[Readable(DATA, 72)]).len(), 1);
    assert_eq!(heard(host).len(), 1);
}

// Hostile cases 11 and 12.

#[test]
fn a_kick_storm_without_buffers_is_not_listened_to() {
    let (mut driver, _host, _net) = guest();
    for queue in [RX, TX] {
        let mut served = 0;
        for _ in 0..1000 {
            driver.queues[queue].notify.write(1).unwrap();
            served += driver.run_for(0);
        }
        assert!(served < 200, "{served} wake-ups");
    }
}

#[test]
fn nothing_moves_after_a_reset_and_everything_after_the_next_activation() {
    let (mut driver, mut host, mut net) = guest();
    // One waits in the device for buffers.
    host.write_all(&packet(&NO_HEADER, &frame(60))).unwrap();
    driver.run();
    driver.queues[RX].add(&[Writable(DATA, 2000)]);
    driver.reset();
    let before = driver.snapshot();
    host.write_all(&packet(&NO_HEADER, &frame(70))).unwrap();
    driver.run();
    driver.assert_unchanged_except(&before, &[]);
    driver.activate(&mut net);
    driver.queues[RX].add(&[Writable(DATA, 2000)]);
    driver.kick(RX);
    assert_eq!(driver.queues[RX].take_used(), [Used { head: 0, written: 82 }]);
    send_still_works(&mut driver, &host);
}

#[test]
fn each_direction_has_its_limit_and_loses_nothing() {
    let limit = |burst| {
        let operations = Some(Rate { per_second: 200, burst });
        RateLimiter::new(RateLimit { bandwidth: None, operations })
    };
    let start = Instant::now();
    let (mut net, mut host) = device_with(|net| {
        (net.receive_limiter, net.transmit_limiter) = (limit(2), limit(3));
    });
    let mut driver = Driver::new(&mut net);
    driver.write(DATA, &packet(&NO_HEADER, &frame(60)));
    for _ in 0..10 {
        host.write_all(&packet(&NO_HEADER, &frame(60))).unwrap();
        driver.queues[RX].add(&[Writable(DATA + 0x1000, 1500)]);
        driver.queues[TX].add(&[Readable(DATA, 72)]);
    }
    driver.kick(RX);
    driver.kick(TX);
    let mut received = driver.queues[RX].take_used().len();
    let mut sent = driver.queues[TX].take_used().len();
    let came_in = start.elapsed().as_secs_f64() * 200.0;
    assert!(received >= 2 && received as f64 <= 2.0 + came_in, "{received}");
    assert!(sent >= 3 && sent as f64 <= 3.0 + came_in, "{sent}");
    while received + sent < 20 {
        assert_ne!(driver.run_for(10_000), 0, "a timer wakes the worker");
        received += driver.queues[RX].take_used().len();
        sent += driver.queues[TX].take_used().len();
    }
    assert_eq!(heard(&host).len(), 10);
    let report = net.counters.report();
    assert_eq!((report.received_frames, report.receive_dropped), (10, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Mostly valid packets: what arrives is what was sent, by the guest's address alone.
    #[test]
    fn random_packets_arrive_as_they_were_or_not_at_all(
        packets in prop::collection::vec(
            (
                prop_oneof![3 => Just(NO_HEADER), 1 => any::<[u8; HEADER_BYTES]>()],
                prop::collection::vec(any::<u8>(), 0..1700),
                prop::bool::weighted(0.8),
            ),
            1..20,
        ),
    ) {
        let (mut driver, host, net) = guest();
        for (header, mut frame, own) in packets {
            if own && frame.len() >= 12 {
                frame[6..12].copy_from_slice(&MAC.0);
            }
            let sent = packet(&header, &frame);
            send(&mut driver, &sent);
            for heard in heard(&host) {
                prop_assert_eq!(&heard, &sent);
                prop_assert_eq!(&heard[18..24], &MAC.0);
            }
        }
        let report = net.counters.report();
        prop_assert_eq!(report.send_dropped, 0);
    }

    #[test]
    fn received_frames_stay_in_the_buffers(
        buffers in prop::collection::vec(12_u32..600, 1..12),
        lengths in prop::collection::vec(14_usize..1500, 1..6),
        mergeable in any::<bool>(),
    ) {
        let (mut net, mut host) = device_with(|_| ());
        let all = net.features();
        let without = all & !(1 << VIRTIO_NET_F_MRG_RXBUF);
        let mut driver = Driver::with_features(&mut net, if mergeable { all } else { without });
        let before = driver.snapshot();
        let ranges: Vec<_> = (DATA..)
            .step_by(0x1000)
            .zip(&buffers)
            .map(|(start, &bytes)| start..start + u64::from(bytes))
            .collect();
        for range in &ranges {
            driver.queues[RX].add(&[Writable(range.start, (range.end - range.start) as u32)]);
        }
        driver.kick(RX);
        for &bytes in &lengths {
            host.write_all(&packet(&NO_HEADER, &frame(bytes))).unwrap();
        }
        driver.run();
        driver.assert_unchanged_except(&before, &ranges);
        let report = net.counters.report();
        let used = driver.queues[RX].take_used();
        prop_assert_eq!(
            used.iter().map(|used| u64::from(used.written)).sum::<u64>(),
            report.received_bytes + report.received_frames * HEADER_BYTES as u64
        );
        prop_assert!(!driver.interrupt.is_reset_needed());
    }
}

mod real_tap;
