//! The disks that the containers run from: EROFS layers one after the other, and an ext4
//! that is smaller than its place.

use std::{
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use caisson_agent_protocol::plan::Extent;

/// Where the layers lie on their device; known on both sides of a VM's wall.
#[derive(Clone, Debug)]
pub struct Images {
    pub layers: Vec<Extent>,
    /// A layer whose `/proc` is a link to elsewhere.
    pub hostile: Extent,
    /// Many small layers that hold one empty directory each.
    pub many: Vec<Extent>,
    pub scratch: Extent,
}

/// Each layer image has this much room.
const SLOT_BYTES: u64 = 8 << 20;
/// With the others as many as Docker allows an image.
const MANY: u64 = 124;
const SMALL_SLOT_BYTES: u64 = 64 << 10;
pub const SCRATCH_BYTES: u64 = 256 << 20;
const SCRATCH_SMALL: &str = "16M";

impl Images {
    pub fn new() -> Self {
        let slot =
            |n| Extent { device: "layers".into(), offset: n * SLOT_BYTES, length: SLOT_BYTES };
        Self {
            layers: vec![slot(0), slot(1), slot(2)],
            hostile: slot(3),
            many: (0..MANY)
                .map(|n| Extent {
                    device: "layers".into(),
                    offset: 4 * SLOT_BYTES + n * SMALL_SLOT_BYTES,
                    length: SMALL_SLOT_BYTES,
                })
                .collect(),
            scratch: Extent { device: "scratch".into(), offset: 0, length: SCRATCH_BYTES },
        }
    }
}

/// Builds `layers.img` and `scratch.img` in `dir`, or says what the host lacks.
pub fn build(dir: &Path) -> Result<(PathBuf, PathBuf), String> {
    let layers = dir.join("layers.img");
    let mut device = File::create(&layers).map_err(|e| e.to_string())?;
    for (index, fill) in [base, middle, top, hostile].into_iter().enumerate() {
        let tree = dir.join(format!("tree{index}"));
        fs::create_dir(&tree).map_err(|e| e.to_string())?;
        fs::set_permissions(&tree, fs::Permissions::from_mode(0o755)).unwrap();
        fill(&tree).map_err(|error| format!("fill layer {index}: {error}"))?;
        let image = dir.join(format!("{index}.erofs"));
        tool(Command::new("mkfs.erofs").arg(&image).arg(&tree))?;
        let bytes = fs::read(&image).map_err(|e| e.to_string())?;
        assert!(bytes.len() as u64 <= SLOT_BYTES, "layer {index} is too large");
        device.seek(SeekFrom::Start(index as u64 * SLOT_BYTES)).unwrap();
        device.write_all(&bytes).unwrap();
    }
    let small = small(dir)?;
    for n in 0..MANY {
        device.seek(SeekFrom::Start(4 * SLOT_BYTES + n * SMALL_SLOT_BYTES)).unwrap();
        device.write_all(&small).unwrap();
    }
    device.set_len(4 * SLOT_BYTES + MANY * SMALL_SLOT_BYTES).unwrap();
    let scratch = dir.join("scratch.img");
    File::create(&scratch).unwrap().set_len(SCRATCH_BYTES).unwrap();
    tool(
        Command::new("mkfs.ext4")
            .args(["-q", "-F", "-b", "4096", "-O", "^has_journal", "-E", "lazy_itable_init=1"])
            .arg(&scratch)
            .arg(SCRATCH_SMALL),
    )?;
    Ok((layers, scratch))
}

fn small(dir: &Path) -> Result<Vec<u8>, String> {
    let (tree, image) = (dir.join("small"), dir.join("small.erofs"));
    fs::create_dir_all(tree.join("empty")).map_err(|error| error.to_string())?;
    tool(Command::new("mkfs.erofs").arg(&image).arg(&tree))?;
    fs::read(&image).map_err(|error| error.to_string())
}

fn tool(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

fn base(tree: &Path) -> io::Result<()> {
    for dir in ["bin", "etc", "dev", "proc", "sys", "tmp", "root", "old", "gone"] {
        fs::create_dir(tree.join(dir))?;
    }
    fs::set_permissions(tree.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::copy(busybox()?, tree.join("bin/busybox"))?;
    for applet in [
        "sh",
        "cat",
        "ls",
        "echo",
        "id",
        "sleep",
        "ps",
        "stty",
        "tty",
        "mknod",
        "dd",
        "hostname",
        "readlink",
        "grep",
        "touch",
        "mkdir",
        "mount",
        "kill",
        "head",
        "yes",
        "wc",
        "stat",
        "true",
        "ip",
        "pwd",
        "env",
        "df",
        "tr",
        "chown",
        "rm",
        "test",
        "trap",
        "dmesg",
        "mv",
        "umount",
        "fallocate",
    ] {
        symlink("busybox", tree.join("bin").join(applet))?;
    }
    fs::write(
        tree.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n",
    )?;
    fs::write(tree.join("etc/group"), "root:x:0:\napp:x:1001:\naudio:x:29:app\n")?;
    fs::write(tree.join("etc/plain"), "no program\n")?;
    fs::write(tree.join("script"), "#!/no/such/interpreter\n")?;
    fs::set_permissions(tree.join("script"), fs::Permissions::from_mode(0o755))?;
    fs::write(tree.join("garbage"), [0x7f, b'E', b'L', b'F', 9, 9, 9, 9])?;
    fs::set_permissions(tree.join("garbage"), fs::Permissions::from_mode(0o755))?;
    fs::write(tree.join("old/below"), "below")?;
    fs::write(tree.join("gone/file"), "gone")?;
    // A link that is absolute must stay inside.
    symlink("/run", tree.join("etc/run"))
}

fn middle(tree: &Path) -> io::Result<()> {
    // A whiteout, and an opaque directory, in overlayfs' own terms.
    nix::sys::stat::mknod(
        &tree.join("gone"),
        nix::sys::stat::SFlag::S_IFCHR,
        nix::sys::stat::Mode::empty(),
        0,
    )?;
    fs::create_dir(tree.join("old"))?;
    fs::write(tree.join("old/above"), "above")?;
    let path = std::ffi::CString::new(tree.join("old").as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: strings and value outlive the call.
    let set = unsafe {
        libc::setxattr(
            path.as_ptr(),
            c"trusted.overlay.opaque".as_ptr(),
            b"y".as_ptr().cast(),
            1,
            0,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn top(tree: &Path) -> io::Result<()> {
    fs::write(tree.join("top"), "top")
}

fn hostile(tree: &Path) -> io::Result<()> {
    fs::create_dir(tree.join("etc"))?;
    symlink("/etc", tree.join("proc"))
}

fn busybox() -> io::Result<PathBuf> {
    ["/usr/bin/busybox", "/bin/busybox"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "busybox (Debian: busybox-static)"))
}
