//! Writes archives for tests, malformed ones included.

/// A tar archive in the making.
#[derive(Clone, Default)]
pub struct TarBuilder {
    bytes: Vec<u8>,
}

/// The fields of one header; `name` and `link` must fit it (see [`TarBuilder::pax`]).
#[derive(Clone)]
pub struct TarEntry<'a> {
    pub kind: u8,
    pub name: &'a [u8],
    pub link: &'a [u8],
    pub mode: u64,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
    pub device: (u64, u64),
    pub data: &'a [u8],
}

impl Default for TarEntry<'_> {
    fn default() -> Self {
        TarEntry {
            kind: b'0',
            name: b"",
            link: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            device: (0, 0),
            data: b"",
        }
    }
}

impl TarBuilder {
    pub fn new() -> TarBuilder {
        TarBuilder::default()
    }

    pub fn file(self, name: &str, data: &[u8]) -> TarBuilder {
        self.entry(TarEntry { name: name.as_bytes(), data, ..TarEntry::default() })
    }

    pub fn dir(self, name: &str) -> TarBuilder {
        let name = name.as_bytes();
        self.entry(TarEntry { kind: b'5', name, mode: 0o755, ..TarEntry::default() })
    }

    pub fn symlink(self, name: &str, target: &str) -> TarBuilder {
        let (name, link) = (name.as_bytes(), target.as_bytes());
        self.entry(TarEntry { kind: b'2', name, link, mode: 0o777, ..TarEntry::default() })
    }

    pub fn hard_link(self, name: &str, target: &str) -> TarBuilder {
        let (name, link) = (name.as_bytes(), target.as_bytes());
        self.entry(TarEntry { kind: b'1', name, link, ..TarEntry::default() })
    }

    pub fn entry(mut self, entry: TarEntry<'_>) -> TarBuilder {
        let header = header(&entry, entry.data.len() as u64);
        self.bytes.extend_from_slice(&header);
        self.data(entry.data)
    }

    /// An extended header for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> TarBuilder {
        let data: Vec<u8> =
            records.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
        self.entry(TarEntry { kind: b'x', name: b"PaxHeader", data: &data, ..TarEntry::default() })
    }

    /// A block as it is, such as a changed header.
    pub fn raw(mut self, bytes: &[u8]) -> TarBuilder {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Data and its padding.
    pub fn data(mut self, data: &[u8]) -> TarBuilder {
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }

    /// Without the two blocks that end an archive.
    pub fn unfinished(self) -> Vec<u8> {
        self.bytes
    }
}

pub fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let payload = key.len() + value.len() + 3;
    let mut length = payload + 1;
    while length != payload + length.to_string().len() {
        length = payload + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// A POSIX header with a right checksum; its size may differ from the data's.
pub fn header(entry: &TarEntry<'_>, size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |start: usize, bytes: &[u8]| {
        block[start..start + bytes.len()].copy_from_slice(bytes);
    };
    put(0, entry.name);
    put(100, format!("{:07o}", entry.mode).as_bytes());
    put(108, format!("{:07o}", entry.uid).as_bytes());
    put(116, format!("{:07o}", entry.gid).as_bytes());
    put(124, format!("{size:011o}").as_bytes());
    put(136, format!("{:011o}", entry.mtime).as_bytes());
    put(156, &[entry.kind]);
    put(157, entry.link);
    put(257, b"ustar\x0000");
    put(329, format!("{:07o}", entry.device.0).as_bytes());
    put(337, format!("{:07o}", entry.device.1).as_bytes());
    with_checksum(block)
}

pub fn with_checksum(mut block: [u8; 512]) -> [u8; 512] {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}
