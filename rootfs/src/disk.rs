//! Writable disks: sparse ext4 images that appear in milliseconds.
//!
//! `mke2fs` formats a size once, in memory; the few blocks that are not zero become a
//! template. A new disk is a hole of the right size with those blocks written into it, on
//! any file system and without scanning for holes.
//!
//! A template is the header, then per extent its offset and length, then the extents'
//! data; all numbers are little-endian u64. It is renamed into place when it is complete,
//! and checked before it is used.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use caisson_failpoints::{hit, steps};
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use thiserror::Error;

use crate::store::{Store, StoreError};

/// What a container gets unless told otherwise; it only costs what is written.
pub const DEFAULT_DISK_BYTES: u64 = 10 << 30;
/// Below this ext4 has no room for a journal.
pub const MIN_DISK_BYTES: u64 = 16 << 20;
pub const MAX_DISK_BYTES: u64 = 8 << 40;

const SIZE_UNIT: u64 = 4 << 20;
const MAGIC: &[u8; 8] = b"CAISEXT4";
/// Part of the template's name: a new layout gets new templates.
const VERSION: u32 = 1;
const SMALL_DISK_BYTES: u64 = 256 << 20;
/// Debian's defaults for ext4, spelled out: the host's mke2fs.conf has no say. Without
/// resize_inode, whose pointers would be megabytes of each disk; it can still grow (meta_bg).
const FEATURES: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,\
                        flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,\
                        metadata_csum";
/// The disks never meet in one kernel that could confuse them.
const UUID: &str = "c3a5b11e-0c0a-4d15-8f00-ca15500d15c0";
/// What a template of the largest size stays far below.
const MAX_EXTENTS: u64 = 1 << 20;
const MAX_TEMPLATE_BYTES: u64 = 1 << 30;

#[derive(Debug, Error)]
pub enum DiskError {
    #[error("a disk of {bytes} bytes is out of range ({MIN_DISK_BYTES} to {MAX_DISK_BYTES})")]
    Size { bytes: u64 },

    #[error("mke2fs is needed to format writable disks and was not found; install e2fsprogs")]
    NoMke2fs,

    #[error("cannot run mke2fs")]
    RunMke2fs { source: io::Error },

    #[error("mke2fs failed ({status}): {}", .stderr.escape_debug())]
    Mke2fs { status: std::process::ExitStatus, stderr: String },

