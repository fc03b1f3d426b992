//! Pulling what is in order.

use super::*;
use crate::digest::Digest;
use crate::manifest::{DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX};

#[test]
fn an_image_is_pulled_by_tag_and_by_digest() {
    let (server, image) = Server::with_image();
    let (_root, store) = store();
    let client = client();
    let pulled = pull(&store, &client, &server.reference("app:1")).unwrap();
    assert_eq!(pulled.digest, Digest::of(&image.manifest));
    assert!(!pulled.up_to_date);
    let found = store.resolve(&format!("{}/app:1", server.host)).unwrap();
    assert_eq!(found.id, pulled.id);
    assert_eq!(found.manifest, pulled.digest);
    assert_eq!(store.layers(&found).unwrap().len(), 1);
    let by_digest = format!("{}/app@{}", server.host, pulled.digest);
    assert_eq!(store.resolve(&by_digest).unwrap().id, pulled.id);
    assert_eq!(found.repo_digests[0].to_string(), by_digest);

    let again = pull(&store, &client, &server.reference("app:1")).unwrap();
    assert!(again.up_to_date);
    assert_eq!(server.count("GET", "/blobs/sha256"), 3, "the layer came once");

    store.remove(&format!("{}/app:1", server.host), false).unwrap();
    let pulled = pull(&store, &client, &by_digest.parse().unwrap()).unwrap();
    assert!(store.resolve(&by_digest).unwrap().references.is_empty(), "a digest is no tag");
    assert_eq!(store.resolve(&by_digest).unwrap().id, pulled.id);
    let removed = store.remove(&by_digest, false).unwrap();
    assert_eq!(removed.deleted, [pulled.id.to_string()]);
    assert!(matches!(store.resolve(&by_digest), Err(StoreError::NotFound { .. })));
}

#[test]
fn the_platform_chooses_from_an_index_of_either_family() {
    let server = Server::start();
    let ours = TestImage::new(&[("a", b"amd64")]);
    let theirs = TestImage::for_platform(&[("a", b"arm64")], "arm64");
    for image in [&ours, &theirs] {
        server.put_image("app", "x", image);
    }
    let index = index(&[("arm64", &theirs), ("amd64", &ours)]);
    server.put_manifest("app", "oci", OCI_INDEX, &index);
    let docker = String::from_utf8(index.clone()).unwrap().replace(OCI_INDEX, DOCKER_INDEX);
    server.put_manifest("app", "docker", DOCKER_INDEX, docker.as_bytes());
    let (_root, store) = store();
    let client = client();
    for tag in ["oci", "docker"] {
        let pulled = pull(&store, &client, &server.reference(&format!("app:{tag}"))).unwrap();
        let image = store.resolve(&pulled.id.to_string()).unwrap();
        assert_eq!(image.manifest, Digest::of(&ours.manifest));
        assert_ne!(pulled.digest, image.manifest, "the digest is the index's");
    }
    let wanted: WantedPlatform = "linux/arm64".parse().unwrap();
    let pulled = store.pull(&client, &server.reference("app:oci"), &wanted, &Silent).unwrap();
    assert_eq!(
        store.resolve(&pulled.id.to_string()).unwrap().manifest,
        Digest::of(&theirs.manifest)
    );
    let wanted = "linux/riscv64".parse().unwrap();
    let error = store.pull(&client, &server.reference("app:oci"), &wanted, &Silent).unwrap_err();
    assert_eq!(error.to_string(), "no image for linux/riscv64; there are linux/arm64, linux/amd64");
    // A lone manifest for another platform is no image for this one either.
    server.put_image("app", "lone", &theirs);
    let error = pull(&store, &client, &server.reference("app:lone")).unwrap_err();
    assert_eq!(error.to_string(), "no image for linux/amd64; there are linux/arm64");
}

#[test]
fn dockers_manifest_is_pulled() {
    let (server, image) = Server::with_image();
    let text = String::from_utf8(image.manifest.clone()).unwrap();
    let text = text
        .replace(crate::manifest::OCI_MANIFEST, DOCKER_MANIFEST)
        .replace(
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        )
        .replace(crate::manifest::OCI_CONFIG, "application/vnd.docker.container.image.v1+json");
    server.put_manifest("app", "2", DOCKER_MANIFEST, text.as_bytes());
    let (_root, store) = store();
    let pulled = pull(&store, &client(), &server.reference("app:2")).unwrap();
    assert_eq!(pulled.digest, Digest::of(text.as_bytes()));
}

