use std::os::fd::FromRawFd;

use super::*;
use crate::virtio::testing::{
    Buffer::{Readable, Writable},
    DATA, Driver, Used,
};

/// Where tests let the device write.
const REPLY: u64 = DATA + 0x1_0000;

/// A device with its driver, and the server's end of the socket.
struct Scene {
    device: Fs,
    driver: Driver,
    server: Option<Arc<OwnedFd>>,
}

impl Scene {
    fn new() -> Self {
        let mut ends = [0; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK;
        // SAFETY: the kernel writes two descriptors to `ends`.
        let made = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) };
        assert_eq!(made, 0);
        // SAFETY: the kernel has just made both for us.
        let [device, server] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        let mut device = Fs::new(FsSpec { tag: "shares".to_owned(), server: device });
        let driver = Driver::new(&mut device);
        Self { device, driver, server: Some(Arc::new(server)) }
    }

    /// Makes a request available, with room for a reply of so many bytes.
    fn ask(&mut self, queue: usize, unique: u64, room: u32) -> Vec<Used> {
        let request = request(unique);
        self.driver.write(DATA, &request);
        let mut buffers = vec![Readable(DATA, request.len() as u32)];
        if room > 0 {
            buffers.push(Writable(REPLY, room));
        }
        self.driver.submit(queue, &buffers)
    }

    fn server(&self) -> Server {
        Server::new(Arc::clone(self.server.as_ref().expect("the server is there")))
    }

    /// The message that the server gets next.
    fn receive(&self) -> Option<Vec<u8>> {
        let mut server = self.server();
        let message = matches!(server.receive(), Received::Message);
        message.then(|| server.reply().expect("a header").bytes().to_vec())
    }

    /// The server says this.
    fn reply(&mut self, message: &[u8]) -> Vec<Used> {
        assert!(matches!(self.server().send(message), Sent::Whole));
        self.driver.run();
        self.driver.queues[1].take_used()
    }
}

fn request(unique: u64) -> Vec<u8> {
    let mut request = vec![7; 48];
    request[..4].copy_from_slice(&48_u32.to_le_bytes());
    request[8..16].copy_from_slice(&unique.to_le_bytes());
    request
}

fn answer(token: &[u8], body: &[u8]) -> Vec<u8> {
    let length = (16 + body.len()) as u32;
    [&length.to_le_bytes()[..], &[0; 4], token, body].concat()
}

#[test]
fn a_request_and_its_reply_pass_unchanged_but_for_a_number_on_the_way() {
    let mut scene = Scene::new();
    assert_eq!(scene.ask(1, 0xaaaa, 100), []);
    let message = scene.receive().unwrap();
    assert_eq!((&message[..8], &message[16..]), (&request(0)[..8], &request(0)[16..]));
    let used = scene.reply(&answer(&message[8..16], b"body"));
    assert_eq!(used, [Used { head: 0, written: 20 }]);
    assert_eq!(scene.driver.read(REPLY, 20), answer(&0xaaaa_u64.to_le_bytes(), b"body"));
}

#[test]
fn replies_in_another_order_find_their_requests() {
    let mut scene = Scene::new();
    scene.ask(1, 5, 100);
    scene.ask(1, 5, 100);
    let (first, second) = (scene.receive().unwrap(), scene.receive().unwrap());
    assert_ne!(first[8..16], second[8..16], "a guest may number as it likes");
    assert_eq!(scene.reply(&answer(&second[8..16], b"")), [Used { head: 2, written: 16 }]);
    assert_eq!(scene.reply(&answer(&first[8..16], b"")), [Used { head: 0, written: 16 }]);
}

#[test]
fn what_has_no_reply_is_done_when_it_is_sent() {
    let mut scene = Scene::new();
    assert_eq!(scene.ask(0, 1, 0), [Used { head: 0, written: 0 }]);
    assert!(scene.receive().is_some());
}

