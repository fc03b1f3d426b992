//! A one-file initramfs ("newc" cpio): `/init` and nothing else.

/// The archive with `program` as `/init`.
pub fn with_init(program: &[u8]) -> Vec<u8> {
    let mut archive = Vec::with_capacity(program.len() + 512);
    entry(&mut archive, "init", 0o100_755, program);
    entry(&mut archive, "TRAILER!!!", 0, &[]);
    archive
}

fn entry(archive: &mut Vec<u8>, path: &str, mode: u32, content: &[u8]) {
    let size = content.len() as u32;
    let name_size = path.len() as u32 + 1;
    archive.extend(b"070701");
    for field in [1, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(path.bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}
