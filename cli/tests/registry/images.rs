//! Push, pull, run, save, history.

use std::fs;

use crate::server::{Plan, Server, caisson, caisson_with, host_and_registry, skopeo};

/// The digest in what `push` or `pull` prints.
fn digest(text: &str) -> String {
    let at = text.find("sha256:").unwrap_or_else(|| panic!("no digest in {text}"));
    text[at..at + 71].to_owned()
}

/// Pushes the host's image as `app:1`; the digest.
fn push(host: &crate::host::Host, server: &Server) -> String {
    let name = server.image("app:1");
    caisson(host, &["tag", "tools", &name]).succeeded();
    let pushed = caisson(host, &["push", &name]).succeeded();
    let begin = format!("The push refers to repository [{}]\n", server.image("app"));
    assert!(pushed.stdout.starts_with(&begin), "{pushed:?}");
    assert!(pushed.stdout.contains(": Pushed\n"), "{pushed:?}");
    let last = pushed.stdout.lines().last().unwrap();
    assert!(last.starts_with("1: digest: sha256:") && last.contains(" size: "), "{last}");
    digest(last)
}

#[test]
fn what_is_pushed_is_pulled_and_runs() {
    let (host, server) = host_and_registry!(Plan::default());
    let pushed = push(&host, &server);
    let name = server.image("app:1");
    if let Some(seen) = skopeo(&["inspect", "--tls-verify=false", &format!("docker://{name}")]) {
        assert!(seen.contains(&pushed), "skopeo saw another digest than {pushed}: {seen}");
    }
    // Again, nothing is sent.
    caisson(&host, &["push", &name]).succeeded().showed(": Layer already exists\n");
    for name in [name.as_str(), "tools"] {
        caisson(&host, &["rmi", name]).succeeded();
    }
    assert_eq!(caisson(&host, &["images", "-q"]).stdout, "");

    let pulled = caisson(&host, &["pull", &name]).succeeded();
    for line in [
        "1: Pulling from app\n".to_owned(),
        ": Pull complete\n".to_owned(),
        format!("Digest: {pushed}\nStatus: Downloaded newer image for {name}\n{name}\n"),
    ] {
        assert!(pulled.stdout.contains(&line), "no {line:?}: {pulled:?}");
    }
    caisson(&host, &["run", "--rm", &name]).succeeded().printed("default command\n");
    caisson(&host, &["pull", &name]).succeeded().showed("Status: Image is up to date for");
    caisson(&host, &["pull", "-q", &name]).succeeded().printed(&format!("{name}\n"));
    let format = "{{.Repository}} {{.Tag}} {{.Digest}}";
    caisson(&host, &["images", "--format", format])
        .succeeded()
        .printed(&format!("{} 1 {pushed}\n", server.image("app")));
    caisson(&host, &["inspect", "--format", "{{json .RepoDigests}}", &name])
        .succeeded()
        .printed(&format!("[\"{}@{pushed}\"]\n", server.image("app")));
    host.nothing_left();
}

#[test]
fn run_pulls_what_is_missing_and_what_it_is_told_to() {
    let (host, server) = host_and_registry!(Plan::default());
    push(&host, &server);
    let name = server.image("app:1");
    caisson(&host, &["rmi", &name]).succeeded();
    caisson(&host, &["run", "--rm", "--pull", "never", &name])
        .exited_with(125)
        .complained("No such image");
    let ran = caisson(&host, &["run", "--rm", &name]).exited_with(0).printed("default command\n");
    for words in ["Unable to find image", "Pulling from app", "Digest: sha256:"] {
        assert!(ran.stderr.contains(words), "no {words:?}: {ran:?}");
    }
    caisson(&host, &["run", "--rm", &name]).succeeded().printed("default command\n");
    caisson(&host, &["run", "--rm", "--pull", "always", &name])
        .exited_with(0)
        .complained("Status: Image is up to date");
    caisson(&host, &["run", "--rm", "-q", "--pull", "always", &name])
        .succeeded()
        .printed("default command\n");
    host.nothing_left();
}

#[test]
fn an_image_is_known_by_its_digest_alone() {
    let (host, server) = host_and_registry!(Plan::default());
    let pushed = push(&host, &server);
    for name in [&server.image("app:1"), "tools"] {
        caisson(&host, &["rmi", name]).succeeded();
    }
    let name = server.image(&format!("app@{pushed}"));
    caisson(&host, &["pull", &name]).succeeded().showed(&format!("Digest: {pushed}\n"));
    caisson(&host, &["images", "--format", "{{.Repository}}:{{.Tag}}"])
        .succeeded()
        .printed(&format!("{}:<none>\n", server.image("app")));
    caisson(&host, &["run", "--rm", &name]).succeeded().printed("default command\n");
    caisson(&host, &["rmi", &name]).succeeded().showed("Deleted: sha256:");
}

