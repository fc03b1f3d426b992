//! Writes archives: ustar headers, and PAX records in front of those that have no room for
//! a value (POSIX.1-2017, pax).

use std::io::{self, Write};

use super::{Entry, EntryKind, header::BLOCK};

/// What eleven octal digits hold.
const MAX_OCTAL: u64 = (1 << 33) - 1;
/// What seven octal digits hold.
const MAX_ID: u64 = (1 << 21) - 1;
const NAME_BYTES: usize = 100;

/// Takes entries and their data, in turns.
pub struct Writer<W> {
    to: W,
    /// Of the current entry's data.
    left: u64,
    padding: usize,
}

impl<W: Write> Writer<W> {
    pub fn new(to: W) -> Self {
        Self { to, left: 0, padding: 0 }
    }

    /// Begins an entry; a file's data follows by [`Writer::data`]. Where the entry came from
    /// (`data_offset`, `data_bytes`) and its segments are not looked at.
    pub fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        self.end_data()?;
        let records = records(entry);
        if !records.is_empty() {
            self.to.write_all(&header(&Fields {
                name: b"pax",
                kind: b'x',
                mode: 0o644,
                size: records.len() as u64,
                ..Fields::default()
            }))?;
            self.to.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        let (kind, link, size, device) = match &entry.kind {
            EntryKind::File { size, .. } => (b'0', &[][..], *size, (0, 0)),
            EntryKind::HardLink { target } => (b'1', target.as_slice(), 0, (0, 0)),
            EntryKind::Symlink { target } => (b'2', target.as_slice(), 0, (0, 0)),
            EntryKind::CharDevice { major, minor } => (b'3', &[][..], 0, (*major, *minor)),
            EntryKind::BlockDevice { major, minor } => (b'4', &[][..], 0, (*major, *minor)),
            EntryKind::Directory => (b'5', &[][..], 0, (0, 0)),
            EntryKind::Fifo => (b'6', &[][..], 0, (0, 0)),
        };
        self.to.write_all(&header(&Fields {
            name: &entry.path,
            link,
            kind,
            mode: entry.mode,
            uid: entry.uid.into(),
            gid: entry.gid.into(),
            size,
            mtime: u64::try_from(entry.mtime.seconds).unwrap_or(0),
            device,
        }))?;
        self.left = size;
        self.padding = (size.next_multiple_of(BLOCK as u64) - size) as usize;
        Ok(())
    }

    /// Of the current entry; no more than its size.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more data than announced"));
        }
        self.to.write_all(bytes)?;
        self.left -= bytes.len() as u64;
        Ok(())
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_data()?;
        self.to.write_all(&[0; 2 * BLOCK])?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn end_data(&mut self) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "less data than announced"));
        }
        self.to.write_all(&[0; BLOCK][..self.padding])?;
        self.padding = 0;
        Ok(())
    }

    fn pad(&mut self, bytes: u64) -> io::Result<()> {
        let padding = bytes.next_multiple_of(BLOCK as u64) - bytes;
        self.to.write_all(&[0; BLOCK][..padding as usize])
    }
}

/// What the ustar header of `entry` has no room for.
fn records(entry: &Entry) -> Vec<u8> {
    let mut records = Vec::new();
    let mut add = |key: &[u8], value: &[u8]| push_record(&mut records, key, value);
    if entry.path.len() > NAME_BYTES {
        add(b"path", &entry.path);
    }
    if let EntryKind::HardLink { target } | EntryKind::Symlink { target } = &entry.kind
        && target.len() > NAME_BYTES
    {
        add(b"linkpath", target);
    }
    if let EntryKind::File { size, .. } = &entry.kind
        && *size > MAX_OCTAL
    {
        add(b"size", size.to_string().as_bytes());
    }
    for (key, id) in [(b"uid", entry.uid), (b"gid", entry.gid)] {
        if u64::from(id) > MAX_ID {
            add(key, id.to_string().as_bytes());
        }
    }
    let fits = u64::try_from(entry.mtime.seconds).is_ok_and(|seconds| seconds <= MAX_OCTAL);
    if !fits || entry.mtime.nanoseconds > 0 {
        add(b"mtime", decimal(entry.mtime.seconds, entry.mtime.nanoseconds).as_bytes());
    }
    for (name, value) in &entry.xattrs {
        add(&[b"SCHILY.xattr.", &**name].concat(), value);
    }
    records
}

/// Seconds with a fraction, whose nanoseconds always count upwards, as a decimal number.
fn decimal(seconds: i64, nanoseconds: u32) -> String {
    match (seconds, nanoseconds) {
        (seconds, 0) => seconds.to_string(),
        (0.., nanoseconds) => format!("{seconds}.{nanoseconds:09}"),
        (_, nanoseconds) => {
            let whole = (seconds + 1).unsigned_abs();
            format!("-{whole}.{:09}", 1_000_000_000 - nanoseconds)
        }
    }
}

/// `length key=value\n`, whose length counts itself.
fn push_record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend(length.to_string().as_bytes());
    records.extend([b" ", key, b"=", value, b"\n"].concat());
}

#[derive(Default)]
struct Fields<'a> {
    name: &'a [u8],
    link: &'a [u8],
    kind: u8,
    mode: u16,
    uid: u64,
    gid: u64,
    size: u64,
    mtime: u64,
    device: (u32, u32),
}

