//! The VPC's resolver at base + 2: private DNS names and a VPC's own names are answered here, all
//! others by the host's resolvers.
//!
//! Its sockets are made inside the router's namespace, where only the VPC's tasks reach them, and
//! die with this process: until the agent is back, tasks that it left running resolve no names.
//! Queries are bytes from tenants: sizes, queries in flight and connections are bounded.

mod forward;
mod names;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::AbortHandle;
use tokio::time::timeout;

pub use forward::Forwarder;
pub use names::{LocalNames, LocalZone, NameTable, Service};

use super::netns;
use forward::Forwarded;
use names::LocalAnswer;

const PORT: u16 = 53;
/// Queries that one task may have in flight; more are dropped, and asked again by the task. EC2
/// drops above 1024 packets a second and interface ("Amazon DNS quotas").
const QUERIES_PER_SOURCE: usize = 64;
/// TCP connections of one task.
const CONNECTIONS_PER_SOURCE: usize = 8;
/// How long a TCP connection may be idle, or slow to read (RFC 7766, 6.2.3).
const TCP_IDLE: Duration = Duration::from_secs(10);
/// The largest UDP answer: fits any path without fragments (DNS flag day 2020).
const MAX_UDP_ANSWER: u16 = 1232;
/// An earlier process's sockets close a little after it ends.
const BIND_DEADLINE: Duration = Duration::from_secs(2);

/// A running resolver. Stops when dropped.
#[derive(Debug)]
pub struct Resolver {
    names: LocalNames,
    tasks: Vec<AbortHandle>,
}

impl Drop for Resolver {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Resolver {
    /// Listens on `address`, UDP and TCP port 53, in the namespace `netns`. Blocks for as long as
    /// an earlier process holds the port, 2 s at most. Must be called inside a tokio runtime.
    pub(super) fn start(
        netns: BorrowedFd<'_>,
        address: Ipv4Addr,
        zone: LocalZone,
        forwarder: Arc<Forwarder>,
    ) -> io::Result<Self> {
        let (udp, tcp) = netns::run_in(netns, || bind(address))?;
        let udp = Arc::new(UdpSocket::from_std(udp)?);
        let tcp = TcpListener::from_std(tcp)?;
        let names = zone.names.clone();
        let service = Arc::new(Answerer { zone, forwarder });
        let tasks = vec![
            tokio::spawn(serve_udp(udp, service.clone())).abort_handle(),
            tokio::spawn(serve_tcp(tcp, service)).abort_handle(),
        ];
        Ok(Self { names, tasks })
    }

    /// The handle to the VPC's own names.
    pub fn names(&self) -> &LocalNames {
        &self.names
    }
}

fn bind(address: Ipv4Addr) -> io::Result<(std::net::UdpSocket, std::net::TcpListener)> {
    let deadline = Instant::now() + BIND_DEADLINE;
    loop {
        let bound = std::net::UdpSocket::bind((address, PORT))
            .and_then(|udp| Ok((udp, std::net::TcpListener::bind((address, PORT))?)));
        match bound {
            Ok((udp, tcp)) => {
                udp.set_nonblocking(true)?;
                tcp.set_nonblocking(true)?;
                return Ok((udp, tcp));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Counts what each source has under way.
#[derive(Debug, Default)]
struct PerSource(Mutex<HashMap<IpAddr, usize>>);

/// One thing under way; counted until dropped.
struct Slot {
    counts: Arc<PerSource>,
    source: IpAddr,
}

impl PerSource {
    fn enter(self: &Arc<Self>, source: IpAddr, limit: usize) -> Option<Slot> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(source).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Slot { counts: self.clone(), source })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.source);
            }
        }
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, service: Arc<Answerer>) {
    let counts = Arc::new(PerSource::default());
    let mut tasks = tokio::task::JoinSet::new();
    let mut buffer = vec![0; 4096];
    loop {
        while tasks.try_join_next().is_some() {}
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // Such as an ICMP error for an earlier answer: no reason to stop, nor to spin.
                tracing::debug!(%error, "cannot receive a DNS query");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let Some(slot) = counts.enter(from.ip(), QUERIES_PER_SOURCE) else {
            continue;
        };
        let (query, socket, service) = (buffer[..length].to_vec(), socket.clone(), service.clone());
        tasks.spawn(async move {
            if let Some(answer) = service.answer(&query, Transport::Udp).await {
                // The task may be gone.
                let _ = socket.send_to(&answer, from).await;
            }
            drop(slot);
        });
    }
}

async fn serve_tcp(listener: TcpListener, service: Arc<Answerer>) {
    let counts = Arc::new(PerSource::default());
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let (stream, from): (TcpStream, SocketAddr) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a DNS connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(slot) = counts.enter(from.ip(), CONNECTIONS_PER_SOURCE) else {
            continue;
        };
        let service = service.clone();
        tasks.spawn(async move {
            if let Err(error) = serve_connection(stream, &service).await {
                tracing::debug!(%from, %error, "a DNS connection ended");
            }
            drop(slot);
        });
    }
}

