//! A tar archive that is right in most places.

use libfuzzer_sys::arbitrary::{self, Arbitrary};

const BLOCK: usize = 512;

#[derive(Arbitrary, Debug)]
pub struct Archive {
    entries: Vec<Entry>,
    /// Zero blocks behind the last entry.
    end_blocks: u8,
    flips: Vec<(u16, u8)>,
    cut: Option<u16>,
}

#[derive(Arbitrary, Debug)]
struct Entry {
    name: Name,
    kind: Kind,
    mode: u16,
    owner: Number,
    mtime: Number,
    pax: Vec<Record>,
    long_name: Option<Name>,
    long_link: Option<Name>,
    /// Instead of what is true.
    size: Option<Number>,
}

#[derive(Arbitrary, Debug)]
enum Kind {
    File(Vec<u8>),
    Zeros(u16),
    HardLink(Name),
    Symlink(Name),
    CharDevice(Number),
    BlockDevice(Number),
    Directory,
    Fifo,
    OldSparse { pieces: Vec<(Number, Number)>, real_size: Number, data: Vec<u8> },
    Global,
    Other(u8),
}

#[derive(Arbitrary, Debug)]
enum Number {
    Small(u8),
    Middle(u16),
    Any(u64),
    Text([u8; 12]),
}

#[derive(Arbitrary, Debug)]
enum Name {
    /// Of few words, so that names meet.
    Words(Vec<u8>),
    Long(u16),
    Raw(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum Record {
    Path(Name),
    Link(Name),
    Number(u8, Number),
    Xattr(u8, Vec<u8>),
    Sparse(u8, Number),
    SparseMap(Vec<u16>),
    Raw(Vec<u8>),
}

const WORDS: [&str; 16] = [
    "a",
    "b",
    "c",
    "etc",
    "usr",
    ".",
    "..",
    "",
    "link",
    ".wh.a",
    ".wh.",
    ".wh..wh..opq",
    ".wh..wh.x",
    "d",
    "b",
    "a",
];
const NUMBERS: [&str; 6] = ["size", "uid", "gid", "mtime", "atime", "SCHILY.dev"];
const SPARSE: [&str; 8] =
    ["major", "minor", "size", "realsize", "numblocks", "offset", "numbytes", "name"];
const XATTRS: [&str; 6] = [
    "user.a",
    "security.capability",
    "trusted.overlay.opaque",
    "user.overlay.x",
    "system.posix_acl_access",
    "odd",
];

impl Name {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Name::Words(words) => {
                let words: Vec<&str> =
                    words.iter().take(24).map(|word| WORDS[usize::from(*word) % 16]).collect();
                words.join("/").into_bytes()
            }
            Name::Long(length) => vec![b'n'; usize::from(*length) % 5000],
            Name::Raw(bytes) => bytes.clone(),
        }
    }
}

impl Number {
    fn value(&self) -> u64 {
        match self {
            Number::Small(value) => u64::from(*value),
            Number::Middle(value) => u64::from(*value),
            Number::Any(value) => *value,
            Number::Text(_) => 0,
        }
    }

    fn decimal(&self) -> Vec<u8> {
        match self {
            Number::Text(text) => text.to_vec(),
            other => other.value().to_string().into_bytes(),
        }
    }

    /// As a field of a header, in base 256 if it must be.
    fn put(&self, field: &mut [u8]) {
        let length = field.len();
        match self {
            Number::Text(text) => field.copy_from_slice(&text[..length]),
            other if other.value() < 1 << (3 * (length - 1)) => {
                let text = format!("{:0width$o}\0", other.value(), width = length - 1);
                field.copy_from_slice(text.as_bytes());
            }
            other => {
                let bytes = u128::from(other.value()).to_be_bytes();
                field.copy_from_slice(&bytes[16 - length..]);
                field[0] |= 0x80;
            }
        }
    }
}

impl Record {
    fn bytes(&self) -> Vec<u8> {
        let (key, value) = match self {
            Record::Path(name) => ("path".to_owned(), name.bytes()),
            Record::Link(name) => ("linkpath".to_owned(), name.bytes()),
            Record::Number(which, number) => {
                (NUMBERS[usize::from(*which) % 6].to_owned(), number.decimal())
            }
            Record::Xattr(which, value) => {
                (format!("SCHILY.xattr.{}", XATTRS[usize::from(*which) % 6]), value.clone())
            }
            Record::Sparse(which, number) => {
                (format!("GNU.sparse.{}", SPARSE[usize::from(*which) % 8]), number.decimal())
            }
            Record::SparseMap(numbers) => {
                let numbers: Vec<String> = numbers.iter().map(u16::to_string).collect();
                ("GNU.sparse.map".to_owned(), numbers.join(",").into_bytes())
            }
            Record::Raw(bytes) => return bytes.clone(),
        };
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        [format!("{length} {key}=").as_bytes(), &value, b"\n"].concat()
    }
}

