//! `--network` and `--publish`.

use std::path::Path;

use caisson_shim::network::publish::{ParsePortError, Port};

use crate::config::Network;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkOptionError {
    #[error("--publish")]
    Port(#[from] ParsePortError),
    #[error("--publish needs the network `bridge`: leave --network {0} out")]
    Unreachable(String),
    #[error(
        "--network host: the host's network cannot be a microVM's; `--network bridge` reaches out, and `-p` leads in"
    )]
    Host,
    #[error("--network {0}: each container has a microVM and a network of its own")]
    Container(String),
    #[error("--network {0}: the path of a network namespace is absolute, as ns:/run/netns/web")]
    Path(String),
    #[error(
        "--network {0}: there are `none`, `bridge` and `ns:PATH`, a network namespace of the host"
    )]
    Unknown(String),
}

/// The network that the flags ask for. Ports alone ask for the bridge.
pub fn network(name: Option<&str>, publish: &[String]) -> Result<Network, NetworkOptionError> {
    let ports = publish.iter().map(|port| port.parse::<Port>()).collect::<Result<Vec<_>, _>>()?;
    let unreachable = |network: Network, name: &str| match ports.is_empty() {
        true => Ok(network),
        false => Err(NetworkOptionError::Unreachable(name.to_owned())),
    };
    match name {
        None if ports.is_empty() => Ok(Network::None),
        None | Some("bridge" | "default") => Ok(Network::Bridge { ports }),
        Some(name @ "none") => unreachable(Network::None, name),
        Some("host") => Err(NetworkOptionError::Host),
        Some(name) if name.starts_with("container:") => {
            Err(NetworkOptionError::Container(name.to_owned()))
        }
        Some(name) => match name.strip_prefix("ns:").map(Path::new) {
            Some(path) if path.is_absolute() => {
                unreachable(Network::Namespace { path: path.to_owned() }, name)
            }
            Some(_) => Err(NetworkOptionError::Path(name.to_owned())),
            None => Err(NetworkOptionError::Unknown(name.to_owned())),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: Option<&str>, publish: &[&str]) -> Result<Network, NetworkOptionError> {
        let publish: Vec<_> = publish.iter().map(ToString::to_string).collect();
        network(name, &publish)
    }

    #[test]
    fn a_published_port_asks_for_the_bridge() {
        let ports = vec!["8080:80".parse().unwrap()];
        assert_eq!(of(None, &[]), Ok(Network::None));
        assert_eq!(of(Some("none"), &[]), Ok(Network::None));
        assert_eq!(of(Some("bridge"), &[]), Ok(Network::Bridge { ports: vec![] }));
        assert_eq!(of(None, &["8080:80"]), Ok(Network::Bridge { ports }));
        let path = "/run/netns/web".into();
        assert_eq!(of(Some("ns:/run/netns/web"), &[]), Ok(Network::Namespace { path }));
    }

    #[test]
    fn what_cannot_be_had_is_refused_with_the_way_out() {
        for (name, publish, words) in [
            (Some("host"), &[][..], "`-p` leads in"),
            (Some("container:web"), &[], "a network of its own"),
            (Some("ns:web"), &[], "ns:/run/netns/web"),
            (Some("web"), &[], "there are `none`, `bridge` and `ns:PATH`"),
            (Some("none"), &["80:80"], "leave --network none out"),
            (Some("ns:/run/netns/web"), &["80:80"], "needs the network `bridge`"),
        ] {
            let error = of(name, publish).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(matches!(of(None, &["80:80/udp"]), Err(NetworkOptionError::Port(_))));
    }
}
