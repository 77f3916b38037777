//! `coracle run -p`: ports of this machine's loopback that lead to a task.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use anyhow::{Context, bail};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// `HOST_PORT:CONTAINER_PORT`. The host's port 0 is one that is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortPair {
    pub host: u16,
    pub container: u16,
}

impl FromStr for PortPair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' does not have the form HOST_PORT:CONTAINER_PORT, such as 8080:80");
        let (host, container) = text.split_once(':').ok_or_else(wrong)?;
        let port = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| text.parse::<u16>().ok()).flatten().ok_or_else(wrong)
        };
        let pair = Self { host: port(host)?, container: port(container)? };
        if pair.container == 0 {
            return Err("a container's port is between 1 and 65535".to_owned());
        }
        Ok(pair)
    }
}

/// A port of 127.0.0.1 that is taken, and what it leads to.
pub struct PortProxy {
    listener: TcpListener,
    pub container_port: u16,
}

impl PortProxy {
    pub async fn bind(pair: PortPair) -> anyhow::Result<Self> {
        let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, pair.host)).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => bail!("port {} is in use", pair.host),
            listener => listener.with_context(|| format!("cannot listen on port {}", pair.host))?,
        };
        Ok(Self { listener, container_port: pair.container })
    }

    pub fn local(&self) -> anyhow::Result<SocketAddr> {
        self.listener.local_addr().context("cannot read the port's address")
    }

    /// Serves until dropped. Connections that come before the task has an address wait for it.
    pub async fn serve(self, task: watch::Receiver<Option<Ipv4Addr>>) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((client, _)) => {
                        connections.spawn(forward(client, task.clone(), self.container_port));
                    }
                    // Out of file descriptors, or the client is gone: neither lasts.
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

/// A connection that cannot be made, or breaks, is closed: more cannot be told to a TCP client.
async fn forward(mut client: TcpStream, mut task: watch::Receiver<Option<Ipv4Addr>>, port: u16) {
    let address = match task.wait_for(Option::is_some).await {
        Ok(address) => *address,
        Err(_) => None,
    };
    let Some(address) = address else { return };
    if let Ok(mut server) = TcpStream::connect((address, port)).await {
        drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn ports_are_two_numbers() {
        assert_eq!("8080:80".parse(), Ok(PortPair { host: 8080, container: 80 }));
        assert_eq!("0:1".parse(), Ok(PortPair { host: 0, container: 1 }));
        for bad in
            ["", "80", ":80", "80:", "80:0", "70000:80", "80:70000", "+80:80", "1:2:3", "127.0.0.1:80:80"]
        {
            assert!(bad.parse::<PortPair>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn bytes_go_both_ways_even_for_a_client_that_came_early() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let proxy = PortProxy::bind(PortPair { host: 0, container: port }).await.unwrap();
        let front = proxy.local().unwrap();
        let (sender, task) = watch::channel(None);
        let serving = tokio::spawn(proxy.serve(task));
        let mut client = TcpStream::connect(front).await.unwrap();
        client.write_all(b"ping").await.unwrap();
        client.shutdown().await.unwrap();
        sender.send(Some(Ipv4Addr::LOCALHOST)).unwrap();
        let (mut accepted, _) = server.accept().await.unwrap();
        let mut text = String::new();
        accepted.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "ping");
        accepted.write_all(b"pong").await.unwrap();
        drop(accepted);
        text.clear();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "pong");
        serving.abort();
    }

    #[tokio::test]
    async fn a_port_in_use_is_said() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = PortProxy::bind(PortPair { host: port, container: 80 }).await.err().unwrap();
        assert_eq!(error.to_string(), format!("port {port} is in use"));
    }
}
