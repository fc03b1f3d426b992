//! A registry on a port of the loopback interface.

use std::{
    fs,
    io::Write,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::host::{Host, Outcome, eventually};

pub(crate) struct Server {
    process: Child,
    pub(crate) name: String,
    directory: tempfile::TempDir,
}

/// `me` with the password `secret`.
const HTPASSWD: &str = "me:$2y$05$ae3yw2XzTpG3p1vth6pyJu2jQUStc.aznWJnyaSEH7/H8Y39H6bGu\n";

#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) password: bool,
    pub(crate) tls: bool,
}

/// A host and a registry, or a return from the test with the reason.
macro_rules! host_and_registry {
    ($plan:expr) => {
        match ($crate::host::Host::new(), $crate::server::Server::start($plan)) {
            (Some(host), Some(server)) => (host, server),
            _ => return,
        }
    };
}
pub(crate) use host_and_registry;

impl Server {
    pub(crate) fn start(plan: Plan) -> Option<Self> {
        if Command::new("docker-registry").arg("--version").output().is_err() {
            eprintln!("skipped: docker-registry is not installed");
            return None;
        }
        let directory = tempfile::Builder::new().prefix("caisson-registry-").tempdir().unwrap();
        let port = free_port();
        let at = |name: &str| directory.path().join(name);
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem:\n    rootdirectory: {}\n  \
             delete: {{enabled: true}}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            at("data").display()
        );
        if plan.tls {
            certificates(directory.path());
            config.push_str(&format!(
                "  tls:\n    certificate: {}\n    key: {}\n",
                at("server.crt").display(),
                at("server.key").display()
            ));
        }
        if plan.password {
            fs::write(at("htpasswd"), HTPASSWD).unwrap();
            config.push_str(&format!(
                "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                at("htpasswd").display()
            ));
        }
        fs::write(at("config.yml"), config).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(at("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { process, name: format!("localhost:{port}"), directory };
        eventually("the registry listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(server)
    }

    /// `localhost:port/<rest>`.
    pub(crate) fn image(&self, rest: &str) -> String {
        format!("{}/{rest}", self.name)
    }

    /// The authority that signed the registry's certificate.
    pub(crate) fn authority(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn certificates(directory: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(directory.join("ca.crt"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let names = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = names.signed_by(&key, &issuer).unwrap();
    fs::write(directory.join("server.crt"), certificate.pem()).unwrap();
    fs::write(directory.join("server.key"), key.serialize_pem()).unwrap();
}

/// Runs `caisson` with a Docker configuration of the test's own.
pub(crate) fn caisson(host: &Host, args: &[&str]) -> Outcome {
    caisson_with(host, args, b"", &[])
}

pub(crate) fn caisson_with(
    host: &Host,
    args: &[&str],
    input: &[u8],
    variables: &[(&str, &str)],
) -> Outcome {
    let mut command = host.command(args);
    command.env("DOCKER_CONFIG", host.path("docker")).env_remove("REGISTRY_AUTH_FILE");
    command.envs(variables.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that fails early does not read.
    let _ = child.stdin.take().unwrap().write_all(input);
    Outcome::of(args, child)
}

/// What `skopeo` says, or `None` where there is none.
pub(crate) fn skopeo(args: &[&str]) -> Option<String> {
    match Command::new("skopeo").arg("--insecure-policy").args(args).output() {
        Ok(output) => {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "skopeo {args:?}: {words}");
            Some(String::from_utf8(output.stdout).unwrap())
        }
        Err(error) => {
            eprintln!("skipped: no second opinion, as skopeo cannot be run: {error}");
            None
        }
    }
}
