//! Cases 42 to 46: a registry that is broken, busy or hostile.

use std::time::Duration;

use super::*;
use crate::Digest;
use crate::manifest::{OCI_INDEX, OCI_MANIFEST};

/// Says `reply` for blobs of layers.
fn for_layer(
    server: &Server,
    image: &TestImage,
    reply: impl Fn(usize) -> Option<Reply> + Send + Sync + 'static,
) {
    let layer = image.layer.to_string();
    server.script(move |asked, nth| asked.is("GET", &layer).then(|| reply(nth)).flatten());
}

#[test]
fn a_busy_registry_is_asked_again() {
    for status in [429, 500, 502, 503] {
        let (server, _) = Server::with_image();
        server.script(move |asked, nth| {
            let headers = vec![("Retry-After".to_owned(), "0".to_owned())];
            let busy = Reply::Answer { status, headers, body: vec![] };
            (asked.path.contains("/manifests/") && nth < 2).then_some(busy)
        });
        let (_root, store) = store();
        pull(&store, &client(), &server.reference("app:1")).unwrap();
        assert_eq!(server.count("GET", "/manifests/1"), 3);
    }
}

#[test]
fn patience_ends_and_says_so() {
    let (server, _) = Server::with_image();
    server.script(|asked, _| {
        let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow \u001b[31mdown"}]}"#;
        asked.path.contains("/manifests/").then(|| answer(429, body))
    });
    let error = fails(&server).to_string();
    assert!(error.contains("too many requests") && error.contains("slow \\u{1b}"), "{error}");
    assert_eq!(server.count("GET", "/manifests/1"), 3);

    let (server, _) = Server::with_image();
    server.script(|asked, _| asked.path.contains("/manifests/").then(|| answer(500, "<html>")));
    assert!(matches!(fails(&server), RegistryError::Status { status: 500, .. }));
}

#[test]
fn a_wish_for_a_long_pause_is_an_error_at_once() {
    let (server, _) = Server::with_image();
    server.script(|asked, _| {
        let headers = vec![("Retry-After".to_owned(), "86400".to_owned())];
        let busy = Reply::Answer { status: 429, headers, body: vec![] };
        asked.path.contains("/manifests/").then_some(busy)
    });
    let error = fails(&server);
    assert!(error.to_string().contains("asks to wait 86400 s"), "{error}");
    assert_eq!(server.count("GET", "/manifests/1"), 1);
}

#[test]
fn a_reset_half_way_is_resumed_where_it_was() {
    let server = Server::start();
    let image = TestImage::new(&[("noise", &noise(200_000))]);
    server.put_image("app", "1", &image);
    let data = image.layer_data();
    let (length, part) = (data.len() as u64, data[..100_000].to_vec());
    for_layer(&server, &image, move |nth| {
        (nth == 0).then(|| Reply::Cut { headers: vec![], promised: length, body: part.clone() })
    });
    let (_root, store) = store();
    pull(&store, &client(), &server.reference("app:1")).unwrap();
    let asked = server.asked();
    let ranges: Vec<_> = asked
        .iter()
        .filter(|asked| asked.is("GET", &image.layer.to_string()))
        .map(|asked| asked.header("range"))
        .collect();
    assert_eq!(ranges, [None, Some("bytes=100000-")]);
}

#[test]
fn a_registry_without_ranges_is_read_from_the_start() {
    let server = Server::start();
    let image = TestImage::new(&[("noise", &noise(50_000))]);
    server.put_image("app", "1", &image);
    let data = image.layer_data();
    for_layer(&server, &image, move |nth| {
        let (length, part) = (data.len() as u64, data[..20_000].to_vec());
        Some(match nth {
            0 => Reply::Cut { headers: vec![], promised: length, body: part },
            _ => answer(200, data.clone()),
        })
    });
    let (_root, store) = store();
    pull(&store, &client(), &server.reference("app:1")).unwrap();
}

#[test]
fn a_transfer_that_never_ends_is_given_up() {
    // It breaks off at the same place each time.
    let (server, image) = Server::with_image();
    let data = image.layer_data();
    for_layer(&server, &image, move |_| {
        let (promised, body) = (data.len() as u64, data[..10].to_vec());
        Some(Reply::Cut { headers: vec![], promised, body })
    });
    let error = fails(&server);
    assert!(
        matches!(error, RegistryError::Broken { .. } | RegistryError::Size { .. }),
        "{}",
        text(&error)
    );

    // It hangs up before it says anything.
    let (server, image) = Server::with_image();
    for_layer(&server, &image, |_| Some(Reply::Hangup));
    assert!(matches!(fails(&server), RegistryError::Broken { .. }));
}

#[test]
fn a_drip_and_a_silence_are_given_up() {
    let server = Server::start();
    let image = TestImage::new(&[("noise", &noise(20_000))]);
    server.put_image("app", "1", &image);
    let data = image.layer_data();
    for_layer(&server, &image, move |_| {
        Some(Reply::Drip { body: data.clone(), pause: Duration::from_millis(20) })
    });
    let error = fails(&server);
    assert!(matches!(error, RegistryError::Broken { .. }), "{}", text(&error));

    let (server, image) = Server::with_image();
    for_layer(&server, &image, |_| Some(Reply::Silence));
    assert!(matches!(fails(&server), RegistryError::Broken { .. }));
    assert_eq!(server.count("GET", &image.layer.to_string()) % 3, 0);
}

#[test]
fn a_range_that_was_not_asked_for_is_refused() {
    let server = Server::start();
    let image = TestImage::new(&[("noise", &noise(50_000))]);
    server.put_image("app", "1", &image);
    let data = image.layer_data();
    for_layer(&server, &image, move |nth| {
        let (promised, body) = (data.len() as u64, data[..20_000].to_vec());
        let range = ("Content-Range".to_owned(), format!("bytes 5-{}/{promised}", promised - 1));
        Some(match nth {
            0 => Reply::Cut { headers: vec![], promised, body },
            _ => Reply::Answer { status: 206, headers: vec![range], body: data[5..].to_vec() },
        })
    });
    let error = fails(&server);
    assert!(matches!(error, RegistryError::Status { status: 206, .. }), "{}", text(&error));
}

#[test]
fn a_blob_of_another_length_or_content_is_refused() {
    for change in [
        |data: &mut Vec<u8>| data.truncate(20),
        |data: &mut Vec<u8>| data.extend([0; 100]),
        |data: &mut Vec<u8>| data[12] ^= 1,
    ] {
        let (server, image) = Server::with_image();
        let mut data = image.layer_data();
        change(&mut data);
        for_layer(&server, &image, move |_| Some(answer(200, data.clone())));
        let error = fails(&server);
        let refused = matches!(error, RegistryError::Size { .. } | RegistryError::Load(_));
        assert!(refused, "{}", text(&error));
    }
}

#[test]
fn a_manifest_or_configuration_with_another_digest_is_refused() {
    let (server, image) = Server::with_image();
    let config = image.blobs[1].0.to_string();
    server.script(move |asked, _| {
        asked.is("GET", &config).then(|| {
            let mut data = image.blobs[1].1.clone();
            data[10] ^= 1;
            answer(200, data)
        })
    });
    assert!(matches!(fails(&server), RegistryError::Mismatch { .. }));

    let (server, image) = Server::with_image();
    server.script(move |asked, _| {
        asked.path.contains("/manifests/").then(|| Reply::Answer {
            status: 200,
            headers: vec![("Docker-Content-Digest".into(), Digest::of(b"other").to_string())],
            body: image.manifest.clone(),
        })
    });
    assert!(matches!(fails(&server), RegistryError::Mismatch { .. }));

    // By digest, whatever the head says.
    let (server, image) = Server::with_image();
    let digest = Digest::of(&image.manifest);
    server.put(&format!("app/manifests/{digest}"), OCI_MANIFEST, b"{}");
    let (_root, store) = store();
    let name = format!("{}/app@{digest}", server.host).parse().unwrap();
    let error = pull(&store, &client(), &name).unwrap_err();
    assert!(matches!(error, RegistryError::Mismatch { .. }), "{error}");
}

#[test]
fn huge_documents_are_not_read() {
    let (server, _) = Server::with_image();
    server.script(|asked, _| {
        asked.path.contains("/manifests/").then(|| Reply::Cut {
            headers: vec![],
            promised: 1 << 40,
            body: vec![b' '; 1000],
        })
    });
    let error = fails(&server);
    assert!(matches!(error, RegistryError::TooLarge { .. }), "{}", text(&error));

    let (server, _) = Server::with_image();
    server.script(|asked, _| {
        asked.path.contains("/manifests/").then(|| answer(200, vec![b' '; (4 << 20) + 1]))
    });
    assert!(matches!(fails(&server), RegistryError::TooLarge { .. }));
}

#[test]
fn sizes_beyond_the_limits_are_refused_before_anything_is_read() {
    for (what, size) in [("config", u64::from(u32::MAX)), ("layers", u64::MAX)] {
        let (server, image) = Server::with_image();
        let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
        let descriptor = &mut manifest[what];
        let descriptor = if what == "layers" { &mut descriptor[0] } else { descriptor };
        descriptor["size"] = size.into();
        server.put_manifest("app", "1", OCI_MANIFEST, manifest.to_string().as_bytes());
        let error = fails(&server);
        assert!(matches!(error, RegistryError::TooLarge { .. }), "{}", text(&error));
        assert_eq!(server.count("GET", &image.layer.to_string()), 0);
    }
}

#[test]
fn documents_of_the_wrong_kind_are_refused() {
    let image = TestImage::new(&[("a", b"b")]);
    let index = index(&[("amd64", &image)]);
    let manifest = image.manifest.clone();
    let helm = r#"{"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}"#;
    for (kind, data) in [
        (OCI_MANIFEST, index.as_slice()),
        (OCI_INDEX, &manifest),
        ("text/html", b"<html>"),
        ("", b""),
        (OCI_MANIFEST, b"[]"),
        (OCI_MANIFEST, helm.as_bytes()),
        (OCI_MANIFEST, br#"{"schemaVersion":1,"fsLayers":[]}"#),
    ] {
        let server = Server::start();
        server.put_image("app", "x", &image);
        server.put_manifest("app", "1", kind, data);
        let error = fails(&server);
        let refused =
            matches!(error, RegistryError::Document { .. } | RegistryError::NotAnImage { .. });
        assert!(refused, "{kind}: {}", text(&error));
    }
}

#[test]
fn an_index_that_holds_itself_or_lies_ends() {
    // Its own digest cannot be known, but indexes may be deep.
    let server = Server::start();
    let image = TestImage::new(&[("a", b"b")]);
    server.put_image("app", "x", &image);
    let mut top = index(&[("amd64", &image)]);
    for _ in 0..10 {
        server.put_manifest("app", "1", OCI_INDEX, &top);
        let mut inner = descriptor(OCI_INDEX, &top);
        inner["platform"] = serde_json::json!({ "os": "linux", "architecture": "amd64" });
        top = serde_json::json!({ "schemaVersion": 2, "manifests": [inner] })
            .to_string()
            .into_bytes();
    }
    assert!(matches!(fails(&server), RegistryError::TooMany { .. }));

    let server = Server::start();
    server.put_image("app", "x", &image);
    let lie = String::from_utf8(index(&[("amd64", &image)])).unwrap();
    let size = format!("\"size\":{}", image.manifest.len());
    server.put_manifest("app", "1", OCI_INDEX, lie.replace(&size, "\"size\":7").as_bytes());
    assert!(matches!(fails(&server), RegistryError::Size { .. }));
}

#[test]
fn a_killed_pull_is_made_good_by_the_next() {
    let server = Server::start();
    let image = TestImage::new(&[("a", b"1"), ("b", b"2"), ("c", b"3"), ("d", b"4"), ("e", b"5")]);
    server.put_image("app", "1", &image);
    // The last layer is lost, as if the power had gone.
    let last = image.blobs[4].0.to_string();
    server.script(move |asked, _| asked.is("GET", &last).then(|| answer(404, "")));
    let (_root, store) = store();
    let name = server.reference("app:1");
    let error = pull(&store, &client(), &name).unwrap_err();
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
    assert!(store.images().unwrap().is_empty());
    server.script(|_, _| None);
    let pulled = pull(&store, &client(), &name).unwrap();
    let found = store.resolve(&pulled.id.to_string()).unwrap();
    assert_eq!(store.layers(&found).unwrap().len(), 5);
    assert_eq!(store.images().unwrap().len(), 1);
}