/// A ustar header. What does not fit is cut: a PAX record has it.
fn header(fields: &Fields<'_>) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, &fields.name[..fields.name.len().min(NAME_BYTES)]);
    put(100, format!("{:07o}\0", fields.mode).as_bytes());
    put(108, format!("{:07o}\0", fields.uid.min(MAX_ID)).as_bytes());
    put(116, format!("{:07o}\0", fields.gid.min(MAX_ID)).as_bytes());
    put(124, format!("{:011o}\0", fields.size.min(MAX_OCTAL)).as_bytes());
    put(136, format!("{:011o}\0", fields.mtime.min(MAX_OCTAL)).as_bytes());
    put(148, b"        ");
    put(156, &[fields.kind]);
    put(157, &fields.link[..fields.link.len().min(NAME_BYTES)]);
    put(257, b"ustar\x0000");
    put(329, format!("{:07o}\0", fields.device.0).as_bytes());
    put(337, format!("{:07o}\0", fields.device.1).as_bytes());
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tar::{Reader, TarLimits, Timestamp, Xattr};

    const LIMITS: TarLimits = TarLimits { entry_bytes: 1 << 40, entries: 1000 };

    fn entry(path: Vec<u8>, kind: EntryKind) -> Entry {
        Entry {
            path,
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            xattrs: Vec::new(),
            data_offset: 0,
            data_bytes: 0,
        }
    }

    /// Written and read again, as far as an entry says something.
    fn there_and_back(entry: &Entry, data: &[u8]) -> (Entry, Vec<u8>) {
        let mut writer = Writer::new(Vec::new());
        writer.entry(entry).unwrap();
        writer.data(data).unwrap();
        let bytes = writer.finish().unwrap();
        let mut reader = Reader::new(bytes.as_slice(), LIMITS);
        let back = reader.next_entry().unwrap().unwrap();
        let mut content = vec![0; data.len() + 1];
        let mut filled = 0;
        loop {
            match reader.read_data(&mut content[filled..]).unwrap() {
                0 => break,
                count => filled += count,
            }
        }
        content.truncate(filled);
        assert!(reader.next_entry().unwrap().is_none());
        let back = Entry { data_offset: 0, data_bytes: 0, ..back };
        (back, content)
    }

    fn name() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(1_u8..=255, 1..300)
    }

    fn kind() -> impl Strategy<Value = EntryKind> {
        prop_oneof![
            name().prop_map(|target| EntryKind::HardLink { target }),
            name().prop_map(|target| EntryKind::Symlink { target }),
            (0_u32..0x1000, 0_u32..0x10_0000)
                .prop_map(|(major, minor)| EntryKind::CharDevice { major, minor }),
            (0_u32..0x1000, 0_u32..0x10_0000)
                .prop_map(|(major, minor)| EntryKind::BlockDevice { major, minor }),
            Just(EntryKind::Directory),
            Just(EntryKind::Fifo),
        ]
    }

    fn same(left: &Entry, right: &Entry) {
        assert_eq!(left.path, right.path);
        assert_eq!(left.kind, right.kind);
        assert_eq!((left.mode, left.uid, left.gid), (right.mode, right.uid, right.gid));
        assert_eq!(left.mtime, right.mtime);
        assert_eq!(left.xattrs, right.xattrs);
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_again(
            path in name(),
            kind in kind(),
            mode in 0_u16..=0o7777,
            (uid, gid) in (0..u32::MAX, 0..u32::MAX),
            (seconds, nanoseconds) in (-(1_i64 << 40)..1_i64 << 40, 0_u32..1_000_000_000),
            xattr in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300)),
        ) {
            let xattrs: Vec<Xattr> =
                xattr.into_iter().map(|value| (b"user.x"[..].into(), value.into())).collect();
            let mtime = Timestamp { seconds, nanoseconds };
            let written = Entry { mode, uid, gid, mtime, xattrs, ..entry(path, kind) };
            same(&there_and_back(&written, b"").0, &written);
        }

        #[test]
        fn data_of_any_length_is_read_again(data in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let kind = EntryKind::File { size: data.len() as u64, segments: None };
            let written = entry(b"f".to_vec(), kind);
            let (back, content) = there_and_back(&written, &data);
            same(&back, &written);
            prop_assert_eq!(content, data);
        }
    }

    #[test]
    fn a_size_beyond_the_headers_room_has_a_record() {
        let size = 1 << 35;
        let written = entry(b"big".to_vec(), EntryKind::File { size, segments: None });
        let mut writer = Writer::new(Vec::new());
        writer.entry(&written).unwrap();
        let mut reader = Reader::new(writer.to.as_slice(), LIMITS);
        assert_eq!(reader.next_entry().unwrap().unwrap().data_bytes, size);
    }

    #[test]
    fn data_must_be_what_was_announced() {
        let two = entry(b"f".to_vec(), EntryKind::File { size: 2, segments: None });
        let mut writer = Writer::new(Vec::new());
        writer.entry(&two).unwrap();
        writer.data(b"123").unwrap_err();
        writer.data(b"1").unwrap();
        writer.finish().unwrap_err();
    }
}
