//! Layers become images that a second reader of the format reads whole, and the same layer
//! always the same image.

#![no_main]

#[path = "support/archive.rs"]
mod archive;

use std::io::Read;

use caisson_rootfs::fuzzing::convert_layer;
use erofs_rs::{EroFS, backend::SliceImage};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|archive: archive::Archive| {
    let tar = archive.bytes();
    let Ok(image) = convert_layer(&tar) else { return };
    assert_eq!(convert_layer(&tar).as_ref(), Ok(&image), "not the same bytes again");
    let fs = EroFS::new(SliceImage::new(&image)).expect("the image has a superblock");
    let mut budget = 4_u64 << 20;
    for entry in fs.walk_dir("/").expect("the root can be listed") {
        let entry = entry.expect("an entry can be read");
        let name = entry.dir_entry.file_name();
        assert!(!name.is_empty() && !name.contains(&b'/') && name != b"..", "{name:?}");
        fs.xattrs_inode(entry.inode).expect("attributes can be read");
        if entry.inode.is_symlink() {
            fs.read_link_inode(entry.inode).expect("a link can be read");
        } else if entry.inode.is_file() {
            let size = entry.inode.data_size();
            let file = fs.open_inode_file(entry.inode).expect("a file can be opened");
            let want = size.min(budget);
            let read = std::io::copy(&mut file.take(want), &mut std::io::sink());
            assert_eq!(read.expect("a file can be read"), want);
            budget -= want;
        }
    }
});
