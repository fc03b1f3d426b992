//! State files that were damaged on disk: an answer or an error, and no other file changes.

#![no_main]

use std::{cell::RefCell, fs, path::Path};

use caisson_rootfs::{Store, progress::Silent};
use caisson_shim::exit::Exit;
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};

#[derive(Arbitrary, Debug)]
struct Input {
    is_database: bool,
    flips: Vec<(u16, u8)>,
    cut: Option<u16>,
    code: u8,
    reason: Option<String>,
}

impl Input {
    fn damage(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        for (place, value) in self.flips.iter().take(16) {
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

thread_local! {
    static STATE: RefCell<(tempfile::TempDir, Vec<u8>)> = RefCell::new(prepare());
}

/// A store with one image, and its database as one file.
fn prepare() -> (tempfile::TempDir, Vec<u8>) {
    let root = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let options = caisson_rootfs::StoreOptions {
        unpacker: caisson_rootfs::Unpacker::in_this_process(),
        ..Default::default()
    };
    let store = Store::open_with(root.path(), options).expect("a new store");
    let source = caisson_rootfs::ImportSource::Reader(Box::new(&[0; 1024][..]));
    let name = "image".parse().expect("a name");
    store.import(source, Some(&name), &Default::default(), &Silent).expect("an empty layer");
    drop(store);
    let database = fs::read(root.path().join("caisson.db")).expect("the database");
    (root, database)
}

fn database(root: &Path, bytes: &[u8]) {
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(root.join(format!("caisson.db{suffix}")));
    }
    fs::write(root.join("caisson.db"), bytes).expect("memory can be written");
    let Ok(store) = Store::open(root) else { return };
    let _ = store.images();
    if let Ok(image) = store.resolve("image") {
        for layer in store.layers(&image).into_iter().flatten() {
            assert!(layer.starts_with(root.join("layers")), "{}", layer.display());
        }
    }
}

fuzz_target!(|input: Input| {
    STATE.with_borrow(|(root, good)| {
        let root = root.path();
        if input.is_database {
            database(root, &input.damage(good.clone()));
            return;
        }
        let exit = Exit { reason: input.reason.clone(), ..Exit::now(input.code) };
        exit.save(root).expect("memory can be written");
        assert_eq!(Exit::load(root).expect("it was just written"), Some(exit));
        let path = root.join("exit.json");
        let bytes = fs::read(&path).expect("it was just written");
        fs::write(&path, input.damage(bytes)).expect("memory can be written");
        let _ = Exit::load(root);
    });
});