#[test]
fn many_layers_come_in_parallel_and_in_order() {
    let server = Server::start();
    let names: Vec<String> = (0..12).map(|n| format!("file-{n}")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), n.as_bytes())).collect();
    // The same layer twice, as builds without changes make it.
    let files: Vec<_> = files.iter().chain(&files[..1]).copied().collect();
    let image = TestImage::new(&files);
    server.put_image("app", "1", &image);
    let (_root, store) = store();
    let pulled = pull(&store, &client(), &server.reference("app:1")).unwrap();
    let found = store.resolve(&pulled.id.to_string()).unwrap();
    assert_eq!(store.layers(&found).unwrap().len(), 13);
    assert_eq!(found.diff_ids[0], found.diff_ids[12]);
    let layers: usize =
        image.blobs[..12].iter().map(|(digest, _)| server.count("GET", &digest.to_string())).sum();
    assert_eq!(layers, 12, "each came once");
}

#[test]
fn an_image_without_layers_has_an_empty_root() {
    let server = Server::start();
    server.put_image("app", "1", &TestImage::new(&[]));
    let (_root, store) = store();
    let pulled = pull(&store, &client(), &server.reference("app:1")).unwrap();
    let found = store.resolve(&pulled.id.to_string()).unwrap();
    assert_eq!(store.layers(&found).unwrap().len(), 1);
}

#[test]
fn tags_are_listed_over_pages() {
    let server = Server::start();
    server.script(|asked, _| {
        asked.path.contains("/tags/list").then(|| {
            let (body, link) = match asked.path.contains("last=b") {
                false => {
                    (r#"{"tags":["a","b"]}"#, Some("</v2/app/tags/list?last=b>; rel=\"next\""))
                }
                true => (r#"{"tags":["c"]}"#, None),
            };
            let headers = link.map(|link| ("Link".to_owned(), link.to_owned()));
            Reply::Answer { status: 200, headers: Vec::from_iter(headers), body: body.into() }
        })
    });
    assert_eq!(client().tags(&server.reference("app")).unwrap(), ["a", "b", "c"]);
    // A page that leads to itself is the last.
    server.script(|asked, _| {
        asked.path.contains("/tags/list").then(|| Reply::Answer {
            status: 200,
            headers: vec![("Link".into(), "</v2/app/tags/list>; rel=\"next\"".into())],
            body: br#"{"tags":["a"]}"#.to_vec(),
        })
    });
    assert_eq!(client().tags(&server.reference("app")).unwrap(), ["a"]);
}

#[test]
fn a_mirror_is_asked_before_docker_hub_and_may_fail() {
    let (server, _) = Server::with_image();
    server.put_image("library/app", "1", &TestImage::new(&[("x", b"y")]));
    // Nothing listens on the first.
    let options = RegistryOptions {
        mirrors: vec!["localhost:1".into(), format!("http://{}", server.host)],
        ..RegistryOptions::default()
    };
    let (_root, store) = store();
    let pulled = pull(&store, &client_with(options, None), &"app:1".parse().unwrap()).unwrap();
    assert_eq!(pulled.reference.to_string(), "docker.io/library/app:1");
    assert!(store.resolve("app:1").is_ok());
}

#[test]
fn a_search_takes_the_catalog_where_there_is_no_search() {
    let server = Server::start();
    server.script(|asked, _| {
        asked
            .path
            .starts_with("/v2/_catalog")
            .then(|| answer(200, r#"{"repositories":["me/app","other"]}"#))
    });
    let found = client().search(&server.host, "app", 25).unwrap();
    assert_eq!(found.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["me/app"]);
    server.script(|asked, _| {
        asked
            .path
            .starts_with("/v1/search")
            .then(|| answer(200, r#"{"results":[{"name":"x","star_count":3,"is_official":true}]}"#))
    });
    let found = client().search(&server.host, "x", 25).unwrap();
    assert_eq!((found[0].star_count, found[0].is_official), (3, true));
    server.script(|_, _| None);
    let error = client().search(&server.host, "x", 25).unwrap_err();
    assert!(matches!(error, RegistryError::NoSearch { .. }), "{error}");
}
