//! The crate by hand: `rootfs tree DIR IMAGE` converts a directory, `rootfs load ROOT
//! ARCHIVE` loads an image into a store and prints its layers' files, `rootfs disk ROOT
//! FILE` makes a writable disk. Each prints how long it took.

use std::path::Path;
use std::time::Instant;

use caisson_rootfs::{DEFAULT_DISK_BYTES, LoadSource, Store, TreeOptions, convert_tree, progress};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let start = Instant::now();
    match args.as_slice() {
        ["tree", dir, image] => {
            let options = TreeOptions { name: (*dir).to_owned(), ..TreeOptions::default() };
            println!("{:?}", convert_tree(Path::new(dir), Path::new(image), &options)?);
        }
        ["load", root, archive] => load(Path::new(root), Path::new(archive))?,
        ["disk", root, file] => {
            Store::open(Path::new(root))?
                .create_writable_disk(Path::new(file), DEFAULT_DISK_BYTES)?;
        }
        _ => return Err("usage: rootfs tree DIR IMAGE | load ROOT ARCHIVE | disk ROOT FILE".into()),
    }
    println!("{:.3} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn load(root: &Path, archive: &Path) -> Result<()> {
    let store = Store::open(root)?;
    for loaded in store.load(LoadSource::Path(archive.to_owned()), &*progress::on_stderr())? {
        println!("{}", loaded.id);
        let image = store.resolve(&loaded.id.to_string())?;
        for path in store.layers(&image)? {
            println!("{}", path.display());
        }
    }
    Ok(())
}
