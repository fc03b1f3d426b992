//! How registries are spoken to: whom to trust, where Docker Hub is, how patient to be.

use std::path::PathBuf;
use std::time::Duration;

/// Choices of the caller. The default trusts the system's certificate authorities and
/// speaks plain HTTP to loopback addresses alone.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Hosts (`host` or `host:port`) whose certificates are not checked and that may speak
    /// plain HTTP.
    pub insecure: Vec<String>,
    /// Files of certificate authorities to trust beside the system's.
    pub ca_files: Vec<PathBuf>,
    /// `<host>/*.crt`, `*.cert` and `*.key`, as Docker reads them.
    pub certs_dir: PathBuf,
    /// Registries that are asked for Docker Hub's images before it is.
    pub mirrors: Vec<String>,
    pub patience: Patience,
}

impl Default for RegistryOptions {
    fn default() -> RegistryOptions {
        RegistryOptions {
            insecure: Vec::new(),
            ca_files: Vec::new(),
            certs_dir: PathBuf::from("/etc/docker/certs.d"),
            mirrors: Vec::new(),
            patience: Patience::default(),
        }
    }
}

impl RegistryOptions {
    /// Whether `host` was named as insecure, with or without its port.
    pub(crate) fn is_insecure(&self, host: &str) -> bool {
        self.insecure.iter().any(|named| {
            named == host || (!has_port(named) && without_port(host) == named.as_str())
        })
    }
}

/// Deadlines and retries. No transfer is given a total time: what moves may go on.
#[derive(Clone, Debug)]
pub struct Patience {
    /// To resolve the name and to connect, TLS included.
    pub connect: Duration,
    /// From the request to the head of its answer.
    pub first_byte: Duration,
    /// Without a byte, sent or received.
    pub stall: Duration,
    /// Of a blob, what `stall` must bring at least.
    pub stall_bytes: u64,
    /// For the whole of a small document.
    pub document: Duration,
    /// Tries of a request or, without progress between them, of a transfer.
    pub attempts: u32,
    /// Before the second try; doubled each time.
    pub first_pause: Duration,
    /// A registry that asks for a longer pause is believed, and the command fails.
    pub longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            connect: Duration::from_secs(15),
            first_byte: Duration::from_secs(60),
            stall: Duration::from_secs(30),
            stall_bytes: 4096,
            document: Duration::from_secs(120),
            attempts: 5,
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(60),
        }
    }
}

impl Patience {
    /// Before the try after `failures` of them.
    pub(crate) fn pause(&self, failures: u32) -> Duration {
        let doubled = self.first_pause.saturating_mul(1 << failures.saturating_sub(1).min(10));
        doubled.min(self.longest_pause)
    }
}

/// Without `:port`; an IPv6 address keeps its brackets.
pub(crate) fn without_port(host: &str) -> &str {
    match host.rfind(':') {
        Some(colon) if !host.ends_with(']') => &host[..colon],
        _ => host,
    }
}

fn has_port(host: &str) -> bool {
    without_port(host).len() != host.len()
}

/// Whether `host` is this one by a name or address that cannot mean another.
pub(crate) fn is_loopback(host: &str) -> bool {
    let host = without_port(host);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_by_name_and_address() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example.org", "10.0.0.1:5000", "[fe80::1]", "docker.io", ""] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn an_insecure_host_is_named_with_or_without_its_port() {
        let options =
            RegistryOptions { insecure: vec!["a:1".into(), "b".into()], ..Default::default() };
        assert!(
            options.is_insecure("a:1") && options.is_insecure("b:2") && options.is_insecure("b")
        );
        assert!(!options.is_insecure("a:2") && !options.is_insecure("a"));
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let patience = Patience::default();
        assert_eq!(patience.pause(1), Duration::from_millis(500));
        assert_eq!(patience.pause(3), Duration::from_secs(2));
        assert_eq!(patience.pause(40), patience.longest_pause);
    }
}
