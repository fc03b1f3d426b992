//! Who one is, where one is sent, and what goes along.

use super::*;

fn credentials(host: &str, user: &str, password: &str) -> (tempfile::TempDir, CredentialStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = CredentialStore::at(directory.path().join("config.json"));
    let (user, password) = (user.into(), password.into());
    store.store(host, &Credentials::Password { user, password }).unwrap();
    (directory, store)
}

fn challenge(text: &str) -> Reply {
    let headers = vec![("WWW-Authenticate".to_owned(), text.to_owned())];
    let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
    Reply::Answer { status: 401, headers, body: body.to_vec() }
}

/// Wants `me:secret`.
fn wants_password(server: &Server) {
    server.script(|asked, _| {
        // me:secret
        (asked.header("authorization") != Some("Basic bWU6c2VjcmV0"))
            .then(|| challenge("Basic realm=\"x\""))
    });
}

/// Wants a token for the scope, and gives one to everybody.
fn wants_token(server: &Server) {
    let host = server.host.clone();
    server.script(move |asked, _| {
        if asked.path.starts_with("/token") {
            let scope = asked.path.split("scope=").nth(1).unwrap_or("none");
            let scope = scope.split('&').next().unwrap();
            return Some(answer(200, format!(r#"{{"access_token":"for-{scope}"}}"#)));
        }
        let wanted = "Bearer for-repository%3Aapp%3Apull";
        (asked.header("authorization") != Some(wanted))
            .then(|| challenge(&format!("Bearer realm=\"http://{host}/token\",service=\"s v\"")))
    });
}

#[test]
fn a_password_is_sent_when_it_is_asked_for() {
    let (server, _) = Server::with_image();
    wants_password(&server);
    let (_directory, good) = credentials(&server.host, "me", "secret");
    let (_root, store) = store();
    let client = client_with(RegistryOptions::default(), Some(&good));
    pull(&store, &client, &server.reference("app:1")).unwrap();
    assert_eq!(server.asked()[0].header("authorization"), None, "not before it is asked for");

    let error = fails(&server).to_string();
    let login = format!("caisson login {}", server.host);
    assert!(error.contains(&login) && error.contains("authentication required"), "{error}");
    let (_directory, bad) = credentials(&server.host, "me", "wrong");
    let client = client_with(RegistryOptions::default(), Some(&bad));
    let error = pull(&store, &client, &server.reference("app:1")).unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
}

#[test]
fn a_login_is_verified() {
    let (server, _) = Server::with_image();
    wants_password(&server);
    let password =
        |password: &str| Credentials::Password { user: "me".into(), password: password.into() };
    client().verify(&server.host, &password("secret")).unwrap();
    let error = client().verify(&server.host, &password("wrong")).unwrap_err();
    assert!(matches!(error, RegistryError::BadCredentials { .. }), "{error}");
}

#[test]
fn a_token_is_fetched_once_for_its_scope() {
    let (server, _) = Server::with_image();
    wants_token(&server);
    let (_root, store) = store();
    pull(&store, &client(), &server.reference("app:1")).unwrap();
    assert_eq!(server.count("GET", "/token"), 1);
    let asked = server.asked();
    let token = asked.iter().find(|asked| asked.path.starts_with("/token")).unwrap();
    assert_eq!(token.path, "/token?service=s%20v&scope=repository%3Aapp%3Apull");
}

#[test]
fn a_token_that_has_run_out_is_renewed() {
    let (server, _) = Server::with_image();
    let host = server.host.clone();
    server.script(move |asked, nth| {
        if asked.path.starts_with("/token") {
            return Some(answer(200, format!(r#"{{"token":"t{nth}"}}"#)));
        }
        let again =
            asked.path.contains("/blobs/") && asked.header("authorization") == Some("Bearer t0");
        (asked.header("authorization").is_none() || again)
            .then(|| challenge(&format!("Bearer realm=\"http://{host}/token\"")))
    });
    let (_root, store) = store();
    pull(&store, &client(), &server.reference("app:1")).unwrap();
    assert_eq!(server.count("GET", "/token"), 2);
}

#[test]
fn credentials_stay_with_their_host() {
    let (server, image) = Server::with_image();
    let (other, _) = Server::with_image();
    let elsewhere = format!("http://{}/v2/app/blobs/{}", other.host, image.layer);
    let layer = image.layer.to_string();
    server.script(move |asked, _| {
        if asked.header("authorization").is_none() {
            return Some(challenge("Basic"));
        }
        asked.is("GET", &layer).then(|| redirect(&elsewhere))
    });
    let (_directory, good) = credentials(&server.host, "me", "secret");
    let (_root, store) = store();
    let client = client_with(RegistryOptions::default(), Some(&good));
    pull(&store, &client, &server.reference("app:1")).unwrap();
    let asked = other.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("authorization"), None);
}

#[test]
fn redirects_to_nowhere_are_refused() {
    for (to, why) in [
        ("file:///etc/passwd", "no HTTP address"),
        ("ftp://127.0.0.1/x", "no HTTP address"),
        ("http://user:pw@127.0.0.1/", "no HTTP address"),
        ("/v2/app/manifests/1", "without an end"),
    ] {
        let (server, _) = Server::with_image();
        server.script(move |asked, _| asked.path.contains("/manifests/").then(|| redirect(to)));
        let error = fails(&server).to_string();
        assert!(error.contains(why), "{to}: {error}");
    }
}

#[test]
fn a_strange_challenge_or_realm_is_refused() {
    for (text, part) in [
        ("Negotiate", "a login of a kind"),
        ("Bearer realm=\"http://registry.example/token\"", "no safe address"),
        ("Bearer realm=\"file:///etc/passwd\"", "no safe address"),
    ] {
        let (server, _) = Server::with_image();
        server.script(move |_, _| Some(challenge(text)));
        let error = fails(&server).to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn tokens_that_are_none_are_refused() {
    for body in ["{}", "[]", "<html>", r#"{"token":"a\r\nX-Evil: 1"}"#, r#"{"token":""}"#] {
        let (server, _) = Server::with_image();
        let host = server.host.clone();
        server.script(move |asked, _| match asked.path.starts_with("/token") {
            true => Some(answer(200, body)),
            false => Some(challenge(&format!("Bearer realm=\"http://{host}/token\""))),
        });
        let error = fails(&server);
        assert!(matches!(error, RegistryError::Json { .. }), "{body}: {}", text(&error));
    }
}

#[test]
fn what_is_no_registry_or_is_not_there_is_told() {
    let (server, _) = Server::with_image();
    server.script(|_, _| Some(answer(404, "<html>")));
    assert!(matches!(fails(&server), RegistryError::NotARegistry { .. }));

    let (root, store) = store();
    let error = pull(&store, &client(), &"localhost:1/app".parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("nothing listens there"), "{}", text(&error));
    drop(root);

    let (server, _) = Server::with_image();
    let (_root, store) = super::store();
    let error = pull(&store, &client(), &server.reference("nothing:1")).unwrap_err();
    let words = error.to_string();
    assert!(
        words.contains("/nothing:1 is not found") && words.contains("it is unknown"),
        "{words}"
    );
}
