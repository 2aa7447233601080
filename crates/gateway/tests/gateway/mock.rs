//! An upstream that does as it is told: answers, and every way of not answering.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What happens to a request.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// So many tokens, one every `gap`.
    Answer { tokens: usize, gap: Duration },
    /// The connection is closed instead of an answer.
    CloseBeforeHead,
    /// The head of an answer, and then the connection is closed.
    CloseAfterHead,
    /// So many tokens, and then the connection is closed.
    CloseAfter(usize),
    /// So many tokens, and then nothing for ever.
    HangAfter(usize),
    /// Nothing for ever.
    Hang,
    /// This status, with a JSON body.
    Status(u16),
    /// This status, with Retry-After.
    Busy(u16, u32),
    /// These bytes as the body of a stream.
    Stream(&'static str),
}

impl Act {
    pub(crate) fn tokens(tokens: usize) -> Self {
        Self::Answer { tokens, gap: Duration::ZERO }
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) head: String,
    pub(crate) body: Value,
    pub(crate) raw: String,
}

impl Seen {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// A scripted upstream. It stops when it is dropped, and can be stopped and started again on its port.
pub(crate) struct Mock {
    pub(crate) addr: SocketAddr,
    state: Arc<State>,
    serving: Option<JoinSet<()>>,
}

struct State {
    script: Mutex<VecDeque<Act>>,
    default: Mutex<Act>,
    seen: Mutex<Vec<Seen>>,
    models: Mutex<Vec<String>>,
    /// What it says at `/props`; nothing, while it is empty.
    props: Mutex<String>,
    /// Requests being answered.
    running: AtomicUsize,
    most_running: AtomicUsize,
    /// Clients that went away before their answer was complete.
    abandoned: AtomicUsize,
    /// While held, nothing is answered.
    held: watch::Sender<bool>,
}

impl Mock {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State {
            script: Mutex::default(),
            default: Mutex::new(Act::tokens(3)),
            seen: Mutex::default(),
            models: Mutex::new(vec!["m".into()]),
            props: Mutex::default(),
            running: AtomicUsize::new(0),
            most_running: AtomicUsize::new(0),
            abandoned: AtomicUsize::new(0),
            held: watch::channel(false).0,
        });
        let mut mock = Self { addr, state, serving: None };
        mock.serve(listener);
        mock
    }

    fn serve(&mut self, listener: TcpListener) {
        let state = Arc::clone(&self.state);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                connections.spawn(converse(Arc::clone(&state), stream));
            }
        });
        self.serving = Some(serving);
    }

    /// Kills it: its port refuses connections, and those that were open break.
    pub(crate) async fn kill(&mut self) {
        if let Some(mut serving) = self.serving.take() {
            serving.shutdown().await;
        }
    }

    /// Starts it again on the same port.
    pub(crate) async fn revive(&mut self) {
        for _ in 0..200 {
            match TcpListener::bind(self.addr).await {
                Ok(listener) => return self.serve(listener),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        panic!("the port did not come back");
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// What happens to the next requests, in order.
    pub(crate) fn script(&self, acts: impl IntoIterator<Item = Act>) {
        self.state.script.lock().extend(acts);
    }

    /// What happens to all others.
    pub(crate) fn always(&self, act: Act) {
        *self.state.default.lock() = act;
    }

    pub(crate) fn serve_models(&self, models: &[&str]) {
        *self.state.models.lock() = models.iter().map(|&name| name.to_owned()).collect();
    }

    /// Says at `/props` what llama.cpp's server says.
    pub(crate) fn say_slots(&self, slots: u32) {
        *self.state.props.lock() = json!({ "total_slots": slots }).to_string();
    }

    pub(crate) fn hold(&self) {
        self.state.held.send_replace(true);
    }

    pub(crate) fn release(&self) {
        self.state.held.send_replace(false);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().clone()
    }

    /// The values of the field `user` of all requests, in the order in which they came.
    pub(crate) fn users(&self) -> Vec<String> {
        self.seen().iter().map(|seen| seen.body["user"].as_str().unwrap_or("").to_owned()).collect()
    }

    pub(crate) fn running(&self) -> usize {
        self.state.running.load(Ordering::SeqCst)
    }

    pub(crate) fn most_running(&self) -> usize {
        self.state.most_running.load(Ordering::SeqCst)
    }

    pub(crate) fn abandoned(&self) -> usize {
        self.state.abandoned.load(Ordering::SeqCst)
    }
}

/// Counts a request while it is being answered.
struct Running(Arc<State>, bool);

impl Running {
    fn new(state: &Arc<State>) -> Self {
        let now = state.running.fetch_add(1, Ordering::SeqCst) + 1;
        state.most_running.fetch_max(now, Ordering::SeqCst);
        Self(Arc::clone(state), false)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
        if !self.1 {
            self.0.abandoned.fetch_add(1, Ordering::SeqCst);
        }
    }
}

async fn converse(state: Arc<State>, mut stream: TcpStream) {
    let mut buffer = Vec::new();
    while let Some(seen) = read_request(&mut stream, &mut buffer).await {
        if seen.head.starts_with("GET /props") {
            let props = state.props.lock().clone();
            let status = if props.is_empty() { 404 } else { 200 };
            if write_whole(&mut stream, status, "", &props).await.is_err() {
                return;
            }
            continue;
        }
        if seen.head.starts_with("GET") {
            let models: Vec<Value> = state.models.lock().iter().map(|name| json!({ "id": name })).collect();
            let body = json!({ "object": "list", "data": models }).to_string();
            if write_whole(&mut stream, 200, "", &body).await.is_err() {
                return;
            }
            continue;
        }
        let streamed = seen.body["stream"] == true;
        state.seen.lock().push(seen);
        let act = state.script.lock().pop_front().unwrap_or_else(|| state.default.lock().clone());
        let mut running = Running::new(&state);
        let mut held = state.held.subscribe();
        let released = async { drop(held.wait_for(|held| !held).await.map(|held| *held)) };
        let go_on = tokio::select! {
            () = released => perform(&mut stream, act, streamed).await,
            // A client that leaves is noticed.
            _ = stream.readable() => if closed(&stream) { false } else { perform(&mut stream, act, streamed).await },
        };
        running.1 = go_on;
        drop(running);
        if !go_on {
            return;
        }
    }
}

fn closed(stream: &TcpStream) -> bool {
    matches!(stream.try_read(&mut [0; 1]), Ok(0))
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Seen> {
    let head_end = loop {
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer.drain(..head_end).collect()).ok()?;
    let seen = Seen { head, body: Value::Null, raw: String::new() };
    let length: usize = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
    while buffer.len() < length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let raw = String::from_utf8(buffer.drain(..length).collect()).ok()?;
    Some(Seen { body: serde_json::from_str(&raw).unwrap_or(Value::Null), raw, ..seen })
}

/// Does as told; tells whether the connection may be used again.
async fn perform(stream: &mut TcpStream, act: Act, streamed: bool) -> bool {
    let done = match act {
        Act::Answer { tokens, gap } if streamed => stream_tokens(stream, tokens, gap, true).await,
        Act::Answer { tokens, gap } => {
            tokio::time::sleep(gap * tokens as u32).await;
            write_whole(stream, 200, "", &whole(tokens)).await
        }
        Act::CloseBeforeHead => return false,
        Act::CloseAfterHead => {
            let _ = stream.write_all(STREAM_HEAD.as_bytes()).await;
            return false;
        }
        Act::CloseAfter(tokens) => {
            let _ = stream_tokens(stream, tokens, Duration::ZERO, false).await;
            return false;
        }
        Act::HangAfter(tokens) => {
            let _ = stream_tokens(stream, tokens, Duration::ZERO, false).await;
            until_closed(stream).await;
            return false;
        }
        Act::Hang => {
            until_closed(stream).await;
            return false;
        }
        Act::Status(status) => write_whole(stream, status, "", "{\"error\":{\"message\":\"no\"}}").await,
        Act::Busy(status, seconds) => {
            write_whole(stream, status, &format!("retry-after: {seconds}\r\n"), "{\"error\":{}}").await
        }
        Act::Stream(text) => {
            let chunk = format!("{STREAM_HEAD}{:x}\r\n{text}\r\n0\r\n\r\n", text.len());
            stream.write_all(chunk.as_bytes()).await
        }
    };
    done.is_ok()
}

async fn until_closed(stream: &mut TcpStream) {
    let mut rest = [0; 64];
    while matches!(stream.read(&mut rest).await, Ok(read) if read > 0) {}
}

const STREAM_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// The text of token `nth`.
pub(crate) fn token(nth: usize) -> String {
    format!("t{nth} ")
}

async fn stream_tokens(
    stream: &mut TcpStream,
    tokens: usize,
    gap: Duration,
    to_the_end: bool,
) -> std::io::Result<()> {
    stream.write_all(STREAM_HEAD.as_bytes()).await?;
    for nth in 0..tokens {
        let choice = json!({ "index": 0, "delta": { "content": token(nth) }, "finish_reason": null });
        write_event(stream, &json!({ "id": "c", "choices": [choice] }).to_string()).await?;
        if !gap.is_zero() {
            tokio::time::sleep(gap).await;
            if closed(stream) {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
        }
    }
    if to_the_end {
        let last = json!({ "index": 0, "delta": {}, "finish_reason": "stop" });
        write_event(stream, &json!({ "id": "c", "choices": [last] }).to_string()).await?;
        write_event(stream, "[DONE]").await?;
        stream.write_all(b"0\r\n\r\n").await?;
    }
    stream.flush().await
}

async fn write_event(stream: &mut TcpStream, data: &str) -> std::io::Result<()> {
    let event = format!("data: {data}\n\n");
    stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await
}

fn whole(tokens: usize) -> String {
    let content: String = (0..tokens).map(token).collect();
    let message = json!({ "role": "assistant", "content": content });
    json!({
        "id": "c",
        "choices": [{ "index": 0, "message": message, "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 4, "completion_tokens": tokens, "total_tokens": 4 + tokens },
    })
    .to_string()
}

async fn write_whole(stream: &mut TcpStream, status: u16, headers: &str, body: &str) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await
}
