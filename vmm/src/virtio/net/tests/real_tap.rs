//! The device over a tap of the kernel's, in a network namespace of the test's own.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use super::*;

const HOST: [u8; 4] = [10, 77, 0, 1];
const GUEST: [u8; 4] = [10, 77, 0, 2];
const PORT: u16 = 4000;

/// `SIOCSIF…` with this member of the union set.
fn configure(socket: &UdpSocket, request: libc::Ioctl, fill: impl FnOnce(&mut libc::ifreq)) {
    let mut interface = named();
    fill(&mut interface);
    // SAFETY: the kernel reads an `ifreq`.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw const interface) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn named() -> libc::ifreq {
    // SAFETY: the all-zero bytes of this plain C structure are a value of it.
    let mut interface: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in interface.ifr_name.iter_mut().zip(b"tap0") {
        *to = *from as libc::c_char;
    }
    interface
}

fn ipv4(octets: [u8; 4]) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data[2..].iter_mut().zip(octets) {
        *to = from as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

/// A tap that is up, with the host's address; `None`, and why, where there can be none.
fn tap() -> Option<File> {
    // SAFETY: takes a number; the namespace is this thread's alone.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        eprintln!("skipped: no network namespace: {}", std::io::Error::last_os_error());
        return None;
    }
    let file = match File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(file) => file,
        Err(error) => {
            eprintln!("skipped: /dev/net/tun: {error}");
            return None;
        }
    };
    let mut interface = named();
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    interface.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads and writes an `ifreq`.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut interface) } < 0 {
        eprintln!("skipped: make a tap: {}", std::io::Error::last_os_error());
        return None;
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    configure(&socket, libc::SIOCSIFADDR, |interface| {
        interface.ifr_ifru.ifru_addr = ipv4(HOST);
    });
    configure(&socket, libc::SIOCSIFNETMASK, |interface| {
        interface.ifr_ifru.ifru_netmask = ipv4([255, 255, 255, 0]);
    });
    configure(&socket, libc::SIOCSIFFLAGS, |interface| {
        interface.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    });
    Some(file)
}

/// Runs `test` with a driver of a device over a new tap, on a thread of its own.
fn in_a_namespace(test: fn(Driver, Net)) {
    let run = move || {
        let Some(file) = tap() else { return };
        let fd = OwnedFd::from(file);
        // Through the checks that an inherited one goes through.
        // SAFETY: the number is given away here.
        let mut files = unsafe { crate::spec::Files::inherited() };
        let tap = files.tap(std::os::fd::IntoRawFd::into_raw_fd(fd)).unwrap();
        let limit = RateLimit::default();
        let mut net = Net::new(NetSpec {
            tap,
            mac: MAC,
            mtu: 1500,
            addresses: vec![Ipv4Addr::from(GUEST).into()],
            receive_limit: limit,
            transmit_limit: limit,
        })
        .unwrap();
        let driver = Driver::new(&mut net);
        test(driver, net);
    };
    std::thread::spawn(run).join().unwrap();
}

/// Gives the device a buffer and returns the next frame that `is_wanted`, with its header.
fn receive(driver: &mut Driver, is_wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    for _ in 0..100 {
        driver.queues[RX].add(&[Writable(DATA, 0x10000), Writable(DATA + 0x10000, 0x1000)]);
        driver.kick(RX);
        let mut used = driver.queues[RX].take_used();
        while used.is_empty() {
            assert_ne!(driver.run_for(10_000), 0, "no frame comes");
            used = driver.queues[RX].take_used();
        }
        let packet = driver.read(DATA, used[0].written as usize);
        if is_wanted(&packet[HEADER_BYTES..]) {
            return packet;
        }
    }
    panic!("only other frames come");
}

/// Answers the host's question for the guest's address; returns the host's own.
fn answer_arp(driver: &mut Driver) -> [u8; 6] {
    let question = receive(driver, |frame| frame[12..14] == [8, 6]);
    let host: [u8; 6] = question[HEADER_BYTES + 6..][..6].try_into().unwrap();
    let mut answer = [&host[..], &MAC.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &MAC.0, &GUEST].concat();
    answer.extend_from_slice(&[&host[..], &HOST].concat());
    send(driver, &packet(&NO_HEADER, &answer));
    host
}

/// A UDP datagram to the host, whose checksum is left to it.
fn datagram(host: [u8; 6], payload: &[u8]) -> Vec<u8> {
    let udp_bytes = 8 + payload.len() as u16;
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    ip[2..4].copy_from_slice(&(20 + udp_bytes).to_be_bytes());
    ip.extend_from_slice(&[GUEST, HOST].concat());
    let sum = |bytes: &[u8]| {
        bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>()
    };
    let fold = |mut sum: u32| {
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    };
    let ip_sum = !fold(sum(&ip));
    ip[10..12].copy_from_slice(&ip_sum.to_be_bytes());
    // Of the pseudo header; the rest is the receiver's to add.
    let pseudo = fold(sum(&[GUEST, HOST].concat()) + 17 + u32::from(udp_bytes));
    let mut udp = [PORT, PORT, udp_bytes, pseudo].map(u16::to_be_bytes).concat();
    udp.extend_from_slice(payload);
    let frame = [&host[..], &MAC.0, &[8, 0], &ip, &udp].concat();
    let mut header = NO_HEADER;
    header[..10].copy_from_slice(&[1, 0, 0, 0, 0, 0, 34, 0, 6, 0]);
    packet(&header, &frame)
}

#[test]
fn datagrams_pass_both_ways_through_the_kernel() {
    in_a_namespace(|mut driver, net| {
        let socket = UdpSocket::bind((Ipv4Addr::from(HOST), PORT)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket.send_to(b"to the guest", (Ipv4Addr::from(GUEST), PORT)).unwrap();
        let host = answer_arp(&mut driver);
        let received = receive(&mut driver, |frame| frame.ends_with(b"to the guest"));
        assert_eq!(received[HEADER_BYTES..][..6], MAC.0);
        send(&mut driver, &datagram(host, b"to the host"));
        let mut buffer = [0; 100];
        let (count, sender) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"to the host");
        assert_eq!(sender.ip(), Ipv4Addr::from(GUEST));
        let report = net.counters.report();
        assert_eq!((report.send_dropped, report.send_malformed, report.send_spoofed), (0, 0, 0));
    });
}

#[test]
fn a_queue_that_is_not_refilled_leaves_frames_to_the_kernel() {
    in_a_namespace(|mut driver, net| {
        let socket = UdpSocket::bind((Ipv4Addr::from(HOST), PORT)).unwrap();
        // A broadcast needs no answer to ARP.
        socket.set_broadcast(true).unwrap();
        for _ in 0..5000 {
            // The tap's queue is full at some point, and the kernel drops.
            let _ = socket.send_to(b"flood", (Ipv4Addr::new(10, 77, 0, 255), PORT));
        }
        driver.run();
        assert_eq!(net.counters.report(), Default::default());
        receive(&mut driver, |frame| frame.ends_with(b"flood"));
    });
}