    #[error("cannot {action} while formatting a disk template")]
    Format { action: &'static str, source: io::Error },

    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Creates `path` as an ext4 file system of `size_bytes` (rounded up to 4 MiB) that
    /// holds the empty directories `upper` and `work`. The file must not exist; after an
    /// error it does not.
    pub fn create_writable_disk(&self, path: &Path, size_bytes: u64) -> Result<(), DiskError> {
        if !(MIN_DISK_BYTES..=MAX_DISK_BYTES).contains(&size_bytes) {
            return Err(DiskError::Size { bytes: size_bytes });
        }
        let size_bytes = size_bytes.next_multiple_of(SIZE_UNIT);
        let template = self.template(size_bytes)?;
        let disk = hit(&steps::STORE_DISK_CREATE)
            .and_then(|()| OpenOptions::new().write(true).create_new(true).mode(0o600).open(path))
            .map_err(StoreError::io("create the disk", path))?;
        let written = hit(&steps::STORE_DISK_WRITE)
            .and_then(|()| template.write_to(&disk))
            .map_err(StoreError::io("write the disk", path));
        if written.is_err() {
            // The error that matters is the first one.
            let _ = fs::remove_file(path);
        }
        Ok(written?)
    }

    fn template(&self, size_bytes: u64) -> Result<Template, DiskError> {
        let path = self.templates_dir().join(format!("ext4-v{VERSION}-{size_bytes}"));
        match File::open(&path) {
            Ok(file) => match Template::read(file, size_bytes) {
                Ok(template) => return Ok(template),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a damaged disk template is made again");
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(StoreError::io("open the template", &path)(error).into()),
        }
        let template = Template::format(size_bytes)?;
        let _adding = self.lock_to_add()?;
        template.save(&path)?;
        Ok(template)
    }
}

/// Whether a file of the templates' directory is one that this version makes.
pub(crate) fn is_current_template(name: &str) -> bool {
    name.starts_with(&format!("ext4-v{VERSION}-"))
}

/// The blocks of a fresh file system that are not zero.
#[derive(Debug, PartialEq, Eq)]
struct Template {
    size_bytes: u64,
    extents: Vec<(u64, Vec<u8>)>,
}

impl Template {
    fn format(size_bytes: u64) -> Result<Template, DiskError> {
        let failed = |action| move |source| DiskError::Format { action, source };
        let memory = memfd_create("caisson-ext4", MemfdFlags::CLOEXEC)
            .map(File::from)
            .map_err(|error| failed("create a memory file")(error.into()))?;
        memory.set_len(size_bytes).map_err(failed("size a memory file"))?;
        let contents = tempfile::tempdir().map_err(failed("create a temporary directory"))?;
        for directory in ["upper", "work"] {
            fs::create_dir(contents.path().join(directory))
                .map_err(failed("create a directory"))?;
        }
        run_mke2fs(&memory, size_bytes, contents.path())?;
        let extents = data_extents(&memory, size_bytes).map_err(failed("read the file system"))?;
        Ok(Template { size_bytes, extents })
    }

    fn write_to(&self, disk: &File) -> io::Result<()> {
        disk.set_len(self.size_bytes)?;
        for (offset, data) in &self.extents {
            disk.write_all_at(data, *offset)?;
        }
        Ok(())
    }

    fn save(&self, path: &Path) -> Result<(), StoreError> {
        let directory = path.parent().expect("a template lies in a directory");
        let failed = || StoreError::io("write the template", path);
        let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed())?;
        let mut head = MAGIC.to_vec();
        head.extend(self.size_bytes.to_le_bytes());
        head.extend((self.extents.len() as u64).to_le_bytes());
        for (offset, data) in &self.extents {
            head.extend(offset.to_le_bytes());
            head.extend((data.len() as u64).to_le_bytes());
        }
        file.write_all(&head).map_err(failed())?;
        for (_, data) in &self.extents {
            file.write_all(data).map_err(failed())?;
        }
        file.as_file().sync_all().map_err(failed())?;
        file.persist(path).map_err(|error| failed()(error.error))?;
        Ok(())
    }

    fn read(file: File, size_bytes: u64) -> io::Result<Template> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
        let length = file.metadata()?.len();
        if length > MAX_TEMPLATE_BYTES {
            return Err(invalid("too long"));
        }
        let mut reader = io::BufReader::new(file);
        let mut magic = [0; 8];
        reader.read_exact(&mut magic)?;
        if magic != *MAGIC || read_u64(&mut reader)? != size_bytes {
            return Err(invalid("another header"));
        }
        let count = read_u64(&mut reader)?;
        if count > MAX_EXTENTS {
            return Err(invalid("too many extents"));
        }
        let mut places = Vec::new();
        for _ in 0..count {
            let (offset, len) = (read_u64(&mut reader)?, read_u64(&mut reader)?);
            let end = offset.checked_add(len).ok_or_else(|| invalid("an extent overflows"))?;
            if end > size_bytes || len > length {
                return Err(invalid("an extent lies outside"));
            }
            places.push((offset, len));
        }
        let mut extents = Vec::with_capacity(places.len());
        for (offset, len) in places {
            let mut data = Vec::new();
            if reader.by_ref().take(len).read_to_end(&mut data)? as u64 != len {
                return Err(invalid("truncated"));
            }
            extents.push((offset, data));
        }
        if reader.read(&mut [0])? != 0 {
            return Err(invalid("data after the end"));
        }
        Ok(Template { size_bytes, extents })
    }
}

fn read_u64(reader: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    reader.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Formats `target` and copies `contents` into its root.
fn run_mke2fs(target: &File, size_bytes: u64, contents: &Path) -> Result<(), DiskError> {
    // The child's own table of descriptors: the memory file keeps its number there because
    // it is passed on as standard input.
    let stdin: OwnedFd = target
        .try_clone()
        .map_err(|source| DiskError::Format { action: "pass the memory file", source })?
        .into();
    let journal_mib = if size_bytes < SMALL_DISK_BYTES { 4 } else { 16 };
    let output = Command::new(mke2fs())
        .args(["-q", "-F", "-b", "4096", "-m", "0", "-I", "256", "-i", "16384"])
        .args(["-O", FEATURES, "-J", &format!("size={journal_mib}"), "-e", "remount-ro"])
        // The file is one big hole: nothing has to be zeroed, now or after mounting.
        .args([
            "-E",
            &format!("nodiscard,assume_storage_prezeroed=1,root_owner=0:0,hash_seed={UUID}"),
        ])
        .args(["-U", UUID])
        .arg("-d")
        .arg(contents)
        .arg("/proc/self/fd/0")
        .env_clear()
        .env("MKE2FS_CONFIG", "/dev/null")
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => DiskError::NoMke2fs,
            _ => DiskError::RunMke2fs { source },
        })?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect();
    Err(DiskError::Mke2fs { status: output.status, stderr })
}

