//! One request after the other, on connections that are used again.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::time::{Instant, timeout};

use outrank_gateway_bench::wire::Reader;

use crate::args::{Requests, What};
use crate::events::{Events, find};
use crate::tally::{Outcome, Tally};

/// A client.
#[derive(Debug)]
pub(crate) struct Client {
    requests: Requests,
    idle: Mutex<Vec<Connection>>,
    stream: bool,
    checked: bool,
    limit: Duration,
    pub(crate) tally: Mutex<Tally>,
}

#[derive(Debug)]
struct Connection {
    reader: Reader,
    writer: OwnedWriteHalf,
}

impl Client {
    pub(crate) fn new(what: &What) -> anyhow::Result<Self> {
        Ok(Self {
            requests: Requests::new(what)?,
            idle: Mutex::default(),
            stream: what.stream,
            checked: !what.unchecked,
            limit: Duration::from_secs_f64(what.timeout_s),
            tally: Mutex::default(),
        })
    }

    /// Sends one request, waits for the whole answer and notes how it went. Time counts from `due`. False if none came.
    pub(crate) async fn request(&self, due: Instant) -> bool {
        let outcome = match timeout(self.limit, self.exchange(due)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => Outcome::error(error.kind().to_string(), due),
            Err(_) => Outcome::error("no answer in time".to_owned(), due),
        };
        let answered = outcome.status != 0;
        self.tally().add(outcome);
        answered
    }

    pub(crate) fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn exchange(&self, due: Instant) -> io::Result<Outcome> {
        let (bytes, tokens) = self.requests.next();
        let mut connection = self.connect().await?;
        connection.writer.write_all(&bytes).await?;
        let head = connection.reader.response().await?;
        let (mut left, mut body, mut events) = (head.left, Vec::new(), Events::default());
        let mut first = None;
        while connection.reader.piece(&mut left, &mut body).await? {
            if self.stream && head.status == 200 {
                events.read(&body, &mut self.tally().transit_us);
            }
            if first.is_none() {
                first = Some(Instant::now());
            }
        }
        let end = Instant::now();
        if head.keep_alive {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
        let wrong = match (self.checked && head.status == 200, self.stream) {
            (false, _) => None,
            (true, true) if !events.done => Some("a stream without [DONE]"),
            (true, true) if events.tokens != tokens => Some("a stream with other than the tokens asked for"),
            (true, false) if !says_tokens(&body, tokens) => {
                Some("an answer with other than the tokens asked for")
            }
            _ => None,
        };
        Ok(Outcome {
            status: head.status,
            retry_after: head.retry_after,
            ttft_us: micros(first.unwrap_or(end) - due),
            e2e_us: micros(end - due),
            error: wrong.map(str::to_owned),
        })
    }

    async fn connect(&self) -> io::Result<Connection> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(connection) = idle {
            return Ok(connection);
        }
        let stream = TcpStream::connect(&self.requests.address).await?;
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        Ok(Connection { reader: Reader::new(reader), writer })
    }
}

/// Whether the usage of an answer has so many completion tokens.
fn says_tokens(body: &[u8], tokens: u32) -> bool {
    let Some(start) = find(body, b"\"completion_tokens\":") else { return false };
    let text = std::str::from_utf8(&body[start + 20..]).unwrap_or_default().trim_start();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    text[..digits].parse() == Ok(tokens)
}

pub(crate) fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}
