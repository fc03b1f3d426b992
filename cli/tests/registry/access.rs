//! Passwords, certificates, credential helpers.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    process::Command,
};

use crate::{
    host::Host,
    server::{Plan, Server, caisson, caisson_with, host_and_registry},
};

fn tagged(host: &Host, server: &Server) -> String {
    let name = server.image("app:1");
    caisson(host, &["tag", "tools", &name]).succeeded();
    name
}

fn log_in(host: &Host, server: &Server, password: &[u8]) -> crate::host::Outcome {
    let args = ["login", "-u", "me", "--password-stdin", &server.name];
    caisson_with(host, &args, password, &[])
}

#[test]
fn a_password_is_verified_kept_privately_used_and_forgotten() {
    let (host, server) = host_and_registry!(Plan { password: true, ..Plan::default() });
    let name = tagged(&host, &server);
    let login = format!("caisson login {}", server.name);
    caisson(&host, &["push", &name]).exited_with(1).complained(&login);
    caisson(&host, &["pull", &name]).exited_with(1).complained(&login);
    log_in(&host, &server, b"wrong").exited_with(1).complained("refuses access");
    let file = host.path("docker/config.json");
    assert!(!file.exists(), "what is wrong is not kept");

    log_in(&host, &server, b"secret\n").exited_with(0).showed("Login Succeeded\n");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    caisson(&host, &["push", &name]).succeeded();
    caisson(&host, &["rmi", &name]).succeeded();
    caisson(&host, &["run", "--rm", "-q", &name]).succeeded().printed("default command\n");
    caisson(&host, &["login", &server.name]).exited_with(0).showed("existing credentials");

    let removing = format!("Removing login credentials for {}\n", server.name);
    caisson(&host, &["logout", &server.name]).succeeded().printed(&removing);
    let none = format!("Not logged in to {}\n", server.name);
    caisson(&host, &["logout", &server.name]).succeeded().printed(&none);
    caisson(&host, &["pull", &name]).exited_with(1).complained(&login);
}

#[test]
fn a_login_that_cannot_be_asked_for_is_refused() {
    let (host, server) = host_and_registry!(Plan { password: true, ..Plan::default() });
    caisson(&host, &["login", &server.name]).exited_with(1).complained("non TTY");
    caisson(&host, &["login", "--password-stdin", &server.name])
        .exited_with(1)
        .complained("Must provide --username");
    caisson(&host, &["login", "-u", "me", "-p", "x", "--password-stdin", &server.name])
        .exited_with(1)
        .complained("mutually exclusive");
    caisson(&host, &["login", "a b"]).exited_with(1).complained("not the name of a registry");
}

#[test]
fn podmans_file_is_read() {
    let (host, server) = host_and_registry!(Plan { password: true, ..Plan::default() });
    let name = tagged(&host, &server);
    let file = host.path("auth.json");
    // me:secret
    let auth = format!("{{\"auths\":{{\"{}\":{{\"auth\":\"bWU6c2VjcmV0\"}}}}}}", server.name);
    fs::write(&file, auth).unwrap();
    let variables = [("REGISTRY_AUTH_FILE", file.to_str().unwrap())];
    caisson_with(&host, &["push", &name], b"", &variables).succeeded();
}

#[test]
fn a_credential_helper_keeps_the_password() {
    let (host, server) = host_and_registry!(Plan { password: true, ..Plan::default() });
    let name = tagged(&host, &server);
    let helpers = host.path("helpers");
    fs::create_dir_all(&helpers).unwrap();
    fs::create_dir_all(host.path("docker")).unwrap();
    fs::write(host.path("docker/config.json"), r#"{"credsStore":"kept","other":1}"#).unwrap();
    let kept = host.path("kept.json");
    let script = format!(
        "#!/bin/sh\ncase $1 in\nstore) cat >{0} ;;\nget) cat >/dev/null; cat {0} 2>/dev/null || \
         {{ echo credentials not found in native keychain; exit 1; }} ;;\n\
         erase) cat >/dev/null; rm -f {0} ;;\nesac\n",
        kept.display()
    );
    let program = helpers.join("docker-credential-kept");
    // By another process: a child that a test beside this one forks would hold the file
    // open for writing, and so it could not be executed (ETXTBSY).
    let write = "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\"";
    let mut writer = Command::new("sh");
    writer.args(["-c", write]).arg(&program).arg(script);
    assert!(writer.status().unwrap().success());
    let path = format!("{}:{}", helpers.display(), std::env::var("PATH").unwrap());
    let variables = [("PATH", path.as_str())];
    let args = ["login", "-u", "me", "--password-stdin", &server.name];
    caisson_with(&host, &args, b"secret", &variables).succeeded().printed("Login Succeeded\n");
    let config = fs::read_to_string(host.path("docker/config.json")).unwrap();
    assert!(!config.contains("auth\":") && config.contains("\"other\""), "{config}");
    assert!(fs::read_to_string(&kept).unwrap().contains("secret"));
    caisson_with(&host, &["push", &name], b"", &variables).succeeded();
    caisson_with(&host, &["logout", &server.name], b"", &variables).succeeded().showed("Removing");
    assert!(!kept.exists());
    caisson_with(&host, &["push", &name], b"", &variables).exited_with(1).complained("login");
    // One that is missing is named.
    let error = caisson(&host, &["push", &name]).exited_with(1);
    assert!(error.stderr.contains("docker-credential-kept"), "{error:?}");
}

#[test]
fn a_private_authority_must_be_named() {
    let (host, server) = host_and_registry!(Plan { tls: true, ..Plan::default() });
    let name = tagged(&host, &server);
    caisson(&host, &["push", &name])
        .exited_with(1)
        .complained("does not prove who it is")
        .complained("--tls-ca");
    let authority = server.authority();
    let authority = authority.to_str().unwrap();
    caisson(&host, &["push", "--tls-ca", authority, &name]).succeeded();
    let variables = [("CAISSON_TLS_CA", authority)];
    caisson(&host, &["rmi", &name]).succeeded();
    caisson_with(&host, &["run", "--rm", "-q", &name], b"", &variables)
        .succeeded()
        .printed("default command\n");
    caisson(&host, &["pull", "--tls-verify=false", &name]).succeeded();
    caisson(&host, &["pull", "--insecure-registry", &server.name, &name]).succeeded();
    caisson(&host, &["pull", "--tls-verify=true", &name]).exited_with(1).complained("prove");
    // Any file will not do.
    let wrong = host.path("wrong.crt");
    symlink("/etc/passwd", &wrong).unwrap();
    caisson(&host, &["pull", "--tls-ca", wrong.to_str().unwrap(), &name])
        .exited_with(1)
        .complained("holds no certificate");
}
