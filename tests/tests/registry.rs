//! Images to a registry and back, wherever containers run: the registry is on the host.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
};

use caisson_tests::{Host, eventually, host};

struct Registry {
    process: Child,
    port: u16,
    _data: tempfile::TempDir,
}

impl Registry {
    fn start(host: &Host) -> Option<Self> {
        if Command::new("docker-registry").arg("--version").output().is_err() {
            eprintln!("skipped: docker-registry is not installed");
            return None;
        }
        let data = host.scratch();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: 127.0.0.1:{port}\n",
            data.path().display()
        );
        let file = data.path().join("config.yml");
        fs::write(&file, config).expect("write the configuration");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start the registry");
        let registry = Self { process, port, _data: data };
        let listens = || TcpStream::connect(("127.0.0.1", port)).is_ok();
        eventually("the registry listens", 20, listens);
        Some(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn an_image_goes_to_a_registry_and_is_pulled_and_run() {
    let host = host!();
    let Some(registry) = Registry::start(host) else { return };
    let name = format!("localhost:{}/e2e/busybox:1", registry.port);
    host.caisson(["tag", "busybox", &name]).succeeded();
    host.caisson(["push", &name]).succeeded().printed_something_like("1: digest: sha256:");
    host.caisson(["rmi", &name]).succeeded();
    host.caisson(["run", "--rm", "-q", &name, "echo", "pulled"]).succeeded().printed("pulled\n");
    host.caisson(["pull", &name]).succeeded().printed_something_like("Digest: sha256:");
    host.caisson(["run", "--rm", "--pull", "never", &name, "echo", "here"])
        .succeeded()
        .printed("here\n");
    host.caisson(["rmi", &name]).succeeded();
    host.caisson(["run", "--rm", "--pull", "never", &name, "true"])
        .exited_with(125)
        .complained_about("No such image");
}

#[test]
fn an_archive_is_saved_where_it_was_asked_for() {
    let host = host!();
    let scratch = host.scratch();
    let archive = scratch.path().join("busybox.tar");
    let archive = archive.to_str().expect("a path in UTF-8");
    host.caisson(["save", "-o", archive, "busybox:latest"]).succeeded();
    host.caisson(["load", "-i", archive]).succeeded().printed("Loaded image: busybox:latest\n");
}