/// `mke2fs` lives in an sbin directory that ordinary users do not search.
fn mke2fs() -> PathBuf {
    ["/usr/sbin/mke2fs", "/sbin/mke2fs"]
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .unwrap_or_else(|| "mke2fs".into())
}

/// The stretches that hold data, in blocks of 4096 bytes without the zero ones.
fn data_extents(file: &File, size_bytes: u64) -> io::Result<Vec<(u64, Vec<u8>)>> {
    const BLOCK: usize = 4096;
    let mut extents: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut position = 0;
    while let Some(start) = seek_or_end(file, SeekFrom::Data(position))? {
        let end = seek_or_end(file, SeekFrom::Hole(start))?.unwrap_or(size_bytes);
        let mut offset = start - start % BLOCK as u64;
        while offset < end {
            let mut block = [0; BLOCK];
            file.read_exact_at(&mut block, offset)?;
            if block.iter().any(|&byte| byte != 0) {
                match extents.last_mut() {
                    Some((at, data)) if *at + data.len() as u64 == offset => {
                        data.extend_from_slice(&block);
                    }
                    _ => extents.push((offset, block.to_vec())),
                }
            }
            offset += BLOCK as u64;
        }
        position = end;
    }
    Ok(extents)
}

/// `None`: there is nothing of that kind any more.
fn seek_or_end(file: &File, to: SeekFrom) -> io::Result<Option<u64>> {
    match seek(file, to) {
        Ok(offset) => Ok(Some(offset)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::time::Instant;

    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        (root, store)
    }

    fn run(program: &str, args: &[&str]) -> Option<std::process::Output> {
        match Command::new(program).args(args).output() {
            Ok(output) => Some(output),
            Err(error) => {
                eprintln!("skipped: {program} cannot run: {error}");
                None
            }
        }
    }

    #[test]
    fn a_disk_is_sparse_quick_and_a_sound_file_system() {
        let (root, store) = store();
        for (index, size) in [MIN_DISK_BYTES, 300 << 20, DEFAULT_DISK_BYTES].into_iter().enumerate()
        {
            let first = root.path().join(format!("first{index}"));
            store.create_writable_disk(&first, size).unwrap();
            let second = root.path().join(format!("second{index}"));
            let start = Instant::now();
            store.create_writable_disk(&second, size).unwrap();
            eprintln!("{size} bytes from a template: {:?}", start.elapsed());
            let metadata = fs::metadata(&second).unwrap();
            assert_eq!(metadata.len(), size);
            assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
            let second = second.to_str().unwrap();
            if let Some(check) = run("/usr/sbin/e2fsck", &["-fn", second]) {
                assert!(check.status.success(), "{check:?}");
            }
            if let Some(list) = run("/usr/sbin/debugfs", &["-R", "ls -p /", second]) {
                let list = String::from_utf8_lossy(&list.stdout).into_owned();
                assert!(list.contains("/upper/") && list.contains("/work/"), "{list}");
            }
        }
    }

    #[test]
    fn a_damaged_template_is_made_again() {
        let (root, store) = store();
        store.create_writable_disk(&root.path().join("a"), MIN_DISK_BYTES).unwrap();
        let template = root.path().join(format!("templates/ext4-v{VERSION}-{MIN_DISK_BYTES}"));
        let whole = fs::read(&template).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[..20], b"", &[&whole[..], b"x"].concat()]
        {
            fs::write(&template, damaged).unwrap();
            let path = root.path().join("b");
            store.create_writable_disk(&path, MIN_DISK_BYTES).unwrap();
            fs::remove_file(path).unwrap();
            let file = File::open(&template).unwrap();
            Template::read(file, MIN_DISK_BYTES).expect("a good template again");
        }
    }

    #[test]
    fn bad_sizes_and_taken_paths_are_refused() {
        let (root, store) = store();
        let path = root.path().join("disk");
        for bytes in [0, MIN_DISK_BYTES - 1, MAX_DISK_BYTES + 1, u64::MAX] {
            let error = store.create_writable_disk(&path, bytes).unwrap_err();
            assert!(matches!(error, DiskError::Size { .. }), "{error}");
        }
        fs::write(&path, b"precious").unwrap();
        assert!(store.create_writable_disk(&path, MIN_DISK_BYTES).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