impl Archive {
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for entry in self.entries.iter().take(64) {
            entry.put(&mut bytes);
        }
        bytes.resize(bytes.len() + usize::from(self.end_blocks % 4) * BLOCK, 0);
        for (place, value) in self.flips.iter().take(4) {
            let length = bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(usize::from(*place) % length) {
                *byte ^= value;
            }
        }
        if let Some(cut) = self.cut {
            bytes.truncate(usize::from(cut));
        }
        bytes
    }
}

impl Entry {
    fn put(&self, out: &mut Vec<u8>) {
        if !self.pax.is_empty() {
            let records = self.pax.iter().take(40).flat_map(Record::bytes).collect::<Vec<_>>();
            put_plain(out, b'x', &records);
        }
        for (kind, name) in [(b'L', &self.long_name), (b'K', &self.long_link)] {
            if let Some(name) = name {
                put_plain(out, kind, &[&name.bytes()[..], b"\0"].concat());
            }
        }
        let empty = Vec::new();
        let mut header = [0; BLOCK];
        let (kind, link, data) = match &self.kind {
            Kind::File(data) => (b'0', empty.clone(), data.clone()),
            Kind::Zeros(length) => (b'0', empty.clone(), vec![0; usize::from(*length) * 16]),
            Kind::HardLink(name) => (b'1', name.bytes(), empty.clone()),
            Kind::Symlink(name) => (b'2', name.bytes(), empty.clone()),
            Kind::CharDevice(number) | Kind::BlockDevice(number) => {
                number.put(&mut header[329..337]);
                Number::Small(1).put(&mut header[337..345]);
                let is_char = matches!(self.kind, Kind::CharDevice(_));
                (if is_char { b'3' } else { b'4' }, empty.clone(), empty.clone())
            }
            Kind::Directory => (b'5', empty.clone(), empty.clone()),
            Kind::Fifo => (b'6', empty.clone(), empty.clone()),
            Kind::OldSparse { pieces, real_size, data } => {
                for (index, (offset, length)) in pieces.iter().take(4).enumerate() {
                    let start = 386 + index * 24;
                    offset.put(&mut header[start..start + 12]);
                    length.put(&mut header[start + 12..start + 24]);
                }
                real_size.put(&mut header[483..495]);
                (b'S', empty.clone(), data.clone())
            }
            Kind::Global => (b'g', empty.clone(), empty.clone()),
            Kind::Other(kind) => (*kind, empty.clone(), empty.clone()),
        };
        let put = |header: &mut [u8; BLOCK], start: usize, bytes: &[u8]| {
            let length = bytes.len().min(100);
            header[start..start + length].copy_from_slice(&bytes[..length]);
        };
        put(&mut header, 0, &self.name.bytes());
        put(&mut header, 157, &link);
        Number::Middle(self.mode).put(&mut header[100..108]);
        self.owner.put(&mut header[108..116]);
        self.owner.put(&mut header[116..124]);
        let size = Number::Any(data.len() as u64);
        self.size.as_ref().unwrap_or(&size).put(&mut header[124..136]);
        self.mtime.put(&mut header[136..148]);
        finish(out, header, kind, matches!(self.kind, Kind::OldSparse { .. }), &data);
    }
}

fn put_plain(out: &mut Vec<u8>, kind: u8, data: &[u8]) {
    let mut header = [0; BLOCK];
    header[0] = b'h';
    Number::Middle(0o644).put(&mut header[100..108]);
    for field in [108..116, 116..124, 136..148] {
        Number::Small(0).put(&mut header[field]);
    }
    Number::Any(data.len() as u64).put(&mut header[124..136]);
    finish(out, header, kind, false, data);
}

fn finish(out: &mut Vec<u8>, mut header: [u8; BLOCK], kind: u8, is_gnu: bool, data: &[u8]) {
    header[156] = kind;
    header[257..265].copy_from_slice(if is_gnu { b"ustar  \0" } else { b"ustar\x0000" });
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}