#[test]
fn requests_that_are_none_latch_the_queue_and_are_not_sent() {
    let short = (request(1)[..39].to_vec(), 100);
    let lying = ([&49_u32.to_le_bytes()[..], &request(1)[4..]].concat(), 100);
    let without_room = (request(1), 15);
    for (request, room) in [short, lying, without_room] {
        let mut scene = Scene::new();
        scene.driver.write(DATA, &request);
        let buffers = [Readable(DATA, request.len() as u32), Writable(REPLY, room)];
        assert_eq!(scene.driver.submit(1, &buffers), []);
        assert!(scene.driver.interrupt.is_reset_needed());
        assert!(scene.receive().is_none());
    }
    let mut scene = Scene::new();
    let long = [Readable(DATA, message::MAX_BYTES as u32 + 1), Writable(REPLY + 0x4_0000, 16)];
    assert_eq!(scene.driver.submit(1, &long), []);
    assert!(scene.driver.interrupt.is_reset_needed());
}

#[test]
fn a_server_that_breaks_the_rules_harms_only_the_request() {
    let mut scene = Scene::new();
    let before = scene.driver.snapshot();
    assert_eq!(scene.reply(b"short"), []);
    assert_eq!(scene.reply(&answer(&99_u64.to_le_bytes(), b"nobody asked")), []);
    scene.driver.assert_unchanged_except(&before, &[]);

    for (room, change) in [(32, 0_u32), (100, 1)] {
        scene.ask(1, 6, room);
        let token = scene.receive().unwrap()[8..16].to_vec();
        let before = scene.driver.snapshot();
        let mut reply = answer(&token, &[9; 40]);
        let length = 56 + change;
        reply[..4].copy_from_slice(&length.to_le_bytes());
        let used = scene.reply(&reply);
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].written, 16);
        assert_eq!(scene.driver.read(REPLY, 16), message::failure(6, libc::EIO));
        let failure = REPLY..REPLY + 16;
        scene.driver.assert_unchanged_except(&before, std::slice::from_ref(&failure));
    }
}

#[test]
fn without_a_server_requests_fail_and_none_is_left_waiting() {
    let mut scene = Scene::new();
    assert_eq!(scene.ask(1, 3, 100), []);
    scene.server = None;
    scene.driver.run();
    let lost = scene.driver.queues[1].take_used();
    assert_eq!(lost, [Used { head: 0, written: 16 }]);
    assert_eq!(scene.driver.read(REPLY, 16), message::failure(3, libc::ENOTCONN));
    let used = scene.ask(1, 4, 100);
    assert_eq!(used.len(), 1);
    assert_eq!(scene.driver.read(REPLY, 16), message::failure(4, libc::ENOTCONN));
}

#[test]
fn a_reply_from_before_a_reset_reaches_no_later_request() {
    let mut scene = Scene::new();
    scene.ask(1, 3, 100);
    let old = scene.receive().unwrap()[8..16].to_vec();
    scene.driver.reset();
    scene.driver.activate(&mut scene.device);
    scene.ask(1, 3, 100);
    assert_eq!(scene.reply(&answer(&old, b"")), []);
    let new = scene.receive().unwrap()[8..16].to_vec();
    assert_eq!(scene.reply(&answer(&new, b"")), [Used { head: 0, written: 16 }]);
}

#[test]
fn requests_wait_while_the_socket_is_full() {
    const BYTES: u32 = message::MAX_BYTES as u32;
    let mut scene = Scene::new();
    let mut sent = 0;
    let large = [&BYTES.to_le_bytes()[..], &vec![0; message::MAX_BYTES - 4]].concat();
    scene.driver.write(DATA, &large);
    let all = 8;
    for _ in 0..all {
        scene.driver.submit(1, &[Readable(DATA, BYTES), Writable(DATA + 0x8_0000, 16)]);
    }
    while scene.receive().is_some() {
        sent += 1;
        if sent == 1 {
            assert!(scene.driver.queues[1].take_used().is_empty());
        }
        scene.driver.run();
    }
    assert_eq!(sent, all);
}
