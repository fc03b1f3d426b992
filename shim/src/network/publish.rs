//! Ports of the host that lead into a container: the shim takes connections and carries their
//! bytes. They go with the shim, and nothing of them is left in the host's packet filter.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdTcpListener},
    str::FromStr,
    time::Duration,
};

use caisson_failpoints::{hit, steps};
use serde::{Deserialize, Serialize};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

use super::NetworkError;

/// Of one port; each takes two descriptors.
const MAX_CONNECTIONS: usize = 256;

/// How long the guest may take to accept one.
const CONNECT_GRACE: Duration = Duration::from_secs(10);

/// After a failure that does not go by itself, as that descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A TCP port of the host and the container's that it leads to, written
/// `ADDRESS:PORT:PORT` (an IPv6 address in brackets).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Port {
    pub host: SocketAddr,
    pub guest: u16,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?}: {problem}")]
pub struct ParsePortError {
    given: String,
    problem: &'static str,
}

impl FromStr for Port {
    type Err = ParsePortError;

    /// As Docker's `-p` has it: `[ADDRESS:]PORT:PORT[/tcp]`.
    fn from_str(given: &str) -> Result<Self, ParsePortError> {
        let problem = |problem| ParsePortError { given: given.to_owned(), problem };
        let (ports, protocol) = given.split_once('/').unwrap_or((given, "tcp"));
        if protocol != "tcp" {
            return Err(problem("only TCP ports are published in this version"));
        }
        let Some((host, guest)) = ports.rsplit_once(':') else {
            return Err(problem("name the host's port and the container's: 8080:80"));
        };
        let number = |text: &str| match text.parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(problem("a port is a number from 1 to 65535")),
        };
        let (address, port) = match host.rsplit_once(':') {
            Some((address, port)) => {
                let plain = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
                let address = plain.unwrap_or(address).parse::<IpAddr>();
                (address.map_err(|_| problem("no IP address of the host"))?, port)
            }
            None => (Ipv4Addr::UNSPECIFIED.into(), host),
        };
        Ok(Self { host: SocketAddr::new(address, number(port)?), guest: number(guest)? })
    }
}

impl TryFrom<String> for Port {
    type Error = ParsePortError;

    fn try_from(text: String) -> Result<Self, ParsePortError> {
        text.parse()
    }
}

impl From<Port> for String {
    fn from(port: Port) -> Self {
        port.to_string()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.guest)
    }
}

/// A port that is taken; connections wait until it is served.
#[derive(Debug)]
pub(super) struct Published {
    port: Port,
    listener: StdTcpListener,
}

impl Published {
    pub(super) fn bind(port: &Port) -> Result<Self, NetworkError> {
        let listen = || {
            hit(&steps::SHIM_BRIDGE_PUBLISH)?;
            let listener = StdTcpListener::bind(port.host)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let failed = |source: io::Error| NetworkError::Publish { on: port.host, source };
        Ok(Self { port: *port, listener: listen().map_err(failed)? })
    }

    /// Leads connections to the guest at this address.
    pub(super) fn serve(self, guest: IpAddr) -> Result<Publishing, NetworkError> {
        let Port { host, guest: port } = self.port;
        let listener = TcpListener::from_std(self.listener);
        let listener = listener.map_err(|source| NetworkError::Publish { on: host, source })?;
        Ok(Publishing(tokio::spawn(accept(listener, SocketAddr::new(guest, port)))))
    }
}

/// A port that is served until this is dropped, and its connections with it.
#[derive(Debug)]
pub(super) struct Publishing(JoinHandle<()>);

impl Drop for Publishing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn accept(listener: TcpListener, guest: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        match listener.accept().await {
            Ok((client, _)) => drop(connections.spawn(carry(client, guest))),
            Err(error) => {
                log::debug!("accept a connection for {guest}: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Both ways, until both sides have ended.
async fn carry(mut client: TcpStream, guest: SocketAddr) {
    match timeout(CONNECT_GRACE, TcpStream::connect(guest)).await {
        Ok(Ok(mut server)) => drop(copy_bidirectional(&mut client, &mut server).await),
        // The client sees its connection end.
        Ok(Err(error)) => log::debug!("connect to {guest}: {error}"),
        Err(_) => log::debug!("connect to {guest}: it does not answer"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn ports_are_read_and_written() {
        let port = |text: &str| text.parse::<Port>();
        let all = port("8080:80").unwrap();
        assert_eq!((all.host, all.guest), ("0.0.0.0:8080".parse().unwrap(), 80));
        assert_eq!(port("127.0.0.1:8080:80/tcp").unwrap().to_string(), "127.0.0.1:8080:80");
        assert_eq!(port("[::1]:8080:80").unwrap().to_string(), "[::1]:8080:80");
        assert_eq!(port(&all.to_string()).unwrap(), all);
        for bad in ["", "80", "80:", ":80", "0:80", "80:65536", "x:80:80", "80:80/udp", "1-2:1-2"] {
            assert!(port(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_a_port_that_is_dropped_is_free() {
        let server = StdTcpListener::bind("127.0.0.1:0").unwrap();
        let free = StdTcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let port = Port { host: free, guest: server.local_addr().unwrap().port() };
        let published = Published::bind(&port).unwrap();
        let twice = Published::bind(&port).unwrap_err();
        assert!(twice.to_string().starts_with(&format!("publish {free}: ")), "{twice}");
        let publishing = published.serve(Ipv4Addr::LOCALHOST.into()).unwrap();
        let echo = tokio::task::spawn_blocking(move || {
            let mut connection = server.accept().unwrap().0;
            let mut text = String::new();
            connection.read_to_string(&mut text).unwrap();
            connection.write_all(text.to_uppercase().as_bytes()).unwrap();
        });
        let client = tokio::task::spawn_blocking(move || {
            let mut client = std::net::TcpStream::connect(free).unwrap();
            client.write_all(b"hello").unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            answer
        });
        assert_eq!(client.await.unwrap(), "HELLO");
        echo.await.unwrap();
        drop(publishing);
        while Published::bind(&port).is_err() {
            tokio::task::yield_now().await;
        }
    }
}