/// Answers the queries of a connection one after the other (RFC 1035, 4.2.2).
async fn serve_connection(mut stream: TcpStream, service: &Answerer) -> io::Result<()> {
    loop {
        let read = async {
            let length = stream.read_u16().await?;
            let mut query = vec![0; usize::from(length)];
            stream.read_exact(&mut query).await?;
            io::Result::Ok(query)
        };
        let query = timeout(TCP_IDLE, read).await??;
        let Some(answer) = service.answer(&query, Transport::Tcp).await else {
            return Ok(());
        };
        let Ok(length) = u16::try_from(answer.len()) else {
            return Ok(());
        };
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend(answer);
        timeout(TCP_IDLE, stream.write_all(&framed)).await??;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

#[derive(Debug)]
struct Answerer {
    zone: LocalZone,
    forwarder: Arc<Forwarder>,
}

impl Answerer {
    /// The answer to a message; `None` when it deserves none.
    async fn answer(&self, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let Ok(request) = Message::from_vec(bytes) else {
            return malformed(bytes);
        };
        // Answering answers would let two resolvers talk for ever.
        if request.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut response = Message::response(request.metadata.id, request.metadata.op_code);
        response.metadata.recursion_desired = request.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.add_queries(request.queries.iter().cloned());
        if request.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP_ANSWER);
            response.set_edns(edns);
        }
        match acceptable(&request) {
            Err(code) => response.metadata.response_code = code,
            Ok(query) => {
                let found = self.find(query, &mut response).await;
                response.metadata.response_code = found.code;
                response.add_answers(found.answers);
                response.add_authorities(found.authorities);
            }
        }
        let limit = match transport {
            Transport::Udp => usize::from(request.max_payload().clamp(512, MAX_UDP_ANSWER)),
            Transport::Tcp => usize::from(u16::MAX),
        };
        match response.to_vec() {
            Ok(bytes) if bytes.len() <= limit => Some(bytes),
            // Too long: the task asks again over TCP.
            _ => response.truncate().to_vec().ok(),
        }
    }

    async fn find(&self, query: &Query, response: &mut Message) -> Forwarded {
        match self.zone.look_up(query.name(), query.query_type()) {
            LocalAnswer::Records(answers) => {
                response.metadata.authoritative = true;
                Forwarded { answers, ..Forwarded::failure(ResponseCode::NoError) }
            }
            LocalAnswer::NoSuchName => {
                response.metadata.authoritative = true;
                Forwarded::failure(ResponseCode::NXDomain)
            }
            LocalAnswer::Elsewhere => self.forwarder.ask(query).await,
        }
    }
}

/// The one question of a request that is to be answered, or the code that refuses it.
fn acceptable(request: &Message) -> Result<&Query, ResponseCode> {
    if request.metadata.op_code != OpCode::Query {
        return Err(ResponseCode::NotImp);
    }
    if request.version() > 0 {
        return Err(ResponseCode::BADVERS);
    }
    let [query] = request.queries.as_slice() else {
        return Err(ResponseCode::FormErr);
    };
    // ANY is for debugging and for amplification (RFC 8482); zones are not transferred from here.
    let refused = [RecordType::ANY, RecordType::AXFR, RecordType::IXFR];
    if query.query_class() != DNSClass::IN || refused.contains(&query.query_type()) {
        return Err(ResponseCode::Refused);
    }
    Ok(query)
}

/// FORMERR for what has at least the header of a query.
fn malformed(bytes: &[u8]) -> Option<Vec<u8>> {
    let [high, low, flags, ..] = *bytes.first_chunk::<12>()?;
    if flags & 0x80 != 0 {
        return None;
    }
    let id = u16::from_be_bytes([high, low]);
    Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answerer() -> Answerer {
        let region = model::Region::parse("us-east-1").unwrap();
        let zone = LocalZone::new("172.31.0.0/16".parse().unwrap(), &region, LocalNames::default());
        Answerer { zone, forwarder: Arc::new(Forwarder::new(Some(Vec::new()))) }
    }

    fn answer(bytes: &[u8], transport: Transport) -> Option<Message> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let bytes = runtime.block_on(answerer().answer(bytes, transport))?;
        Some(Message::from_vec(&bytes).unwrap())
    }

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.add_query(Query::query(name.parse().unwrap(), kind));
        message
    }

    fn code(message: &Message) -> ResponseCode {
        answer(&message.to_vec().unwrap(), Transport::Udp).unwrap().metadata.response_code
    }

    #[test]
    fn odd_requests_get_their_codes() {
        assert_eq!(code(&query("example.com.", RecordType::A)), ResponseCode::ServFail, "no server to ask");
        assert_eq!(code(&query("ip-172-31-0-9.ec2.internal.", RecordType::A)), ResponseCode::NoError);
        assert_eq!(code(&query("nobody.ec2.internal.", RecordType::A)), ResponseCode::NXDomain);
        assert_eq!(code(&query("example.com.", RecordType::ANY)), ResponseCode::Refused);
        assert_eq!(code(&query("example.com.", RecordType::AXFR)), ResponseCode::Refused);
        let mut two = query("example.com.", RecordType::A);
        two.add_query(Query::query("example.org.".parse().unwrap(), RecordType::A));
        assert_eq!(code(&two), ResponseCode::FormErr);
        assert_eq!(code(&Message::new(1, MessageType::Query, OpCode::Query)), ResponseCode::FormErr);
        let mut update = query("example.com.", RecordType::A);
        update.metadata.op_code = OpCode::Notify;
        assert_eq!(code(&update), ResponseCode::NotImp);
        let response = Message::response(7, OpCode::Query).to_vec().unwrap();
        assert!(answer(&response, Transport::Udp).is_none());
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = answer(&bytes, Transport::Udp);
        }

        #[test]
        fn damaged_queries_never_panic(at in 0usize..60, value in any::<u8>(), cut in 0usize..60) {
            let mut message = query("a.very.long.name.ip-172-31-0-9.ec2.internal.", RecordType::SRV);
            message.set_edns(Edns::new());
            let mut bytes = message.to_vec().unwrap();
            let at = at % bytes.len();
            bytes[at] = value;
            bytes.truncate(bytes.len() - cut % bytes.len());
            let _ = answer(&bytes, Transport::Tcp);
        }
    }
}
