//! The server's life: bind, serve, drain, exit.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::ServerConfig;
use crate::app::App;
use crate::backend::Backend;
use crate::routes::router;
use outrank_http::{BindError, Drained, Predictor, Traces, TracesError, listen_on};

/// How long connections may take to close after the last request has ended or was given up.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the server could not start or had to stop.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The port could not be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A setting makes no sense.
    #[error("{0}")]
    Config(&'static str),
    /// Traces cannot be sent where the settings say.
    #[error(transparent)]
    Traces(#[from] TracesError),
    /// A thread could not be started, or the listener broke.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A server that has its port.
pub struct Server {
    listener: TcpListener,
    local_addr: SocketAddr,
    app: Arc<App>,
}

impl Server {
    /// Takes the port and starts the scoring thread. Nothing is served before [`Server::run`].
    ///
    /// # Errors
    /// [`ServerError`] saying what to change.
    pub async fn bind(
        config: ServerConfig,
        backend: Arc<dyn Backend>,
        predictor: Option<Box<dyn Predictor>>,
    ) -> Result<Self, ServerError> {
        config.check()?;
        let listener = listen_on(&config.host, config.port).await?;
        let local_addr = listener
            .local_addr()
            .map_err(|source| ServerError::Io { what: "cannot read the address", source })?;
        let traces = config.otlp_endpoint.as_deref().map(|endpoint| Traces::to(endpoint, "outrank-server"));
        let traces = traces.transpose()?.map(Arc::new);
        let app = App::new(config, backend, predictor, traces)
            .map_err(|source| ServerError::Io { what: "cannot start the scoring thread", source })?;
        Ok(Self { listener, local_addr, app: Arc::new(app) })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until `shutdown` comes; then refuses new requests, lets the running ones finish within the drain
    /// timeout, gives up the rest, and returns.
    ///
    /// # Errors
    /// [`ServerError::Io`] when the listener breaks.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<Drained, ServerError> {
        let Self { listener, app, .. } = self;
        let closing = CancellationToken::new();
        // A token is a small packet that must not wait for the next one.
        let listener = listener.tap_io(|connection| {
            if let Err(error) = connection.set_nodelay(true) {
                tracing::debug!(%error, "cannot set TCP_NODELAY");
            }
        });
        let serving = axum::serve(listener, router(Arc::clone(&app)))
            .with_graceful_shutdown(closing.clone().cancelled_owned());
        let mut serving = tokio::spawn(serving.into_future());
        tokio::select! {
            ended = &mut serving => return broken(ended),
            () = shutdown => {}
        }
        let abandoned_requests = drain(&app).await;
        closing.cancel();
        // A client that does not read its last bytes cannot keep the server up.
        if tokio::time::timeout(CLOSE_TIMEOUT, &mut serving).await.is_err() {
            serving.abort();
        }
        if let Some(traces) = app.traces.clone() {
            traces.finish().await;
        }
        Ok(Drained { abandoned_requests })
    }
}

/// Lets the running requests finish, gives up those that do not, and returns their number.
async fn drain(app: &App) -> usize {
    app.drain();
    let timeout_s = app.config.drain_timeout_s;
    tracing::info!(requests = app.records.under_way(), timeout_s, "draining");
    if tokio::time::timeout(Duration::from_secs(timeout_s), app.records.idle()).await.is_ok() {
        return 0;
    }
    let abandoned = app.records.under_way();
    tracing::warn!(abandoned, "drain timeout: giving up the requests that still run");
    app.stop.cancel();
    abandoned
}

fn broken(ended: Result<io::Result<()>, tokio::task::JoinError>) -> Result<Drained, ServerError> {
    let what = "the listener broke";
    match ended {
        Ok(Ok(())) => Ok(Drained::default()),
        Ok(Err(source)) => Err(ServerError::Io { what, source }),
        Err(error) => Err(ServerError::Io { what, source: io::Error::other(error) }),
    }
}
