//! Credit-based flow control of one connection (virtio 1.2 §5.10.6.3).
//!
//! Counters are modulo 2^32. What the guest says of its buffers only limits what is sent
//! to it; memory here is bounded by what it was told of ours.

/// The receive buffer that the guest is told of, and the most that is kept for a socket
/// that does not take it.
pub(super) const BUFFER_BYTES: u32 = 128 << 10;

#[derive(Debug, Default)]
pub(super) struct Credit {
    /// Sent to the guest.
    sent: u32,
    /// What the guest says that its application has taken of it.
    guest_forwarded: u32,
    /// The size of the guest's buffer, as it says.
    guest_buffer: u32,
    /// Received from the guest.
    received: u32,
    /// Of that, passed on to the socket.
    forwarded: u32,
    /// `forwarded` in the last packet to the guest.
    told: u32,
}

/// The guest broke the rules of flow control.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CreditError {
    /// It has taken more than was sent.
    Underflow,
    /// It sent more than there was room for.
    Overrun,
}

impl Credit {
    /// Takes in the fields of a header from the guest.
    ///
    /// Linux may send two packets in the other order than it filled them in, so a count
    /// that is behind the newest is no error, only old.
    pub(super) fn update(&mut self, guest_buffer: u32, forwarded: u32) -> Result<(), CreditError> {
        if is_after(forwarded, self.sent) {
            return Err(CreditError::Underflow);
        }
        self.guest_buffer = guest_buffer;
        if is_after(forwarded, self.guest_forwarded) {
            self.guest_forwarded = forwarded;
        }
        Ok(())
    }

    /// How many bytes the guest has room for.
    pub(super) fn available(&self) -> u32 {
        // A counter may not run ahead by half its range, or its order would be lost.
        let buffer = self.guest_buffer.min(i32::MAX as u32);
        buffer.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    /// `bytes` go to the guest; at most [`Self::available`].
    pub(super) fn send(&mut self, bytes: u32) {
        debug_assert!(bytes <= self.available());
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// The guest has sent `bytes`.
    pub(super) fn receive(&mut self, bytes: u32) -> Result<(), CreditError> {
        let kept = self.received.wrapping_sub(self.forwarded);
        if kept.checked_add(bytes).is_none_or(|kept| kept > BUFFER_BYTES) {
            return Err(CreditError::Overrun);
        }
        self.received = self.received.wrapping_add(bytes);
        Ok(())
    }

    /// The socket has taken `bytes` of what was received.
    pub(super) fn forward(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
        debug_assert!(!is_after(self.forwarded, self.received));
    }

    /// Whether the guest ought to hear that there is room again.
    pub(super) fn wants_update(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= BUFFER_BYTES / 2
    }

    /// The count for the next packet to the guest.
    pub(super) fn tell(&mut self) -> u32 {
        self.told = self.forwarded;
        self.told
    }
}

/// Whether `a` is ahead of `b` by less than half the range of the counters.
fn is_after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn credit_is_spent_and_given_back() {
        let mut credit = Credit::default();
        assert_eq!(credit.available(), 0);
        credit.update(100, 0).unwrap();
        credit.send(60);
        assert_eq!(credit.available(), 40);
        credit.update(100, 60).unwrap();
        assert_eq!(credit.available(), 100);
        credit.send(100);
        credit.update(50, 60).unwrap();
        assert_eq!(credit.available(), 0, "a smaller buffer leaves no credit, not a negative one");
    }

    #[test]
    fn taking_more_than_was_sent_is_an_underflow() {
        let mut credit = Credit::default();
        credit.update(100, 0).unwrap();
        credit.send(60);
        assert_eq!(credit.update(100, 61), Err(CreditError::Underflow));
        assert_eq!(credit.update(100, 0x8000_0000), Err(CreditError::Underflow));
    }

    #[test]
    fn an_old_count_changes_nothing() {
        let mut credit = Credit::default();
        credit.update(100, 0).unwrap();
        credit.send(60);
        credit.update(100, 50).unwrap();
        credit.update(100, 20).unwrap();
        assert_eq!(credit.available(), 90);
    }

    #[test]
    fn the_largest_buffer_is_usable() {
        let mut credit = Credit::default();
        credit.update(u32::MAX, 0).unwrap();
        assert!(credit.available() > 1 << 30);
    }

    #[test]
    fn data_beyond_credit_is_an_overrun() {
        let mut credit = Credit::default();
        credit.receive(BUFFER_BYTES).unwrap();
        assert_eq!(credit.receive(1), Err(CreditError::Overrun));
        credit.forward(10);
        credit.receive(10).unwrap();
        assert_eq!(credit.receive(u32::MAX), Err(CreditError::Overrun));
    }

    #[test]
    fn an_update_is_due_when_half_the_buffer_is_free_again() {
        let mut credit = Credit::default();
        credit.receive(BUFFER_BYTES).unwrap();
        credit.forward(BUFFER_BYTES / 2 - 1);
        assert!(!credit.wants_update());
        credit.forward(1);
        assert!(credit.wants_update());
        assert_eq!(credit.tell(), BUFFER_BYTES / 2);
        assert!(!credit.wants_update());
    }

    proptest! {
        /// With a guest that keeps the rules the credit is exactly the room in its buffer,
        /// and with one that says anything it never exceeds what it claims.
        #[test]
        fn credit_follows_the_guest(
            steps in prop::collection::vec((any::<u32>(), any::<u32>(), any::<bool>()), 0..200),
            start in any::<u32>(),
        ) {
            let mut credit = Credit { sent: start, guest_forwarded: start, ..Credit::default() };
            let (mut in_flight, buffer) = (0_u64, 1_u32 << 20);
            for (amount, noise, honest) in steps {
                if honest {
                    let taken = u64::from(amount) % (in_flight + 1);
                    in_flight -= taken;
                    let forwarded = credit.sent.wrapping_sub(in_flight as u32);
                    prop_assert_eq!(credit.update(buffer, forwarded), Ok(()));
                    prop_assert_eq!(u64::from(credit.available()), u64::from(buffer) - in_flight);
                    let sent = noise % (credit.available() + 1);
                    credit.send(sent);
                    in_flight += u64::from(sent);
                } else if credit.clone_for_test().update(noise, amount).is_ok() {
                    let mut other = credit.clone_for_test();
                    other.update(noise, amount).unwrap();
                    prop_assert!(other.available() <= noise);
                }
            }
        }
    }

    impl Credit {
        fn clone_for_test(&self) -> Self {
            Self { ..*self }
        }
    }
}
