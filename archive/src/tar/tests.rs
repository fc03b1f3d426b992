use proptest::prelude::*;

use super::testing::{TarBuilder, TarEntry, header, with_checksum};
use super::*;

/// All entries with their data.
fn read_all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let limits = TarLimits { entry_bytes: 64 << 30, entries: 2_000_000 };
    let mut reader = Reader::new(bytes, limits);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut data = Vec::new();
        let mut buffer = [0; 700];
        loop {
            match reader.read_data(&mut buffer)? {
                0 => break,
                count => data.extend_from_slice(&buffer[..count]),
            }
        }
        entries.push((entry, data));
    }
    Ok(entries)
}

fn fails(bytes: &[u8]) -> TarError {
    read_all(bytes).expect_err("the archive was accepted")
}

#[test]
fn every_kind_of_entry_is_read() {
    let device = |kind, name| TarEntry { kind, name, device: (8, 1), ..TarEntry::default() };
    let archive = TarBuilder::new()
        .dir("d/")
        .file("d/f", b"content")
        .hard_link("h", "d/f")
        .symlink("s", "d/f")
        .entry(device(b'3', b"c"))
        .entry(device(b'4', b"b"))
        .entry(TarEntry { kind: b'6', name: b"p", ..TarEntry::default() })
        .entry(TarEntry { kind: 0, name: b"old/", ..TarEntry::default() })
        .entry(TarEntry { kind: 0, name: b"old/f", data: b"x", ..TarEntry::default() })
        .finish();
    let entries = read_all(&archive).unwrap();
    let kinds: Vec<&EntryKind> = entries.iter().map(|(entry, _)| &entry.kind).collect();
    assert_eq!(
        kinds,
        [
            &EntryKind::Directory,
            &EntryKind::File { size: 7, segments: None },
            &EntryKind::HardLink { target: b"d/f".to_vec() },
            &EntryKind::Symlink { target: b"d/f".to_vec() },
            &EntryKind::CharDevice { major: 8, minor: 1 },
            &EntryKind::BlockDevice { major: 8, minor: 1 },
            &EntryKind::Fifo,
            &EntryKind::Directory,
            &EntryKind::File { size: 1, segments: None },
        ]
    );
    assert_eq!(entries[1].1, b"content");
    assert_eq!(entries[1].0.data_offset, 1024);
}

