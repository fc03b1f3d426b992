//! Pushing, to a registry that keeps what it is given and misbehaves between.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::*;
use crate::Digest;

/// The state of a registry that takes uploads.
#[derive(Default)]
struct Uploads {
    partial: Vec<u8>,
    blobs: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, Vec<u8>>,
    patches: usize,
}

type Shared = Arc<Mutex<Uploads>>;

fn located(status: u16, headers: &[(&str, String)]) -> Reply {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    Reply::Answer { status, headers: headers.collect(), body: vec![] }
}

/// Takes uploads; `patch` may do something else with a patch, by its number.
fn takes_uploads(
    server: &Server,
    patch: impl Fn(&mut Uploads, &Asked, usize) -> Option<Reply> + Send + Sync + 'static,
) -> Shared {
    let shared = Shared::default();
    let state = Arc::clone(&shared);
    server.script(move |asked, _| {
        let mut state = state.lock().unwrap();
        let session = ("Location", "/v2/new/blobs/uploads/u?state=1".to_owned());
        let range =
            |state: &Uploads| ("Range", format!("0-{}", state.partial.len().saturating_sub(1)));
        let name = asked.path.rsplit('/').next().unwrap().to_owned();
        match asked.method.as_str() {
            "HEAD" => Some(match state.blobs.get(&name) {
                Some(data) => answer(200, data.clone()),
                None => answer(404, ""),
            }),
            "POST" => {
                state.partial.clear();
                Some(located(202, &[session]))
            }
            "PATCH" => {
                state.patches += 1;
                let number = state.patches;
                if let Some(reply) = patch(&mut state, asked, number) {
                    return Some(reply);
                }
                state.partial.extend(&asked.body);
                Some(located(202, &[session, range(&state)]))
            }
            "GET" if asked.path.contains("/uploads/") => {
                Some(located(204, &[session, range(&state)]))
            }
            "PUT" if asked.path.contains("/uploads/") => {
                let data = std::mem::take(&mut state.partial);
                let digest = Digest::of(&data).to_string();
                let wanted = asked.path.split("digest=").nth(1)?.replace("%3A", ":");
                if wanted != digest {
                    return Some(answer(400, r#"{"errors":[{"code":"DIGEST_INVALID"}]}"#));
                }
                state.blobs.insert(digest, data);
                Some(answer(201, ""))
            }
            "PUT" => {
                state.manifests.insert(name, asked.body.clone());
                Some(answer(201, ""))
            }
            _ => None,
        }
    });
    shared
}

/// A store with an image from elsewhere, under a name of this server.
fn with_image(server: &Server, data: &[u8]) -> (tempfile::TempDir, Store, TestImage) {
    let elsewhere = Server::start();
    let image = TestImage::new(&[("file", data)]);
    elsewhere.put_image("app", "1", &image);
    let (root, store) = store();
    pull(&store, &client(), &elsewhere.reference("app:1")).unwrap();
    let name = format!("{}/app:1", elsewhere.host);
    store.tag(&name, &server.reference("new:1")).unwrap();
    (root, store, image)
}

#[test]
fn what_is_pushed_is_what_was_pulled_byte_for_byte() {
    let server = Server::start();
    let state = takes_uploads(&server, |_, _, _| None);
    let (_root, store, image) = with_image(&server, b"data");
    let pushed = store.push(&client(), &server.reference("new:1"), &Silent).unwrap();
    assert_eq!(pushed.digest, Digest::of(&image.manifest));
    {
        let state = state.lock().unwrap();
        assert_eq!(state.manifests["1"], image.manifest);
        for (digest, data) in &image.blobs {
            assert_eq!(&state.blobs[&digest.to_string()], data);
        }
    }
    // The second time only the manifest goes.
    store.push(&client(), &server.reference("new:1"), &Silent).unwrap();
    assert_eq!(state.lock().unwrap().patches, 2);
    let last = server.asked().pop().unwrap();
    assert!(last.is("PUT", "/v2/new/manifests/1"), "the manifest comes last: {last:?}");
    let found = store.resolve(&server.reference("new:1").to_string()).unwrap();
    assert_eq!(found.repo_digests.len(), 2);
}

#[test]
fn an_upload_that_breaks_off_is_continued() {
    let server = Server::start();
    let state = takes_uploads(&server, |state, asked, number| {
        // Half of the first one arrives.
        (number == 1).then(|| {
            state.partial.extend(&asked.body[..asked.body.len() / 2]);
            Reply::Hangup
        })
    });
    let (_root, store, image) = with_image(&server, &noise(100_000));
    store.push(&client(), &server.reference("new:1"), &Silent).unwrap();
    assert_eq!(state.lock().unwrap().blobs[&image.layer.to_string()], image.layer_data());
    let asked = server.asked();
    let half = image.layer_data().len() / 2;
    let second = asked.iter().filter(|asked| asked.method == "PATCH").nth(1).unwrap();
    assert!(second.header("content-range").unwrap().starts_with(&format!("{half}-")));
}

#[test]
fn an_upload_that_never_succeeds_is_given_up() {
    for status in [500, 429] {
        let server = Server::start();
        let state = takes_uploads(&server, move |_, _, _| Some(answer(status, "")));
        let (_root, store, _) = with_image(&server, b"data");
        let error = store.push(&client(), &server.reference("new:1"), &Silent).unwrap_err();
        let expected =
            matches!(error, RegistryError::Status { .. } | RegistryError::TooManyRequests { .. });
        assert!(expected, "{error}");
        let state = state.lock().unwrap();
        assert!(state.patches <= 4 && state.manifests.is_empty());
    }
}

#[test]
fn a_registry_that_counts_wrongly_is_refused() {
    let server = Server::start();
    takes_uploads(&server, |_, _, _| {
        let range = ("Range", "0-99999999".to_owned());
        Some(located(202, &[("Location", "/v2/new/blobs/uploads/u".to_owned()), range]))
    });
    let (_root, store, _) = with_image(&server, b"data");
    let error = store.push(&client(), &server.reference("new:1"), &Silent).unwrap_err();
    assert!(error.to_string().contains("tell how far"), "{error}");
}

#[test]
fn a_layer_is_mounted_from_where_it_came() {
    let server = Server::start();
    let image = TestImage::new(&[("file", b"data")]);
    server.put_image("app", "1", &image);
    let (_root, store) = store();
    pull(&store, &client(), &server.reference("app:1")).unwrap();
    let state = takes_uploads(&server, |_, _, _| None);
    let mounted = Arc::clone(&state);
    let inner = move |asked: &Asked| {
        let from_app = asked.method == "POST" && asked.path.contains("from=app");
        from_app.then(|| {
            let digest = asked.path.split("mount=").nth(1).unwrap().split('&').next().unwrap();
            let digest = digest.replace("%3A", ":");
            mounted.lock().unwrap().blobs.insert(digest, vec![]);
            answer(201, "")
        })
    };
    // Mounts are answered before all else.
    server.script_before(inner);
    store.tag(&server.reference("app:1").to_string(), &server.reference("new:1")).unwrap();
    store.push(&client(), &server.reference("new:1"), &Silent).unwrap();
    let state = state.lock().unwrap();
    assert!(state.blobs.contains_key(&image.layer.to_string()));
    assert_eq!(state.patches, 1, "the configuration alone is uploaded");
    assert_eq!(state.manifests["1"], image.manifest);
}

#[test]
fn what_cannot_be_pushed_is_told() {
    let server = Server::start();
    let (root, store, image) = with_image(&server, b"data");
    let by_digest = format!("{}/new@{}", server.host, Digest::of(b"")).parse().unwrap();
    let error = store.push(&client(), &by_digest, &Silent).unwrap_err();
    assert!(error.to_string().contains("under a tag"), "{error}");
    let error = store.push(&client(), &server.reference("none:1"), &Silent).unwrap_err();
    assert!(error.to_string().contains("no such image"), "{error}");
    takes_uploads(&server, |_, _, _| None);
    std::fs::remove_file(root.path().join("blobs/sha256").join(image.layer.hex())).unwrap();
    let error = store.push(&client(), &server.reference("new:1"), &Silent).unwrap_err();
    assert!(matches!(error, RegistryError::NoBlob { .. }), "{error}");
}
