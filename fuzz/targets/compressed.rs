//! Streams of one or more members, some of them damaged: what is whole comes out as it went
//! in, and nothing exceeds the bounds.

#![no_main]

use std::io::Write;

use caisson_rootfs::{UnpackError, fuzzing::decompress};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};

#[derive(Arbitrary, Debug)]
struct Input {
    zstd: bool,
    members: Vec<Member>,
    flips: Vec<(u16, u8)>,
    cut: Option<u16>,
    tail: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
enum Member {
    Data(Vec<u8>),
    /// Repeated, up to a bomb.
    Run(u8, u16),
    /// Skipped by whoever reads zstd.
    Skippable(Vec<u8>),
}

impl Member {
    fn data(&self) -> Vec<u8> {
        match self {
            Member::Data(data) => data.clone(),
            Member::Run(byte, length) => vec![*byte; usize::from(*length) * 64],
            Member::Skippable(_) => Vec::new(),
        }
    }

    fn pack(&self, is_zstd: bool) -> Vec<u8> {
        if let (Member::Skippable(data), true) = (self, is_zstd) {
            let length = (data.len() as u32).to_le_bytes();
            return [b"\x50\x2a\x4d\x18", &length[..], data].concat();
        }
        if is_zstd {
            return zstd::encode_all(&self.data()[..], 1).expect("memory can be written");
        }
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&self.data()).expect("memory can be written");
        encoder.finish().expect("memory can be written")
    }
}

fuzz_target!(|input: Input| {
    let members = &input.members[..input.members.len().min(6)];
    let mut packed: Vec<u8> = members.iter().flat_map(|m| m.pack(input.zstd)).collect();
    let is_whole = input.flips.is_empty() && input.cut.is_none() && input.tail.is_empty();
    for (place, value) in input.flips.iter().take(4) {
        let length = packed.len().max(1);
        if let Some(byte) = packed.get_mut(usize::from(*place) % length) {
            *byte ^= value;
        }
    }
    if let Some(cut) = input.cut {
        packed.truncate(usize::from(cut));
    }
    packed.extend_from_slice(&input.tail);
    let result = decompress(&packed);
    if is_whole {
        let expected: Vec<u8> = members.iter().flat_map(Member::data).collect();
        match result {
            Ok(data) => assert!(data == expected, "other bytes came out"),
            Err(UnpackError::Compression(_)) => assert!(expected.len() > 64 << 10),
            Err(error) => panic!("a whole stream was refused: {error}"),
        }
    }
});
