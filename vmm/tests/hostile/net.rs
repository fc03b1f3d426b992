//! A network device over a real tap, in the jailed vmm with its filters: what a guest sends
//! and receives, and what it had better not send.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsRawFd, FromRawFd},
    thread,
    time::{Duration, Instant},
};

use caisson_vmm::{
    config::{NetConfig, Rate, RateLimit},
    control::{ControlRequest, EndReason},
};

use crate::{
    guest::{DATA, Device, Guest, NEXT, WRITE},
    support::{Builder, has_kvm},
};

const NET: Device = Device { number: 0, id: 1 };
/// `VIRTIO_NET_F_CSUM`, `GUEST_CSUM`, `GUEST_TSO4`, `HOST_TSO4`, `MRG_RXBUF`.
const FEATURES: u64 = 1 | 1 << 1 | 1 << 7 | 1 << 11 | 1 << 15;
const DEADLINE: Duration = Duration::from_secs(60);

/// A header of zeros and a frame to everybody, of an experimental protocol.
const FRAME_BYTES: u32 = 60;
const PACKET: [u32; 7] = [0, 0, 0, 0xffff_ffff, 0x0002_ffff, 0x0100_0000, 0x5150_b588];
const SENDER_WORD: u32 = 5;
const RECEIVED: u32 = DATA + 0x1000;
/// What the host's frame ends with.
const ANSWER: u32 = 0x6f6c_6568;

const TAP: &[u8] = b"tap0";

fn named() -> libc::ifreq {
    // SAFETY: the all-zero bytes of this plain C structure are a value of it.
    let mut interface: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in interface.ifr_name.iter_mut().zip(TAP) {
        *to = *from as libc::c_char;
    }
    interface
}

/// A tap that is up in a namespace of this thread's own, and a socket on the host's side of
/// it; `None`, and why, where there can be none.
fn tap() -> Option<(File, File)> {
    let refused = |what: &str| {
        eprintln!("skipped: {what}: {}", std::io::Error::last_os_error());
        None
    };
    // SAFETY: takes a number; the namespace is this thread's alone.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        return refused("a network namespace");
    }
    // Else the host's kernel has things to say by itself. Without IPv6 it has not.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    let Ok(tap) = File::options().read(true).write(true).open("/dev/net/tun") else {
        return refused("/dev/net/tun");
    };
    let mut interface = named();
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    interface.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads and writes an `ifreq`.
    if unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut interface) } < 0 {
        return refused("a tap");
    }
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: makes a descriptor, which is nobody else's; the structures are read by the
    // kernel, and as long as it is told.
    let socket = unsafe {
        let fd =
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into());
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        interface.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        assert_eq!(libc::ioctl(fd, libc::SIOCSIFFLAGS, &raw const interface), 0);
        assert_eq!(libc::ioctl(fd, libc::SIOCGIFINDEX, &raw mut interface), 0);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = interface.ifr_ifru.ifru_ifindex;
        let length = size_of_val(&address) as libc::socklen_t;
        assert_eq!(libc::bind(fd, (&raw const address).cast(), length), 0);
        let timeout = libc::timeval { tv_sec: DEADLINE.as_secs() as i64, tv_usec: 0 };
        let (option, value) = (libc::SO_RCVTIMEO, (&raw const timeout).cast());
        let length = size_of_val(&timeout) as libc::socklen_t;
        assert_eq!(libc::setsockopt(fd, libc::SOL_SOCKET, option, value, length), 0);
        File::from_raw_fd(fd)
    };
    Some((tap, socket))
}

