use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::*;
use crate::progress::Silent;
use crate::store::StoreOptions;
use crate::store::{Freed, StoreError};
use crate::tar::testing::TarBuilder;
use crate::testing::{Mounted, file_digest, picture, picture_of_image};
use crate::{Limits, Removed};

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).unwrap()
}

fn store() -> (tempfile::TempDir, Store) {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    (root, store)
}

/// Three layers that build on each other.
fn layers() -> Vec<Vec<u8>> {
    vec![
        TarBuilder::new().dir("etc").file("etc/base", b"base").file("etc/gone", b"").finish(),
        TarBuilder::new().file("etc/.wh.gone", b"").file("etc/second", b"2").finish(),
        TarBuilder::new().file("top", b"top").finish(),
    ]
}

fn config(layers: &[Vec<u8>]) -> Value {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "2024-05-06T07:08:09.5Z",
        "config": { "Cmd": ["sh"], "Env": ["A=b"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
}

/// An OCI layout in a directory.
struct Layout {
    directory: tempfile::TempDir,
    manifests: Vec<Value>,
}

impl Layout {
    fn new() -> Layout {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
        fs::write(directory.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
            .unwrap();
        Layout { directory, manifests: vec![] }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn blob_path(&self, digest: &Digest) -> std::path::PathBuf {
        self.path().join("blobs/sha256").join(digest.hex())
    }

    fn blob(&self, media_type: &str, data: &[u8]) -> Value {
        let digest = Digest::of(data);
        fs::write(self.blob_path(&digest), data).unwrap();
        json!({ "mediaType": media_type, "digest": digest, "size": data.len() })
    }

    /// Adds an image's blobs and gives its manifest's descriptor.
    fn image(&self, config: &Value, blobs: &[Vec<u8>]) -> Value {
        let config = self.blob(OCI_CONFIG, config.to_string().as_bytes());
        let layers: Vec<Value> = blobs
            .iter()
            .map(|blob| self.blob("application/vnd.oci.image.layer.v1.tar+gzip", blob))
            .collect();
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        self.blob(OCI_MANIFEST, manifest.to_string().as_bytes())
    }

    fn list(&mut self, mut descriptor: Value, name: Option<&str>) {
        if let Some(name) = name {
            descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        }
        self.manifests.push(descriptor);
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        fs::write(self.path().join("index.json"), index.to_string()).unwrap();
    }

    /// The layout of [`layers`], gzip, zstd and plain.
    fn example() -> Layout {
        let mut layout = Layout::new();
        let layers = layers();
        let blobs = [gzip(&layers[0]), zstd(&layers[1]), layers[2].clone()];
        let manifest = layout.image(&config(&layers), &blobs);
        layout.list(manifest, Some("example.com/me/app:1"));
        layout
    }

    fn tar(&self) -> Vec<u8> {
        let mut tar = TarBuilder::new();
        for name in ["oci-layout", "index.json"] {
            tar = tar.file(name, &fs::read(self.path().join(name)).unwrap());
        }
        for entry in fs::read_dir(self.path().join("blobs/sha256")).unwrap() {
            let entry = entry.unwrap();
            let name = format!("blobs/sha256/{}", entry.file_name().to_str().unwrap());
            tar = tar.pax(&[("path", name.as_bytes())]).file("x", &fs::read(entry.path()).unwrap());
        }
        tar.finish()
    }

    fn load(&self, store: &Store) -> Result<Vec<LoadedImage>, LoadError> {
        store.load(LoadSource::Path(self.path().to_owned()), &Silent)
    }
}

/// A Docker archive of [`layers`] with a name per layer file.
fn docker_archive(files: [&str; 3], tags: &Value) -> TarBuilder {
    let layers = layers();
    let config = config(&layers).to_string();
    let name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let manifest = json!([{ "Config": name, "RepoTags": tags, "Layers": files }]);
    TarBuilder::new()
        .pax(&[("path", name.as_bytes())])
        .file("x", config.as_bytes())
        .file("manifest.json", manifest.to_string().as_bytes())
}

fn example_docker_archive() -> Vec<u8> {
    let layers = layers();
    docker_archive(["a/layer.tar", "b/layer.tar", "c/layer.tar"], &json!(["me/app:1", "debian:12"]))
        .file("a/layer.tar", &layers[0])
        .file("b/layer.tar", &gzip(&layers[1]))
        .file("c.tar", &layers[2])
        .symlink("c/layer.tar", "../c.tar")
        .finish()
}

fn load_bytes(store: &Store, bytes: &[u8]) -> Result<Vec<LoadedImage>, LoadError> {
    store.load(LoadSource::Reader(Box::new(bytes)), &Silent)
}

/// The store holds nothing but its empty structure.
fn assert_empty(store: &Store) {
    store.gc().unwrap();
    assert!(store.images().unwrap().is_empty());
    for directory in ["layers", "blobs/sha256", "blobs/sha512"] {
        let left: Vec<_> = fs::read_dir(store.root().join(directory)).unwrap().collect();
        assert!(left.is_empty(), "{directory}: {left:?}");
    }
}

#[test]
fn a_layout_is_loaded_from_a_directory_and_from_archives() {
    let layout = Layout::example();
    let tar = layout.tar();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &tar).unwrap();
    let packed = tempfile::NamedTempFile::new().unwrap();
    fs::write(packed.path(), zstd(&tar)).unwrap();
    let (gz, zst) = (gzip(&tar), zstd(&tar));
    let sources: Vec<LoadSource> = vec![
        LoadSource::Path(layout.path().to_owned()),
        LoadSource::Path(file.path().to_owned()),
        LoadSource::Path(packed.path().to_owned()),
        LoadSource::Reader(Box::new(&tar[..])),
        LoadSource::Reader(Box::new(&gz[..])),
        LoadSource::Reader(Box::new(&zst[..])),
    ];
    for source in sources {
        let (_root, store) = store();
        let loaded = store.load(source, &Silent).unwrap();
        assert_eq!(loaded.len(), 1);
        let image = store.resolve("example.com/me/app:1").unwrap();
        assert_eq!(image.id, loaded[0].id);
        let layers: Vec<Digest> = layers().iter().map(|layer| Digest::of(layer)).collect();
        assert_eq!(image.diff_ids, layers);
        assert_eq!(store.layers(&image).unwrap().len(), 3);
        let config = image.config.config().as_ref().unwrap();
        assert_eq!(config.cmd().as_deref(), Some(&["sh".to_owned()][..]));
        // Layers and documents as they came: enough to push or save the image again.
        assert_eq!(fs::read_dir(store.root().join("blobs/sha256")).unwrap().count(), 5);
    }
}

#[test]
fn a_docker_archive_is_loaded_with_all_its_names() {
    let (_root, store) = store();
    let loaded = load_bytes(&store, &example_docker_archive()).unwrap();
    let names: Vec<String> = loaded[0].references.iter().map(Reference::familiar).collect();
    assert_eq!(names, ["me/app:1", "debian:12"]);
    let image = store.resolve("docker.io/library/debian:12").unwrap();
    assert_eq!(image.id, store.resolve("me/app:1").unwrap().id);
    let paths = store.layers(&image).unwrap();
    let shown = picture_of_image(&paths[1]);
    assert_eq!(shown[Path::new("./etc/gone")].mode, 0o020000);
    assert_eq!(shown[Path::new("./etc/second")].content, Digest::of(b"2").to_string());
}

#[test]
fn the_layout_of_newer_docker_archives_is_read_by_its_manifest() {
    let layers = layers();
    let config = config(&layers).to_string();
    let path = |data: &[u8]| format!("blobs/sha256/{}", Digest::of(data).hex());
    let files: Vec<String> = layers.iter().map(|layer| path(layer)).collect();
    let manifest =
        json!([{ "Config": path(config.as_bytes()), "RepoTags": null, "Layers": files }]);
    let mut tar = TarBuilder::new()
        .file("index.json", b"{\"manifests\":[]}")
        .file(&path(config.as_bytes()), config.as_bytes());
    for layer in &layers {
        tar = tar.file(&path(layer), layer);
    }
    let tar = tar.file("manifest.json", manifest.to_string().as_bytes()).finish();
    let (_root, store) = store();
    let loaded = load_bytes(&store, &tar).unwrap();
    assert!(loaded[0].references.is_empty());
    store.resolve(loaded[0].id.hex()).unwrap();
}

#[test]
fn the_same_layers_from_two_formats_are_stored_once() {
    let (_root, store) = store();
    load_bytes(&store, &example_docker_archive()).unwrap();
    let files = |store: &Store| fs::read_dir(store.root().join("layers")).unwrap().count();
    assert_eq!(files(&store), 3);
    Layout::example().load(&store).unwrap();
    assert_eq!(files(&store), 3);
    assert_eq!(store.images().unwrap().len(), 1, "one configuration is one image");
    let id = store.images().unwrap()[0].id.to_string();
    let removed = store.remove(&id, true).unwrap();
    assert_eq!(removed.untagged.len(), 3);
    assert_eq!(removed.deleted, [id]);
    assert_empty(&store);
}

#[test]
fn damaged_blobs_are_refused_and_leave_nothing() {
    let good = Layout::example();
    let blobs: Vec<_> = fs::read_dir(good.path().join("blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    for blob in &blobs {
        let whole = fs::read(blob).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for damaged in [&whole[..whole.len() - 1], &[&whole[..], b"x"].concat(), &flipped, b""] {
            fs::write(blob, damaged).unwrap();
            let (_root, store) = store();
            let error = good.load(&store).expect_err("a damaged blob was accepted");
            let expected = matches!(error, LoadError::Size { .. } | LoadError::Mismatch { .. });
            assert!(expected, "{error:?}");
            assert_empty(&store);
        }
        fs::remove_file(blob).unwrap();
        let (_root, store) = store();
        assert!(matches!(good.load(&store).unwrap_err(), LoadError::Missing { .. }));
        fs::write(blob, whole).unwrap();
    }
    good.load(&store().1).unwrap();
}

#[test]
fn a_wrong_diff_id_is_refused() {
    let mut layout = Layout::new();
    let layers = layers();
    let mut config = config(&layers);
    config["rootfs"]["diff_ids"][1] = config["rootfs"]["diff_ids"][0].clone();
    let blobs: Vec<_> = layers.iter().map(|layer| gzip(layer)).collect();
    let manifest = layout.image(&config, &blobs);
    layout.list(manifest, None);
    // The second layer is taken for the first, which is there: by then its blob is not.
    let (_root, store) = store();
    let error = layout.load(&store).unwrap_err();
    assert!(matches!(error, LoadError::Mismatch { what: "uncompressed layer", .. }), "{error:?}");
    assert_empty(&store);
    let tar = docker_archive(["a", "b", "c"], &json!(null))
        .file("a", &layers[0])
        .file("b", &layers[2])
        .file("c", &layers[2])
        .finish();
    let error = load_bytes(&store, &tar).unwrap_err();
    assert!(matches!(error, LoadError::Mismatch { .. }), "{error:?}");
    assert_empty(&store);
}

#[test]
fn digests_of_the_wrong_grammar_length_or_algorithm_are_refused() {
    let hex = "0".repeat(64);
    for digest in [
        "sha256:0".to_owned(),
        format!("md5:{hex}"),
        format!("sha256:{}", "G".repeat(64)),
        format!("sha256:../../../{}", &hex[9..]),
        "../../etc/passwd".to_owned(),
        hex,
    ] {
        let mut layout = Layout::new();
        layout.list(json!({ "mediaType": OCI_MANIFEST, "digest": digest, "size": 2 }), None);
        let error = layout.load(&store().1).unwrap_err();
        assert!(matches!(error, LoadError::Document { .. }), "{digest}: {error:?}");
        let mut config = config(&layers());
        config["rootfs"]["diff_ids"][0] = json!(digest);
        let mut layout = Layout::new();
        let manifest = layout.image(&config, &layers());
        layout.list(manifest, None);
        let error = layout.load(&store().1).unwrap_err();
        assert!(matches!(error, LoadError::Digest(_)), "{digest}: {error:?}");
    }
}

#[test]
fn names_inside_an_archive_cannot_leave_it() {
    let layers = layers();
    let manifest = |config: &str, layer: &str| {
        json!([{ "Config": config, "RepoTags": null, "Layers": [layer, layer, layer] }]).to_string()
    };
    for (config, layer) in [("../../etc/passwd", "a"), ("c.json", "../../../etc/passwd")] {
        let tar = TarBuilder::new()
            .file("c.json", super::tests::config(&layers).to_string().as_bytes())
            .file("manifest.json", manifest(config, layer).as_bytes())
            .finish();
        let error = load_bytes(&store().1, &tar).unwrap_err();
        assert!(matches!(error, LoadError::BadName { .. }), "{error:?}");
    }
    // A link to the host's file is a link to nothing.
    let tar = docker_archive(["l", "l", "l"], &json!(null)).symlink("l", "/etc/passwd").finish();
    assert!(matches!(load_bytes(&store().1, &tar), Err(LoadError::Missing { .. })));
    let tar = docker_archive(["l", "l", "l"], &json!(null)).symlink("l", "m").symlink("m", "l");
    assert!(matches!(load_bytes(&store().1, &tar.finish()), Err(LoadError::Missing { .. })));
}

#[test]
fn the_right_platform_is_chosen_from_nested_indexes() {
    let mut layout = Layout::new();
    let ours = layers();
    let other = vec![TarBuilder::new().file("arm", b"").finish()];
    let with = |mut descriptor: Value, architecture: &str, variant: Option<&str>| {
        descriptor["platform"] = json!({ "architecture": architecture, "os": "linux" });
        if let Some(variant) = variant {
            descriptor["platform"]["variant"] = json!(variant);
        }
        descriptor
    };
    let mut arm = config(&other);
    arm["architecture"] = json!("arm64");
    let arm = with(layout.image(&arm, &other), "arm64", Some("v8"));
    let v3 = with(layout.image(&config(&other), &other), "amd64", Some("v3"));
    let baseline = with(layout.image(&config(&ours), &ours), "amd64", None);
    let mut attestation = layout.blob(OCI_MANIFEST, b"{\"not\":\"read\"}");
    attestation["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    attestation["platform"] = json!({ "architecture": "unknown", "os": "unknown" });
    let inner = json!({ "schemaVersion": 2, "manifests": [arm, attestation, v3, baseline] });
    let inner = layout.blob(crate::manifest::OCI_INDEX, inner.to_string().as_bytes());
    layout.list(inner, Some("12"));
    let (_root, store) = store();
    let loaded = layout.load(&store).unwrap();
    let image = store.resolve(loaded[0].id.hex()).unwrap();
    assert_eq!(image.diff_ids.len(), 3);

    let mut layout = Layout::new();
    let mut arm = config(&other);
    arm["architecture"] = json!("arm64");
    // The descriptor says nothing; the configuration does.
    let arm = layout.image(&arm, &other);
    layout.list(arm, None);
    let error = layout.load(&store).unwrap_err();
    assert!(error.to_string().contains("linux/arm64"), "{error}");
}

#[test]
fn indexes_that_never_end_are_refused() {
    let mut layout = Layout::new();
    let mut descriptor = layout.image(&config(&layers()), &layers());
    for _ in 0..5 {
        let index = json!({ "schemaVersion": 2, "manifests": [descriptor] });
        descriptor = layout.blob(crate::manifest::OCI_INDEX, index.to_string().as_bytes());
    }
    layout.list(descriptor, None);
    assert!(matches!(layout.load(&store().1), Err(LoadError::TooMany { .. })));
    let mut layout = Layout::new();
    let mut one = layout.image(&config(&layers()), &layers());
    // Each is for this platform, says the descriptor, and for another, says it itself.
    let mut arm = config(&layers());
    arm["architecture"] = json!("arm64");
    one["digest"] = layout.image(&arm, &layers())["digest"].clone();
    one["size"] = layout.image(&arm, &layers())["size"].clone();
    layout.manifests = vec![one.clone(); 2000];
    layout.list(one, None);
    assert!(matches!(layout.load(&store().1), Err(LoadError::TooMany { .. })));
}

#[test]
fn too_many_layers_and_unequal_counts_are_refused() {
    let many: Vec<Vec<u8>> = vec![TarBuilder::new().finish(); 129];
    let mut layout = Layout::new();
    let manifest = layout.image(&config(&many), &many);
    layout.list(manifest, None);
    assert!(matches!(layout.load(&store().1), Err(LoadError::TooMany { what: "layers", .. })));
    let mut layout = Layout::new();
    let manifest = layout.image(&config(&layers()), &layers()[..2]);
    layout.list(manifest, None);
    assert!(matches!(
        layout.load(&store().1),
        Err(LoadError::LayerCount { layers: 2, diff_ids: 3 })
    ));
}

#[test]
fn oversized_documents_are_refused() {
    let mut config = config(&layers());
    config["padding"] = json!("x".repeat(9 << 20));
    let mut layout = Layout::new();
    let manifest = layout.image(&config, &layers());
    layout.list(manifest, None);
    assert!(matches!(layout.load(&store().1), Err(LoadError::DocumentTooLarge { .. })));
}

#[test]
fn configurations_that_ask_for_too_much_are_refused() {
    let many: Vec<String> = (0..5000).map(|n| format!("V{n}=x")).collect();
    let labels: std::collections::BTreeMap<_, _> = many.iter().map(|name| (name, "")).collect();
    let long = "x".repeat(200_000);
    for (field, value) in [
        ("Env", json!(many)),
        ("Env", json!([long])),
        ("Env", json!(["A=\0"])),
        ("Cmd", json!(many)),
        ("Entrypoint", json!(["sh\0"])),
        ("Labels", json!(labels)),
        ("WorkingDir", json!(long)),
        ("User", json!("\0")),
    ] {
        let mut config = config(&[]);
        config["config"][field] = value;
        let mut layout = Layout::new();
        let manifest = layout.image(&config, &[]);
        layout.list(manifest, None);
        let (_root, store) = store();
        let error = layout.load(&store).unwrap_err();
        assert!(matches!(error, LoadError::Config { .. }), "{field}: {error:?}");
        assert!(error.to_string().contains(field), "{field}: {error}");
        assert_empty(&store);
    }
}

#[test]
fn documents_nested_without_end_are_refused() {
    let deep = "[".repeat(100_000);
    for text in [deep.clone(), format!(r#"{{"config":{deep}"#), format!(r#"{{"x":{deep}"#)] {
        for name in ["index.json", "manifest.json"] {
            let tar = TarBuilder::new().file(name, text.as_bytes()).finish();
            let error = load_bytes(&store().1, &tar).unwrap_err();
            assert!(matches!(error, LoadError::Document { .. }), "{name}: {error:?}");
        }
        assert!(crate::manifest::parse_config(text.as_bytes()).is_err());
    }
}

#[test]
fn a_kind_that_is_no_image_is_named_inert() {
    let mut layout = Layout::new();
    let odd = layout.blob("application/\u{1b}[2J", b"data");
    let config = layout.blob(OCI_CONFIG, config(&layers()[..1]).to_string().as_bytes());
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [odd] });
    let manifest = layout.blob(OCI_MANIFEST, manifest.to_string().as_bytes());
    layout.list(manifest, None);
    let error = layout.load(&store().1).unwrap_err().to_string();
    assert!(error.contains("application/\\u{1b}[2J"), "{error:?}");
}

#[test]
fn a_layer_beyond_the_caps_leaves_nothing() {
    let bomb = TarBuilder::new().file("zeros", &vec![0; 4 << 20]).finish();
    let layers = vec![bomb.clone()];
    let root = tempfile::tempdir().unwrap();
    for limits in [
        Limits { layer_bytes: 1 << 20, ..Limits::default() },
        Limits { ratio: 10, ratio_free_bytes: 1 << 20, ..Limits::default() },
    ] {
        let options = StoreOptions { limits, ..StoreOptions::default() };
        let store = Store::open_with(root.path(), options).unwrap();
        for blob in [gzip(&bomb), zstd(&bomb)] {
            let mut layout = Layout::new();
            let manifest = layout.image(&config(&layers), &[blob]);
            layout.list(manifest, None);
            let error = layout.load(&store).unwrap_err();
            assert!(matches!(error, LoadError::Layer { .. }), "{error:?}");
            assert_empty(&store);
        }
    }
}

#[test]
fn an_image_without_layers_has_an_empty_root() {
    let mut layout = Layout::new();
    let mut config = config(&[]);
    config["rootfs"]["diff_ids"] = json!(null);
    let manifest = layout.image(&config, &[]);
    layout.list(manifest, Some("empty:1"));
    let (_root, store) = store();
    layout.load(&store).unwrap();
    let image = store.resolve("empty:1").unwrap();
    let paths = store.layers(&image).unwrap();
    assert_eq!(paths.len(), 1);
    assert_eq!(picture_of_image(&paths[0]).len(), 1);
}

#[test]
fn what_is_no_image_is_told_so() {
    let (_root, store) = store();
    let tar = TarBuilder::new().file("etc/passwd", b"").finish();
    let error = load_bytes(&store, &tar).unwrap_err();
    assert!(error.to_string().contains("caisson import"), "{error}");
    assert!(matches!(load_bytes(&store, b"garbage"), Err(LoadError::Archive(_))));
    let whole = example_docker_archive();
    for length in [700, 3000, whole.len() / 2] {
        let cut = load_bytes(&store, &whole[..length]);
        assert!(matches!(cut, Err(LoadError::Archive(_) | LoadError::Missing { .. })), "{cut:?}");
    }
    assert_empty(&store);
    assert!(matches!(load_bytes(&store, b""), Err(LoadError::UnknownFormat)));
    let tar = TarBuilder::new().file("manifest.json", b"[]").finish();
    assert!(matches!(load_bytes(&store, &tar), Err(LoadError::NoImages)));
    let path = LoadSource::Path("/nonexistent".into());
    assert!(matches!(store.load(path, &Silent), Err(LoadError::Open { .. })));
}

#[test]
fn an_opaque_root_hides_the_layers_below() {
    let layers = vec![
        TarBuilder::new().file("below", b"").finish(),
        TarBuilder::new().file(".wh..wh..opq", b"").file("above", b"").finish(),
    ];
    let mut layout = Layout::new();
    let manifest = layout.image(&config(&layers), &layers);
    layout.list(manifest, Some("opaque:1"));
    let (_root, store) = store();
    layout.load(&store).unwrap();
    let image = store.resolve("opaque:1").unwrap();
    let paths = store.layers(&image).unwrap();
    assert_eq!(paths.len(), 1);
    assert!(paths[0].ends_with(format!("{}.erofs", Digest::of(&layers[1]).hex())));
}

#[test]
fn overlayfs_sees_what_an_engine_would_unpack() {
    let layers = vec![
        TarBuilder::new()
            .dir("kept")
            .file("kept/a", b"a")
            .dir("emptied")
            .file("emptied/old", b"")
            .dir("replaced")
            .file("replaced/old", b"")
            .file("gone", b"")
            .file("changed", b"old")
            .finish(),
        TarBuilder::new()
            .dir("kept")
            .file("kept/b", b"b")
            .dir("emptied")
            .file("emptied/.wh..wh..opq", b"")
            .file("emptied/new", b"")
            .file(".wh.replaced", b"")
            .dir("replaced")
            .file("replaced/new", b"")
            .file(".wh.gone", b"")
            .file("changed", b"new")
            .finish(),
        TarBuilder::new().file("kept/.wh.a", b"").file("gone", b"back").finish(),
    ];
    let mut layout = Layout::new();
    let manifest = layout.image(&config(&layers), &layers);
    layout.list(manifest, Some("stacked:1"));
    let (_root, store) = store();
    layout.load(&store).unwrap();
    let paths = store.layers(&store.resolve("stacked:1").unwrap()).unwrap();
    let Some(mounted) = paths.iter().map(|path| Mounted::new(path)).collect::<Option<Vec<_>>>()
    else {
        return;
    };
    let Some(overlay) = Mounted::overlay(&mounted) else { return };
    let shown = picture(overlay.path());
    let names: Vec<&str> = shown.keys().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            ".",
            "./changed",
            "./emptied",
            "./emptied/new",
            "./gone",
            "./kept",
            "./kept/b",
            "./replaced",
            "./replaced/new",
        ]
    );
    assert_eq!(shown[Path::new("./changed")].content, Digest::of(b"new").to_string());
    assert_eq!(shown[Path::new("./gone")].content, Digest::of(b"back").to_string());
}

#[test]
fn a_root_filesystem_is_imported() {
    let (_root, store) = store();
    let tar = TarBuilder::new().dir("bin").file("bin/sh", b"#!").finish();
    let config = ImportConfig {
        changes: vec!["CMD [\"/bin/sh\"]".to_owned(), "ENV A=1".to_owned()],
        message: Some("by hand".to_owned()),
        created: Some(std::time::SystemTime::UNIX_EPOCH),
    };
    let name: Reference = "busybox".parse().unwrap();
    let mut ids = Vec::new();
    for packed in [tar.clone(), gzip(&tar), zstd(&tar)] {
        let source = ImportSource::Reader(Box::new(&packed[..]));
        ids.push(store.import(source, Some(&name), &config, &Silent).unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "equal input gives equal images");
    let image = store.resolve("busybox:latest").unwrap();
    assert_eq!(image.diff_ids, [Digest::of(&tar)]);
    assert_eq!(image.config.created().as_deref(), Some("1970-01-01T00:00:00Z"));
    let run = image.config.config().as_ref().unwrap();
    assert_eq!(run.env().as_deref(), Some(&["A=1".to_owned()][..]));
    // A layer that was loaded is the same file as one that was imported.
    let imported = file_digest(&store.layers(&image).unwrap()[0]);
    let (_other_root, other) = super::tests::store();
    let mut layout = Layout::new();
    let layers = vec![tar];
    let manifest = layout.image(&super::tests::config(&layers), &[gzip(&layers[0])]);
    layout.list(manifest, Some("x:1"));
    layout.load(&other).unwrap();
    let loaded = other.layers(&other.resolve("x:1").unwrap()).unwrap();
    assert_eq!(file_digest(&loaded[0]), imported);

    let bad = ImportConfig { changes: vec!["RUN x".to_owned()], ..ImportConfig::default() };
    let source = ImportSource::Reader(Box::new(&b""[..]));
    assert!(matches!(store.import(source, None, &bad, &Silent), Err(ImportError::Change(_))));
    let source = ImportSource::Reader(Box::new(&b"garbage"[..]));
    assert!(store.import(source, None, &ImportConfig::default(), &Silent).is_err());
    store.remove("busybox", false).unwrap();
    assert_empty(&store);
}

#[test]
fn names_ids_and_prefixes_find_an_image() {
    let (_root, store) = store();
    let loaded = load_bytes(&store, &example_docker_archive()).unwrap();
    let id = &loaded[0].id;
    let image = store.resolve("debian:12").unwrap();
    for name in [
        id.to_string(),
        id.hex().to_owned(),
        id.short().to_owned(),
        format!("sha256:{}", &id.hex()[..10]),
        "docker.io/me/app:1".to_owned(),
        format!("debian@{}", image.manifest),
    ] {
        assert_eq!(store.resolve(&name).unwrap().id, *id, "{name}");
    }
    for name in ["debian", "debian:13", "debain:12", &id.hex()[..3], "../x", "", "me/app@sha256:0"]
    {
        assert!(matches!(store.resolve(name), Err(StoreError::NotFound { .. })), "{name}");
    }
    let Err(StoreError::NotFound { near, .. }) = store.resolve("debain:12") else { panic!() };
    assert_eq!(near, ["debian:12"]);
    store.tag("debian:12", &"other:tag".parse().unwrap()).unwrap();
    assert_eq!(store.resolve("other:tag").unwrap().references.len(), 3);
}

#[test]
fn removing_follows_names_and_leases() {
    let (_root, store) = store();
    load_bytes(&store, &example_docker_archive()).unwrap();
    let image = store.resolve("debian:12").unwrap();
    let id = image.id.to_string();
    // One of two names.
    let removed = store.remove("debian:12", false).unwrap();
    assert_eq!(removed, Removed { untagged: vec!["debian:12".to_owned()], deleted: vec![] });
    store.tag("me/app:1", &"second:1".parse().unwrap()).unwrap();
    assert!(matches!(store.remove(&id, false), Err(StoreError::SeveralNames { .. })));
    store.remove("second:1", false).unwrap();
    // The last name, while a container needs it.
    store.lease("container/1", &image).unwrap();
    store.lease("container/1", &image).unwrap();
    let Err(StoreError::InUse { owners, .. }) = store.remove("me/app:1", false) else { panic!() };
    assert_eq!(owners, ["container/1"]);
    assert_eq!(store.gc().unwrap(), Freed::default());
    let removed = store.remove("me/app:1", true).unwrap();
    assert_eq!(removed, Removed { untagged: vec!["me/app:1".to_owned()], deleted: vec![] });
    assert!(store.images().unwrap().is_empty());
    assert_eq!(store.layers(&image).unwrap().len(), 3, "the container still has its layers");
    store.release("container/1").unwrap();
    store.release("container/1").unwrap();
    let freed = store.gc().unwrap();
    assert_eq!((freed.images, freed.layers, freed.blobs), (1, 3, 5));
    assert!(freed.bytes > 0);
    assert_empty(&store);
    // Gone: a late lease fails rather than dangles.
    assert!(matches!(store.lease("container/2", &image), Err(StoreError::NotFound { .. })));
    assert!(matches!(store.lease("a\nb", &image), Err(StoreError::Owner(_))));
}

#[test]
fn a_tag_moves_and_leaves_the_old_image_nameless() {
    let (_root, store) = store();
    load_bytes(&store, &example_docker_archive()).unwrap();
    let old = store.resolve("debian:12").unwrap().id;
    let mut layout = Layout::new();
    let layers = vec![layers()[0].clone()];
    let manifest = layout.image(&config(&layers), &layers);
    layout.list(manifest, Some("debian:12"));
    layout.load(&store).unwrap();
    assert_ne!(store.resolve("debian:12").unwrap().id, old);
    let images = store.images().unwrap();
    assert_eq!(images.len(), 2);
    let old = images.iter().find(|image| image.id == old).unwrap();
    assert_eq!(old.references.len(), 1, "me/app:1 stays");
    // A shared layer survives the removal of one of its images.
    store.remove("me/app:1", false).unwrap();
    let image = store.resolve("debian:12").unwrap();
    store.layers(&image).unwrap();
}

#[test]
fn missing_and_truncated_files_are_reported_and_healed_by_loading_again() {
    let (_root, store) = store();
    let archive = example_docker_archive();
    load_bytes(&store, &archive).unwrap();
    let image = store.resolve("debian:12").unwrap();
    let paths = store.layers(&image).unwrap();
    let damage: [&dyn Fn(); 2] = [&|| fs::remove_file(&paths[1]).unwrap(), &|| {
        fs::remove_file(&paths[1]).unwrap();
        fs::write(&paths[1], b"short").unwrap();
    }];
    for damage in damage {
        damage();
        let error = store.layers(&image).unwrap_err();
        assert!(error.to_string().contains("again"), "{error}");
        assert_eq!(store.images().unwrap().len(), 1);
        load_bytes(&store, &archive).unwrap();
        store.layers(&image).unwrap();
    }
    let config = store.root().join("blobs/sha256").join(image.id.hex());
    for content in [&b""[..], b"{}"] {
        fs::write(&config, content).unwrap();
        assert!(matches!(store.resolve("debian:12"), Err(StoreError::Damaged { .. })));
        assert_eq!(store.images().unwrap().len(), 1, "others can still be listed");
    }
    store.remove(&image.id.to_string(), true).unwrap();
    assert_empty(&store);
}

#[test]
fn a_crash_half_way_leaves_a_partial_that_the_next_load_or_gc_removes() {
    let (_root, store) = store();
    let archive = example_docker_archive();
    let layers_dir = store.root().join("layers");
    let diff_id = Digest::of(&layers()[0]);
    // What a killed loader leaves: a locked file whose lock has gone, a finished layer
    // without a row, a blob in the making.
    fs::write(layers_dir.join(format!(".partial-{}", diff_id.hex())), b"half").unwrap();
    fs::write(layers_dir.join(format!("{}.erofs", Digest::of(&layers()[1]).hex())), b"?").unwrap();
    fs::write(store.root().join("blobs/sha256/.partial-x"), b"half").unwrap();
    load_bytes(&store, &archive).unwrap();
    let image = store.resolve("debian:12").unwrap();
    store.layers(&image).unwrap();
    for directory in ["layers", "blobs/sha256"] {
        for entry in fs::read_dir(store.root().join(directory)).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(!name.to_str().unwrap().starts_with('.'), "{name:?} is left");
        }
    }
    fs::write(layers_dir.join(".partial-y"), b"half").unwrap();
    assert_eq!(store.gc().unwrap().partials, 1);
}

#[test]
fn gc_leaves_alone_what_others_are_adding() {
    let (_root, store) = store();
    let adding = store.lock_to_add().unwrap();
    let orphan = store.root().join("layers/x.erofs");
    fs::write(&orphan, b"x").unwrap();
    assert_eq!(store.gc().unwrap(), Freed::default());
    assert!(orphan.exists());
    drop(adding);
    assert_eq!(store.gc().unwrap().layers, 1);
}

#[test]
fn many_loaders_of_one_image_agree() {
    let root = tempfile::tempdir().unwrap();
    let archive = example_docker_archive();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let store = Store::open(root.path()).unwrap();
                load_bytes(&store, &archive).unwrap();
                let image = store.resolve("debian:12").unwrap();
                assert_eq!(store.layers(&image).unwrap().len(), 3);
            });
        }
    });
    let store = Store::open(root.path()).unwrap();
    assert_eq!(fs::read_dir(root.path().join("layers")).unwrap().count(), 3);
    assert_eq!(store.images().unwrap().len(), 1);
}

#[test]
fn without_blobs_only_documents_are_kept() {
    let root = tempfile::tempdir().unwrap();
    let options = StoreOptions { keep_blobs: false, ..StoreOptions::default() };
    let store = Store::open_with(root.path(), options).unwrap();
    load_bytes(&store, &example_docker_archive()).unwrap();
    Layout::example().load(&store).unwrap();
    // One configuration; of the two manifests, the one that came last.
    assert_eq!(fs::read_dir(root.path().join("blobs/sha256")).unwrap().count(), 2);
    store.layers(&store.resolve("debian:12").unwrap()).unwrap();
}

#[test]
fn the_store_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("new/store");
    let store = Store::open(&root).unwrap();
    load_bytes(&store, &example_docker_archive()).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    for directory in ["", "layers", "blobs", "blobs/sha256", "templates"] {
        assert_eq!(mode(&root.join(directory)), 0o700, "{directory}");
    }
    let image = store.resolve("debian:12").unwrap();
    assert_eq!(mode(&store.layers(&image).unwrap()[0]), 0o444);
}