#[test]
fn all_tags_go_and_come_and_a_layer_is_mounted() {
    let (host, server) = host_and_registry!(Plan::default());
    push(&host, &server);
    let other = server.image("other:1");
    caisson(&host, &["tag", "tools", &other]).succeeded();
    caisson(&host, &["push", &other]).succeeded().showed(": Mounted from app\n");
    caisson(&host, &["tag", "tools", &server.image("app:2")]).succeeded();
    let all = caisson(&host, &["push", "-a", &server.image("app")]).succeeded();
    assert!(all.stdout.contains("\n1: digest:") && all.stdout.contains("\n2: digest:"), "{all:?}");
    for tag in ["app:1", "app:2", "other:1"] {
        caisson(&host, &["rmi", &server.image(tag)]).succeeded();
    }
    caisson(&host, &["pull", "-a", &server.image("app")]).succeeded();
    caisson(&host, &["images", "--format", "{{.Tag}}", &server.image("app")])
        .succeeded()
        .printed("1\n2\n");
    caisson(&host, &["search", &server.image("oth"), "--format", "{{.Name}}"])
        .succeeded()
        .printed("other\n");
    caisson(&host, &["pull", "-a", &server.image("app:1")])
        .exited_with(1)
        .complained("tag can't be used");
}

#[test]
fn a_mirror_answers_for_docker_hub() {
    let (host, server) = host_and_registry!(Plan::default());
    let name = server.image("library/hubbed:1");
    caisson(&host, &["tag", "tools", &name]).succeeded();
    caisson(&host, &["push", &name]).succeeded();
    caisson(&host, &["rmi", &name]).succeeded();
    let mirror = [("CAISSON_REGISTRY_MIRROR", server.name.as_str())];
    caisson_with(&host, &["run", "--rm", "-q", "hubbed:1"], b"", &mirror)
        .succeeded()
        .printed("default command\n");
    caisson(&host, &["images", "-q", "hubbed:1"]).succeeded().showed("\n");
}

#[test]
fn what_is_not_there_is_told() {
    let (host, server) = host_and_registry!(Plan::default());
    push(&host, &server);
    caisson(&host, &["pull", &server.image("app:9")])
        .exited_with(1)
        .complained("app:9 is not found on localhost")
        .complained("manifest unknown");
    caisson(&host, &["pull", "localhost:1/x"]).exited_with(1).complained("nothing listens there");
    caisson(&host, &["push", &server.image("none")])
        .exited_with(1)
        .complained("does not exist locally");
    caisson(&host, &["pull", "--platform", "linux/arm64", &server.image("app:1")])
        .exited_with(1)
        .complained("no image for linux/arm64; there are linux/amd64");
    caisson(&host, &["pull", "--platform", "x/../y", &server.image("app:1")])
        .exited_with(1)
        .complained("is no platform");
    caisson(&host, &["pull", "me/UPPER"]).exited_with(1).complained("lower-case");
}

#[test]
fn what_is_saved_is_loaded_here_and_by_others() {
    let (host, server) = host_and_registry!(Plan::default());
    let pushed = push(&host, &server);
    let name = server.image("app:1");
    let archive = host.path("saved.tar");
    let archive = archive.to_str().unwrap();
    caisson(&host, &["save", "-o", archive, &name, "tools"]).succeeded().printed("");
    let piped = caisson(&host, &["save", &name, "tools"]).succeeded();
    assert_eq!(piped.bytes, fs::read(archive).unwrap(), "the same by both ways");
    for (format, name) in [("docker-archive", name.as_str()), ("oci-archive", "1")] {
        let source = format!("{format}:{archive}:{name}");
        let Some(seen) = skopeo(&["inspect", &source]) else { break };
        assert!(seen.contains("\"Architecture\": \"amd64\""), "{format}: {seen}");
    }
    for name in [name.as_str(), "tools"] {
        caisson(&host, &["rmi", name]).succeeded();
    }
    caisson(&host, &["load", "-i", archive]).succeeded().showed("Loaded image: tools:latest\n");
    caisson(&host, &["run", "--rm", &name]).succeeded().printed("default command\n");
    // What is pushed after a round trip is the same.
    let again = caisson(&host, &["push", &name]).succeeded();
    assert_eq!(digest(again.stdout.lines().last().unwrap()), pushed);

    caisson(&host, &["save", "-o", "/no/such/dir/x", &name])
        .exited_with(1)
        .complained("/no/such/dir");
    caisson(&host, &["save", "-o", archive, "none"]).exited_with(1).complained("no such image");
    assert_eq!(fs::read(archive).unwrap(), piped.bytes, "a failure leaves the file");
    let before = fs::read_dir(host.path("")).unwrap().count();
    caisson(&host, &["save", "-o", archive, "none"]).exited_with(1);
    assert_eq!(fs::read_dir(host.path("")).unwrap().count(), before);
}

#[test]
fn history_has_dockers_columns() {
    let (host, _server) = host_and_registry!(Plan::default());
    let told = caisson(&host, &["history", "tools"]).succeeded();
    let mut heading = told.stdout.lines().next().unwrap().split("  ").filter(|w| !w.is_empty());
    let columns: Vec<&str> = heading.by_ref().map(str::trim).collect();
    assert_eq!(columns, ["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"]);
    let id = caisson(&host, &["images", "-q", "--no-trunc", "tools"]).succeeded().stdout;
    let ids = caisson(&host, &["history", "-q", "--no-trunc", "tools"]).succeeded().stdout;
    assert_eq!(ids.lines().next(), id.lines().next());
    caisson(&host, &["history", "-H=false", "--format", "{{.Size}}", "tools"]).succeeded();
    caisson(&host, &["image", "history", "none"]).exited_with(1).complained("no such image");
}
