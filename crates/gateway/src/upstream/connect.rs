//! Connections to an upstream, kept for the next request.
//!
//! A connection has no task of its own: whoever waits for its answer drives it ([`Lease::poll_frame`]), so that a token wakes one
//! task and not two. While nothing uses it, nobody looks at it; whether it still lives shows when it is taken again.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header};
use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::UpstreamConfig;
use crate::config::ConfigError;

/// Connections of an upstream that are kept though nothing uses them.
const MAX_IDLE_CONNECTIONS: usize = 512;
/// How long they are kept: longer than a pause between requests, shorter than most servers' patience.
const MAX_IDLE: Duration = Duration::from_secs(30);

/// Why a request got no answer.
#[derive(Debug, Error)]
pub(crate) enum SendError {
    /// No connection: the request has not been sent.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The connection broke before an answer began.
    #[error("the connection broke before the answer: {0}")]
    Broken(hyper::Error),
}

/// A request to an upstream; it may be sent more than once.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Outgoing {
    fn request(&self, host: &HeaderValue) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert(header::HOST, host.clone());
        request
    }
}

/// The connections of one upstream.
pub(crate) struct Connections {
    host: String,
    port: u16,
    /// The one address of a replica that DNS told of.
    address: Option<IpAddr>,
    host_header: HeaderValue,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    connect_timeout: Duration,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    line: Line,
    since: Instant,
}

/// An open connection.
struct Line {
    sender: SendRequest<Full<Bytes>>,
    /// Reads and writes; `None` once the connection has ended.
    driver: Option<Driver>,
}

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

impl Line {
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && let Poll::Ready(ended) = driver.as_mut().poll(cx)
        {
            self.driver = None;
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to an upstream ended");
            }
        }
    }

    /// Whether a request can be sent now.
    fn is_ready(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        self.driver.is_some() && matches!(self.sender.poll_ready(cx), Poll::Ready(Ok(())))
    }

    async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Full<Bytes>>>> {
        let mut answer = pin!(self.sender.try_send_request(request));
        let driver = &mut self.driver;
        poll_fn(|cx| {
            let answered = answer.as_mut().poll(cx);
            if answered.is_ready() {
                return answered;
            }
            if let Some(connection) = driver
                && connection.as_mut().poll(cx).is_ready()
            {
                *driver = None;
            }
            answer.as_mut().poll(cx)
        })
        .await
    }
}

/// A connection in use. Dropping it closes it, which tells the upstream that nobody wants the rest of its answer.
pub(crate) struct Lease {
    line: Line,
    connections: Arc<Connections>,
}

impl Lease {
    /// The next piece of the answer that comes over this connection.
    pub(crate) fn poll_frame(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.line.drive(cx);
        Pin::new(body).poll_frame(cx)
    }

    /// The answer was read to its end: the connection is free for the next request.
    pub(crate) fn give_back(self) {
        let Self { line, connections } = self;
        if line.driver.is_none() || line.sender.is_closed() {
            return;
        }
        let mut idle = connections.idle.lock();
        if idle.len() < MAX_IDLE_CONNECTIONS {
            idle.push(Idle { line, since: Instant::now() });
        }
    }
}

impl Connections {
    /// Connections to an upstream, none of them open yet.
    pub(crate) fn new(
        config: &UpstreamConfig,
        address: Option<IpAddr>,
        tls: &Arc<ClientConfig>,
        connect_timeout: Duration,
    ) -> Result<Self, ConfigError> {
        let fail = |why: String| ConfigError(format!("upstream {}: {why}", config.url));
        let tls = if config.https {
            let name = ServerName::try_from(config.host.clone())
                .map_err(|_| fail(format!("{} cannot be the name in a certificate", config.host)))?;
            Some((TlsConnector::from(Arc::clone(tls)), name))
        } else {
            None
        };
        let usual_port = if config.https { 443 } else { 80 };
        let bracketed =
            if config.host.contains(':') { format!("[{}]", config.host) } else { config.host.clone() };
        let host = if config.port == usual_port { bracketed } else { format!("{bracketed}:{}", config.port) };
        let host_header =
            HeaderValue::try_from(host).map_err(|_| fail("its host is no header value".into()))?;
        let (host, port) = (config.host.clone(), config.port);
        Ok(Self { host, port, address, host_header, tls, connect_timeout, idle: Mutex::default() })
    }

    /// Sends a request, on a connection that is there or a new one, and waits for the head of the answer. Connections that the
    /// upstream has closed meanwhile are no failure: the request goes over a new one.
    pub(crate) async fn send(
        self: &Arc<Self>,
        outgoing: &Outgoing,
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        if let Some(mut line) = self.ready_idle().await {
            match line.exchange(outgoing.request(&self.host_header)).await {
                Ok(response) => return Ok((response, self.lease(line))),
                // It was closed before a byte of the answer came, as idle connections are. What was not even written, or was
                // written to a connection that was already closed at the other end, has not been worked on.
                Err(error) if error.message().is_some() || error.error().is_incomplete_message() => {}
                Err(error) if error.error().is_canceled() || is_reset(error.error()) => {}
                Err(error) => return Err(SendError::Broken(error.into_error())),
            }
        }
        let mut line = self.connect().await.map_err(SendError::Connect)?;
        match line.exchange(outgoing.request(&self.host_header)).await {
            Ok(response) => Ok((response, self.lease(line))),
            Err(error) => Err(SendError::Broken(error.into_error())),
        }
    }

    fn lease(self: &Arc<Self>, line: Line) -> Lease {
        Lease { line, connections: Arc::clone(self) }
    }

    /// Closes what nothing uses.
    pub(crate) fn close_idle(&self) {
        self.idle.lock().clear();
    }

    /// A kept connection that can be used.
    async fn ready_idle(&self) -> Option<Line> {
        while let Some(mut line) = self.take_idle() {
            if poll_fn(|cx| Poll::Ready(line.is_ready(cx))).await {
                return Some(line);
            }
        }
        None
    }

    fn take_idle(&self) -> Option<Line> {
        let mut idle = self.idle.lock();
        let Idle { line, since } = idle.pop()?;
        if since.elapsed() > MAX_IDLE {
            // Those below it are older still.
            idle.clear();
            return None;
        }
        Some(line)
    }

    async fn connect(&self) -> io::Result<Line> {
        match tokio::time::timeout(self.connect_timeout, self.open()).await {
            Ok(result) => result,
            Err(_) => {
                let waited_s = self.connect_timeout.as_secs_f64();
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {waited_s} s")))
            }
        }
    }

    async fn open(&self) -> io::Result<Line> {
        let stream = match self.address {
            Some(address) => TcpStream::connect(SocketAddr::new(address, self.port)).await?,
            None => TcpStream::connect((self.host.as_str(), self.port)).await?,
        };
        stream.set_nodelay(true)?;
        match &self.tls {
            None => handshake(stream).await,
            Some((connector, name)) => handshake(connector.connect(name.clone(), stream).await?).await,
        }
    }
}

async fn handshake<S>(stream: S) -> io::Result<Line>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    Ok(Line { sender, driver: Some(Box::pin(connection)) })
}

/// Whether the other end had closed the connection.
fn is_reset(error: &hyper::Error) -> bool {
    use std::error::Error as _;
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| {
        matches!(
            cause.kind(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted
        )
    })
}
