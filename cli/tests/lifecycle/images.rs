//! Images: listed, named, held by containers.

use crate::host::host;

#[test]
fn images_are_listed_tagged_and_removed() {
    let host = host!();
    let listed = host.caisson(&["images"]).succeeded();
    assert!(listed.stdout.starts_with("REPOSITORY   TAG"), "{listed:?}");
    let id = host.caisson(&["images", "-q", "tools"]).succeeded().stdout;
    assert_eq!(id.trim().len(), 12);
    host.caisson(&["tag", "tools", "other:1"]).succeeded();
    host.caisson(&["images", "--format", "{{.Repository}}:{{.Tag}}"])
        .succeeded()
        .showed("other:1\n");
    host.caisson(&["images", "-q"]).succeeded().printed(&id);
    host.caisson(&["rmi", "other:1"]).succeeded().printed("Untagged: other:1\n");
    host.caisson(&["rmi", "tools"]).succeeded().showed("Untagged: tools:latest\nDeleted: sha256:");
    host.caisson(&["rmi", "tools"]).exited_with(1).complained("tools");
    host.caisson(&["images", "-q"]).succeeded().printed("");
}

#[test]
fn an_image_in_use_names_its_containers() {
    let host = host!();
    host.caisson(&["create", "--name", "holder", "tools"]).succeeded();
    host.caisson(&["rmi", "tools"]).exited_with(1).complained("used by container holder (");
    host.caisson(&["rmi", "-f", "tools"]).succeeded();
    host.caisson(&["start", "-a", "holder"]).succeeded().printed("default command\n");
    host.caisson(&["rm", "holder"]).succeeded();
    host.nothing_left();
}

#[test]
fn the_management_commands_are_the_same() {
    let host = host!();
    host.caisson(&["container", "run", "--name", "managed", "tools"])
        .succeeded()
        .printed("default command\n");
    host.caisson(&["container", "ls", "-a", "--format", "{{.Names}}"])
        .succeeded()
        .printed("managed\n");
    host.caisson(&["container", "inspect", "tools"]).exited_with(1).complained("No such container");
    host.caisson(&["container", "rm", "managed"]).succeeded();
    host.caisson(&["image", "ls", "-q"]).succeeded();
    host.caisson(&["image", "prune"]).exited_with(1).complained("--force").showed("[y/N]");
    host.import("tools");
    assert_eq!(host.caisson(&["images", "-q", "-f", "dangling=true"]).stdout.lines().count(), 1);
    host.caisson(&["image", "prune", "-f", "--filter", "until=2000-01-01"])
        .succeeded()
        .printed("Total reclaimed space: 0B\n");
    host.caisson_with_input(&["image", "prune"], b"y\n").succeeded().showed("deleted: sha256:");
    assert_eq!(host.caisson(&["images", "-aq"]).stdout.lines().count(), 1);
    host.caisson(&["create", "--name", "user", "tools"]).succeeded();
    host.caisson(&["image", "prune", "-af"]).succeeded().printed("Total reclaimed space: 0B\n");
    host.caisson(&["rm", "user"]).succeeded();
    host.caisson(&["image", "prune", "-af"])
        .succeeded()
        .showed("untagged: tools:latest")
        .showed("deleted: sha256:");
    host.caisson(&["images", "-aq"]).succeeded().printed("");
    host.caisson(&["image", "prune", "-f", "--filter", "size=1"])
        .exited_with(1)
        .complained("invalid filter \"size=1\"");
}

#[test]
fn what_is_no_image_is_refused() {
    let host = host!();
    host.caisson(&["load", "-i", "/etc/passwd"]).exited_with(1).complained("/etc/passwd");
    host.caisson(&["load", "-i", "/no/such/file"]).exited_with(1).complained("/no/such/file");
    host.caisson_with_input(&["load"], b"garbage").exited_with(1).complained("standard input");
    host.caisson(&["import", "/no/such/file", "x"]).exited_with(1).complained("/no/such/file");
}

#[test]
fn info_and_version_tell() {
    let host = host!();
    host.caisson(&["info"]).succeeded().showed("Images: 1\n").showed("Containers: 0\n");
    host.caisson(&["version", "-f", "{{.Client.Version}}"])
        .succeeded()
        .printed(concat!(env!("CARGO_PKG_VERSION"), "\n"));
    host.caisson(&["completion", "bash"]).succeeded().showed("_caisson");
    host.caisson(&["doctor", "--format", "json"]).showed("\"runs_by\"");
    host.caisson(&["--help"]).succeeded().showed("Common Commands:");
    host.caisson(&["run", "--help"]).succeeded().showed("-m, --memory bytes");
}