#[test]
fn pax_records_override_the_header() {
    let long = format!("{}/file", "d".repeat(300));
    let archive = TarBuilder::new()
        .pax(&[
            ("path", long.as_bytes()),
            ("uid", b"4000000000"),
            ("gid", b"100000"),
            ("mtime", b"1700000000.123456789"),
            ("SCHILY.xattr.user.a", b"one\0two"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02"),
        ])
        .file("short", b"data")
        .file("next", b"")
        .finish();
    let entries = read_all(&archive).unwrap();
    let (entry, data) = &entries[0];
    assert_eq!((entry.path.as_slice(), data.as_slice()), (long.as_bytes(), &b"data"[..]));
    assert_eq!((entry.uid, entry.gid), (4_000_000_000, 100_000));
    assert_eq!(entry.mtime, Timestamp { seconds: 1_700_000_000, nanoseconds: 123_456_789 });
    assert_eq!(&*entry.xattrs[0].1, b"one\0two");
    assert_eq!(&*entry.xattrs[1].0, b"security.capability");
    assert_eq!((entries[1].0.path.as_slice(), entries[1].0.uid), (&b"next"[..], 0));
}

#[test]
fn gnu_long_names_and_ustar_prefixes() {
    let long = "x".repeat(3000);
    let long_entry =
        |kind, data| TarEntry { kind, name: b"././@LongLink", data, ..TarEntry::default() };
    let terminated = [long.as_bytes(), b"\0"].concat();
    let mut prefixed = header(&TarEntry { name: b"name", ..TarEntry::default() }, 0);
    prefixed[345..349].copy_from_slice(b"a/b\0");
    let archive = TarBuilder::new()
        .entry(long_entry(b'L', &terminated))
        .entry(long_entry(b'K', &terminated))
        .symlink("short", "short")
        .raw(&with_checksum(prefixed))
        .finish();
    let entries = read_all(&archive).unwrap();
    assert_eq!(entries[0].0.path, long.as_bytes());
    assert_eq!(entries[0].0.kind, EntryKind::Symlink { target: long.into_bytes() });
    assert_eq!(entries[1].0.path, b"a/b/name");
}

#[test]
fn the_end_may_be_two_zero_blocks_one_or_none() {
    let archive = TarBuilder::new().file("f", b"x");
    for tail in [0, 512, 1024, 10240] {
        let bytes = [archive.clone().unfinished(), vec![0; tail]].concat();
        assert_eq!(read_all(&bytes).unwrap().len(), 1, "{tail}");
    }
    assert!(read_all(b"").unwrap().is_empty());
    // One zero block in the middle is damage, not an end.
    let hole = archive.clone().raw(&[0; 512]).file("g", b"").finish();
    assert!(matches!(fails(&hole), TarError::Checksum { .. }));
    // What follows the end is not looked at.
    let trailing = [archive.finish(), vec![7; 700]].concat();
    assert_eq!(read_all(&trailing).unwrap().len(), 1);
}

/// `0..4096` hole, `4096..4100` data, `8192..8195` data, hole to `10000`.
fn check_sparse(bytes: &[u8]) {
    let entries = read_all(bytes).unwrap_or_else(|error| panic!("{error}"));
    let segments = vec![Segment { offset: 4096, length: 4 }, Segment { offset: 8192, length: 3 }];
    assert_eq!(entries[0].0.path, b"sparse");
    assert_eq!(entries[0].0.kind, EntryKind::File { size: 10_000, segments: Some(segments) });
    assert_eq!(entries[0].1, b"dataend");
    assert_eq!(entries[1].0.path, b"after");
}

#[test]
fn sparse_files_in_all_four_formats() {
    // Old GNU, its map continued in a second block.
    let mut old = header(&TarEntry { kind: b'S', name: b"sparse", ..TarEntry::default() }, 7);
    old[257..265].copy_from_slice(b"ustar  \0");
    let number = |value: u64| format!("{value:011o}\0").into_bytes();
    let first = [number(4096), number(4)].concat();
    old[386..410].copy_from_slice(&first);
    // The header's other three slots are empty; an extension may still follow.
    old[482] = 1;
    old[483..495].copy_from_slice(&number(10_000));
    let mut extension = [0; 512];
    extension[..24].copy_from_slice(&[number(8192), number(3)].concat());
    let archive = TarBuilder::new().raw(&with_checksum(old)).raw(&extension).data(b"dataend");
    check_sparse(&archive.file("after", b"").finish());

    let data = |data| TarEntry { name: b"placeholder", data, ..TarEntry::default() };
    let version_0_0 = TarBuilder::new().pax(&[
        ("GNU.sparse.size", b"10000"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"4096"),
        ("GNU.sparse.numbytes", b"4"),
        ("GNU.sparse.offset", b"8192"),
        ("GNU.sparse.numbytes", b"3"),
        ("path", b"sparse"),
    ]);
    check_sparse(&version_0_0.entry(data(b"dataend")).file("after", b"").finish());
    let version_0_1 = TarBuilder::new().pax(&[
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.size", b"10000"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.map", b"4096,4,8192,3"),
    ]);
    check_sparse(&version_0_1.entry(data(b"dataend")).file("after", b"").finish());
    let mut mapped = b"2\n4096\n4\n8192\n3\n".to_vec();
    mapped.resize(512, 0);
    mapped.extend_from_slice(b"dataend");
    let version_1_0 = TarBuilder::new().pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", b"10000"),
    ]);
    check_sparse(&version_1_0.entry(data(&mapped)).file("after", b"").finish());
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    for (size, map) in [
        (&b"10"[..], &b"0,20"[..]),
        (b"100", b"0,3"),
        (b"100", b"50,4,20,3"),
        (b"100", b"18446744073709551615,7"),
        (b"100", b"0,7,"),
        (b"100", b"0,7,9"),
        (b"100", b"x,7"),
        (b"", b"0,7"),
    ] {
        let archive = TarBuilder::new()
            .pax(&[("GNU.sparse.size", size), ("GNU.sparse.map", map)])
            .file("f", b"dataend")
            .finish();
        // A trailing comma is the one slip that changes nothing.
        if map == b"0,7," {
            assert!(read_all(&archive).is_ok());
        } else {
            fails(&archive);
        }
    }
}