/// Sends three good frames, of which all but the first wait for the limit, and some that are
/// not; then waits for one.
fn program() -> Guest {
    let mut guest = Guest::default();
    let [mut receive, mut transmit] = guest.set_up(NET, FEATURES, [8, 8]);
    for (index, word) in (0..).zip(PACKET) {
        guest.store(DATA + 4 * index, word);
    }
    let mut send = |guest: &mut Guest, bytes: u32| {
        // The header in a buffer of its own.
        let chain = [(DATA.into(), 12, NEXT, 1), (u64::from(DATA) + 12, bytes, 0, 0)];
        guest.publish(&mut transmit, 0, &chain);
        guest.wait_used(&transmit);
    };
    for _ in 0..3 {
        send(&mut guest, FRAME_BYTES);
    }
    // Too short, too long for the MTU, another's, and a checksum beyond the frame.
    send(&mut guest, 13);
    send(&mut guest, 2000);
    guest.store(DATA + 4 * SENDER_WORD, 0x0200_0000);
    send(&mut guest, FRAME_BYTES);
    guest.store(DATA + 4 * SENDER_WORD, PACKET[SENDER_WORD as usize]);
    guest.store(DATA, 1);
    guest.store(DATA + 4, 0xffff_0000);
    send(&mut guest, FRAME_BYTES);

    guest.publish(&mut receive, 0, &[(RECEIVED.into(), 2048, WRITE, 0)]);
    guest.say("listening");
    guest.wait_used(&receive);
    guest.expect(RECEIVED + 8, 0xffff_0000, 0x0001_0000, "number of buffers");
    guest.expect(RECEIVED + 12 + 16, u32::MAX, ANSWER, "the host's frame");
    guest.say("done");
    guest.code(|program| program.spin());
    guest
}

#[test]
fn frames_pass_a_tap_under_jail_and_filters_and_bad_ones_do_not() {
    if !has_kvm() {
        return;
    }
    let run = || {
        let Some((tap, mut host)) = tap() else { return };
        let mut builder = Builder::new(&program().into_payload()).jailed();
        let tap = builder.inherit(tap);
        builder.config.net.push(NetConfig {
            tap,
            mac: "02:00:00:00:00:01".parse().unwrap(),
            mtu: 1500,
            addresses: Vec::new(),
            receive_limit: RateLimit::default(),
            transmit_limit: RateLimit {
                bandwidth: None,
                operations: Some(Rate { per_second: 200, burst: 1 }),
            },
        });
        let mut vmm = builder.start();
        let mut frame = [0; 2048];
        for _ in 0..3 {
            let count = host.read(&mut frame).unwrap();
            assert_eq!(count, FRAME_BYTES as usize);
            let expected: Vec<u8> =
                PACKET[3..].iter().flat_map(|word| word.to_le_bytes()).collect();
            assert_eq!(&frame[..16], expected);
        }
        let hear = |vmm: &mut crate::support::Vmm, line: &str| {
            let late = Instant::now() + DEADLINE;
            loop {
                let text = String::from_utf8_lossy(&vmm.console_bytes()).into_owned();
                if text.lines().any(|heard| heard == line) {
                    return;
                }
                let failed = text.contains("FAILED") || Instant::now() > late;
                assert!(!failed, "not {line:?} but {text:?}: {}", vmm.stderr());
                thread::sleep(Duration::from_millis(2));
            }
        };
        hear(&mut vmm, "listening");
        let mut answer = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 0x88, 0xb5, 0, 0];
        answer.extend_from_slice(&ANSWER.to_le_bytes());
        answer.resize(60, 0);
        host.write_all(&answer).unwrap();
        hear(&mut vmm, "done");
        vmm.request(ControlRequest::Stop);
        let (reason, report, _) = vmm.ended();
        assert_eq!(reason, EndReason::Stopped, "{}", vmm.stderr());
        let net = report.net[0];
        assert_eq!((net.sent_frames, net.sent_bytes, net.send_spoofed), (3, 180, 1));
        assert_eq!((net.send_malformed, net.send_dropped), (3, 0));
        assert_eq!((net.received_frames, net.receive_dropped), (1, 0));
    };
    // The namespace is a thread's.
    thread::spawn(run).join().unwrap();
}
