//! A server of a few operations over the crate under test, on loopback.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::SystemTime;

use aws_api::eventstream::{self, Message};
use aws_api::sigv4::{SecretKey, Verifier};
use aws_api::{Error, Protocol, Routed, Timestamp, ecr, ecs, logs, sts};
use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};

pub const ACCESS_KEY_ID: &str = "AKIAIOSFODNN7EXAMPLE";
pub const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
pub const REGION: &str = "eu-central-1";
const REQUEST_ID: &str = "c6104cbe-af31-11e0-8154-cbc7ccf896c7";

/// Serves until dropped.
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            for connection in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let connection = connection.unwrap();
                std::thread::spawn(move || while serve(&connection).is_some() {});
            }
        });
        Self { address, stop, thread: Some(thread) }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accept loop.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Serves one request. None when the connection has ended.
fn serve(connection: &TcpStream) -> Option<()> {
    let (parts, body) = receive(connection)?;
    let response =
        answer(&parts, &body).unwrap_or_else(|error| Protocol::of(&parts).encode_error(&error, REQUEST_ID));
    let mut head = format!("HTTP/1.1 {}\r\n", response.status());
    for (name, value) in response.headers() {
        head.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", response.body().len()));
    let mut connection = connection;
    connection.write_all(head.as_bytes()).ok()?;
    connection.write_all(response.body()).ok()
}

fn receive(connection: &TcpStream) -> Option<(Parts, Bytes)> {
    let mut reader = BufReader::new(connection);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let mut words = line.split_whitespace();
    let mut request = Request::builder().method(words.next()?).uri(words.next()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().unwrap();
        }
        if name.eq_ignore_ascii_case("expect") {
            (&*connection).write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
        }
        request = request.header(name, value);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((request.body(()).unwrap().into_parts().0, body.into()))
}

fn answer(parts: &Parts, body: &Bytes) -> Result<Response<Bytes>, Error> {
    let routed = aws_api::route(parts, body)?;
    let lookup = |id: &str| (id == ACCESS_KEY_ID).then(|| SecretKey::from(SECRET_KEY));
    let now = Timestamp::from(SystemTime::now());
    let verified = Verifier::default().verify(parts, body, now, lookup)?;
    verified.check_scope(routed.service, REGION)?;
    routed.require_served()?;
    operate(&routed, &verified.body)
}

fn operate(routed: &Routed, body: &[u8]) -> Result<Response<Bytes>, Error> {
    Ok(match routed.operation.name {
        "DescribeTasks" => {
            let input = routed.decode::<ecs::operation::DescribeTasks>(body)?;
            let tasks = input.tasks.iter().map(|task| ecs::Task {
                task_arn: Some(format!("task-{task}")),
                created_at: Some(Timestamp::from_millis(1_767_225_600_250)),
                tags: Some(vec![ecs::Tag { key: Some("k".to_owned()), value: Some("ä".to_owned()) }]),
                ..Default::default()
            });
            let tasks = Some(tasks.collect());
            routed.encode_ok(&ecs::DescribeTasksResponse { tasks, ..Default::default() }, REQUEST_ID)
        }
        "RunTask" => {
            routed.decode::<ecs::operation::RunTask>(body)?;
            routed.encode_ok(&ecs::RunTaskResponse::default(), REQUEST_ID)
        }
        "CreateRepository" => {
            routed.decode::<ecr::operation::CreateRepository>(body)?;
            routed.encode_ok(&ecr::CreateRepositoryResponse::default(), REQUEST_ID)
        }
        "UploadLayerPart" => {
            let input = routed.decode::<ecr::operation::UploadLayerPart>(body)?;
            assert_eq!(&input.layer_part_blob[..], b"\x00\xff\x10");
            let last_byte_received = i64::try_from(input.layer_part_blob.len()).ok();
            routed.encode_ok(
                &ecr::UploadLayerPartResponse { last_byte_received, ..Default::default() },
                REQUEST_ID,
            )
        }
        "CreateLogGroup" => {
            routed.decode::<logs::operation::CreateLogGroup>(body)?;
            routed.encode_ok(&logs::CreateLogGroupResponse {}, REQUEST_ID)
        }
        "PutLogEvents" => {
            routed.decode::<logs::operation::PutLogEvents>(body)?;
            return Err(logs::error::invalid_sequence_token_exception("The next one is 7")
                .with_field("expectedSequenceToken", "7"));
        }
        "StartLiveTail" => {
            routed.decode::<logs::operation::StartLiveTail>(body)?;
            live_tail()
        }
        "GetCallerIdentity" => {
            routed.decode::<sts::operation::GetCallerIdentity>(body)?;
            let identity = sts::GetCallerIdentityResponse {
                user_id: Some("<&>".to_owned()),
                account: Some("000000000000".to_owned()),
                arn: Some("arn:aws:iam::000000000000:root".to_owned()),
            };
            routed.encode_ok(&identity, REQUEST_ID)
        }
        name => panic!("no test calls {name}"),
    })
}

fn live_tail() -> Response<Bytes> {
    let start = logs::LiveTailSessionStart { session_id: Some("s".to_owned()), ..Default::default() };
    let update = logs::LiveTailSessionUpdate {
        session_results: Some(vec![logs::LiveTailSessionLogEvent {
            message: Some("häl\nlo".to_owned()),
            ..Default::default()
        }]),
        ..Default::default()
    };
    let messages = [
        Message::initial_response(),
        Message::event(&logs::StartLiveTailResponseStream::SessionStart(start)).unwrap(),
        Message::event(&logs::StartLiveTailResponseStream::SessionUpdate(update)).unwrap(),
        Message::exception(&logs::error::session_timeout_exception("too long")),
    ];
    let body: Vec<u8> = messages.iter().flat_map(|message| message.encode().unwrap()).collect();
    Response::builder().header("content-type", eventstream::CONTENT_TYPE).body(body.into()).unwrap()
}