#[test]
fn damaged_headers_are_refused() {
    let good = header(&TarEntry { name: b"f", ..TarEntry::default() }, 0);
    let mut flipped = good;
    flipped[0] ^= 1;
    assert!(matches!(fails(&flipped), TarError::Checksum { at: 0 }));
    let with = |start: usize, bytes: &[u8]| {
        let mut block = good;
        block[start..start + bytes.len()].copy_from_slice(bytes);
        with_checksum(block).to_vec()
    };
    assert!(matches!(fails(&with(124, b"-0000000001\0")), TarError::Field { .. }));
    assert!(matches!(fails(&with(124, &[0xff; 12])), TarError::Field { .. }));
    assert!(matches!(
        fails(&with(108, b"\xff\xff\xff\xff\xff\xff\xff\xff")),
        TarError::Field { .. }
    ));
    assert!(matches!(fails(&with(156, b"V")), TarError::Kind { kind: b'V', .. }));
    assert!(matches!(fails(&with(156, b"M")), TarError::Kind { .. }));
    assert!(matches!(fails(&good[..300]), TarError::Truncated { .. }));
    let huge = with(124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff");
    assert!(matches!(fails(&huge), TarError::Limit { .. }));
}

#[test]
fn archives_that_end_early_are_refused() {
    let archive = TarBuilder::new().file("f", &[1; 2000]).unfinished();
    for length in [513, 1024, 2000, 512 + 1999] {
        assert!(matches!(fails(&archive[..length]), TarError::Truncated { .. }), "{length}");
    }
    let dangling = TarBuilder::new().pax(&[("path", b"x")]).finish();
    assert!(matches!(fails(&dangling), TarError::Truncated { .. }));
}

#[test]
fn extended_headers_are_bounded() {
    let block = header(&TarEntry { kind: b'x', name: b"p", ..TarEntry::default() }, 1 << 30);
    assert!(matches!(fails(&block), TarError::Limit { limit: MAX_META_BYTES, .. }));
    let both = TarBuilder::new()
        .entry(TarEntry { kind: b'L', name: b"l", data: b"one", ..TarEntry::default() })
        .pax(&[("path", b"two")])
        .file("three", b"")
        .finish();
    assert!(matches!(fails(&both), TarError::Extended { .. }));
}

#[test]
fn entries_are_counted() {
    let mut archive = TarBuilder::new();
    for _ in 0..11 {
        archive = archive.file("f", b"");
    }
    let archive = archive.finish();
    let limits = TarLimits { entry_bytes: 1 << 20, entries: 10 };
    let mut reader = Reader::new(&archive[..], limits);
    for _ in 0..10 {
        reader.next_entry().unwrap().unwrap();
    }
    assert!(matches!(reader.next_entry(), Err(TarError::Limit { what: "entries", .. })));
}

proptest! {
    /// Any byte changed anywhere: an error or entries, never a panic.
    #[test]
    fn mutated_archives_never_panic(
        changes in proptest::collection::vec((0_usize..6000, any::<u8>()), 1..6),
        fix_checksums in any::<bool>(),
    ) {
        let mut bytes = TarBuilder::new()
            .dir("d/")
            .pax(&[("path", b"d/long"), ("size", b"3"), ("SCHILY.xattr.user.x", b"y")])
            .file("short", b"abc")
            .pax(&[("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"4,2,9,1")])
            .file("sparse", b"abc")
            .symlink("s", "d")
            .finish();
        for (offset, value) in changes {
            let index = offset % bytes.len();
            bytes[index] = value;
        }
        if fix_checksums {
            for block in bytes.chunks_exact_mut(512) {
                let fixed = with_checksum((&*block).try_into().unwrap());
                if block[257..262] == *b"ustar" {
                    block.copy_from_slice(&fixed);
                }
            }
        }
        let _ = read_all(&bytes);
    }
}
