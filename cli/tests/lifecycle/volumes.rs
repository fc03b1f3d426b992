//! Volumes from creation to removal.

use std::{fs, path::PathBuf};

use crate::host::{Host, host};

/// What containers see of a volume.
fn data(host: &Host, name: &str) -> PathBuf {
    host.path("root/volumes").join(name).join("_data")
}

fn names(host: &Host, filter: &str) -> String {
    host.caisson(&["volume", "ls", "-q", "--filter", filter]).succeeded().stdout
}

#[test]
fn a_volume_is_made_listed_shown_and_removed() {
    let host = host!();
    let create = ["volume", "create", "--label", "kind=test", "data"];
    host.caisson(&create).succeeded().printed("data\n");
    fs::write(data(&host, "data").join("file"), "kept").unwrap();
    host.caisson(&["volume", "create", "data"]).succeeded().printed("data\n");
    assert_eq!(fs::read_to_string(data(&host, "data").join("file")).unwrap(), "kept");
    let unnamed = host.caisson(&["volume", "create"]).succeeded().stdout;
    assert_eq!(unnamed.trim().len(), 64);
    host.caisson(&["volume", "ls"])
        .succeeded()
        .showed("DRIVER   VOLUME NAME\n")
        .showed("local    data\n");
    assert_eq!(names(&host, "label=kind=test"), "data\n");
    let place = data(&host, "data").display().to_string();
    let format = "{{.Name}} {{.Mountpoint}} {{.Driver}} {{json .Labels}}";
    host.caisson(&["volume", "inspect", "-f", format, "data"])
        .succeeded()
        .printed(&format!("data {place} local {{\"kind\":\"test\"}}\n"));
    host.caisson(&["inspect", "-f", "{{.Name}}", "data"]).succeeded().printed("data\n");
    host.caisson(&["volume", "rm", "data", "missing"])
        .exited_with(1)
        .printed("data\n")
        .complained("get missing: no such volume");
    host.caisson(&["volume", "rm", "-f", "missing"]).succeeded().printed("missing\n");
    host.caisson(&["volume", "inspect", "data"]).exited_with(1).complained("no such volume");
    assert!(!data(&host, "data").exists());
    for name in ["../x", "/x", "x", "a/b", "a\nb", &"x".repeat(129)] {
        host.caisson(&["volume", "create", name]).exited_with(1).complained("invalid characters");
    }
    host.caisson(&["volume", "create", "-d", "nfs", "data"]).exited_with(1).complained("local");
}

#[test]
fn a_volume_in_use_is_not_removed_and_outlives_its_containers() {
    let host = host!();
    let create = ["create", "--name", "user", "-v", "data:/data:ro", "tools"];
    host.caisson(&create).succeeded();
    let id = host.caisson(&["ps", "-aq", "--no-trunc"]).succeeded().stdout.trim().to_owned();
    fs::write(data(&host, "data").join("file"), "kept").unwrap();
    host.caisson(&["volume", "rm", "data"])
        .exited_with(1)
        .complained(&format!("remove data: volume is in use - [{id}]"));
    host.caisson(&["volume", "prune", "-af"]).succeeded();
    assert_eq!(names(&host, "dangling=false"), "data\n");
    let format = "{{json .Mounts}} {{json .HostConfig.Binds}}";
    host.caisson(&["inspect", "-f", format, "user"])
        .succeeded()
        .showed("\"Name\":\"data\"")
        .showed("\"Type\":\"volume\"")
        .showed("\"RW\":false")
        .showed("[\"data:/data:ro\"]");
    host.caisson(&["rm", "-v", "user"]).succeeded();
    assert_eq!(names(&host, "dangling=true"), "data\n");
    assert_eq!(fs::read_to_string(data(&host, "data").join("file")).unwrap(), "kept");
    host.caisson(&["volume", "rm", "data"]).succeeded();
    host.nothing_left();
}

#[test]
fn a_volume_that_nobody_has_named_goes_with_its_container_where_that_is_asked() {
    let host = host!();
    host.caisson(&["run", "--rm", "-v", "/data", "tools", "true"]).succeeded();
    assert_eq!(names(&host, "driver=local"), "");
    host.caisson(&["create", "--name", "one", "-v", "/data", "tools"]).succeeded();
    host.caisson(&["create", "--name", "two", "--mount", "dst=/data", "tools"]).succeeded();
    assert_eq!(names(&host, "dangling=false").lines().count(), 2);
    host.caisson(&["rm", "-v", "one"]).succeeded();
    assert_eq!(names(&host, "dangling=false").lines().count(), 1);
    host.caisson(&["rm", "two"]).succeeded();
    let left = names(&host, "dangling=true");
    assert_eq!(left.lines().count(), 1, "it was not asked for");
    host.caisson(&["volume", "create", "named"]).succeeded();
    host.caisson(&["volume", "prune", "-f"])
        .succeeded()
        .showed("Deleted Volumes:\n")
        .showed(left.trim());
    assert_eq!(names(&host, "driver=local"), "named\n");
    host.caisson(&["volume", "prune", "-f", "--filter", "label=x", "-a"]).succeeded();
    host.caisson(&["volume", "prune", "-f", "--filter", "all=1"]).succeeded().showed("named\n");
    host.caisson(&["volume", "prune", "-f"]).succeeded().printed("Total reclaimed space: 0B\n");
    host.nothing_left();
}

#[test]
fn an_images_volumes_are_made_where_nothing_else_is_mounted() {
    let host = host!();
    let tar = host.path("tree.tar").display().to_string();
    let volumes = "VOLUME [\"/data\", \"/logs/\", \"/tmp\"]";
    host.caisson(&["import", "--change", volumes, "--change", "CMD true", &tar, "with"])
        .succeeded();
    host.caisson(&["create", "--name", "user", "-v", "kept:/data", "--tmpfs", "/tmp", "with"])
        .succeeded();
    host.caisson(&["inspect", "-f", "{{json .Mounts}}", "user"])
        .succeeded()
        .showed("\"Destination\":\"/logs\"")
        .showed("\"Name\":\"kept\"");
    assert_eq!(names(&host, "dangling=false").lines().count(), 2);
    // Another takes what that one has, but where it mounts something itself.
    let from = ["--volumes-from", "user:ro", "-v", "mine:/logs"];
    host.caisson(&[&["create", "--name", "other"], &from[..], &["with"]].concat()).succeeded();
    host.caisson(&["inspect", "-f", "{{json .Mounts}}", "other"])
        .succeeded()
        .showed("\"Name\":\"mine\"")
        .showed("\"Name\":\"kept\"");
    host.caisson(&["volume", "rm", "kept"]).exited_with(1).complained("volume is in use");
    host.caisson(&["rm", "-v", "user", "other"]).succeeded();
    assert_eq!(names(&host, "driver=local"), "kept\nmine\n");
    host.caisson(&["create", "--volumes-from", "missing", "with"])
        .exited_with(125)
        .complained("No such container: missing");
    host.nothing_left();
}
