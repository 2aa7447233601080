//! The gateway's life: bind, serve, reload, drain, exit.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrank_http::{BindError, Drained, Predictor, Traces, listen_on};
use parking_lot::RwLock;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::app::{App, start_scorer};
use crate::config::{ConfigError, GatewayConfig};
use crate::journal::{Journal, Journals};
use crate::listen::{self, Acceptor};
use crate::metrics::Metrics;
use crate::tls;
use crate::upstream::discovery::{Fleet, LOOK_INTERVAL};

/// How long connections may take to close after the last request has ended or was given up.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the desk looks after what only time changes.
const TICK: Duration = Duration::from_millis(50);

/// Why the gateway could not start or had to stop.
#[derive(Debug, Error)]
pub enum GatewayError {
    /// A setting makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The port could not be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A thread or file could not be had.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

/// A gateway that has its port.
pub struct Gateway {
    app: Arc<App>,
    listener: TcpListener,
    local_addr: SocketAddr,
    acceptor: Acceptor,
    fleet: Arc<Mutex<Fleet>>,
    reloads: mpsc::Receiver<Reload>,
    handle: Handle,
}

/// Gives a running gateway other settings.
#[derive(Clone, Debug)]
pub struct Handle(mpsc::Sender<Reload>);

struct Reload {
    config: GatewayConfig,
    predictor: Option<Box<dyn Predictor>>,
    keep_ranker: bool,
    done: oneshot::Sender<Result<(), GatewayError>>,
}

impl std::fmt::Debug for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reload")
    }
}

impl Handle {
    /// Takes other keys, limits, upstreams, certificates and another ranker. Requests under way are not touched. Address and port
    /// stay, and so do policies of queues that exist. With `keep_ranker` the one in force stays with all that it has learned, unless
    /// its thread has died.
    ///
    /// # Errors
    /// [`GatewayError`] if the settings cannot be used; those before stay in force.
    pub async fn reload(
        &self,
        config: GatewayConfig,
        predictor: Option<Box<dyn Predictor>>,
        keep_ranker: bool,
    ) -> Result<(), GatewayError> {
        let (done, told) = oneshot::channel();
        let gone = || GatewayError::Io {
            what: "the gateway has ended".into(),
            source: io::ErrorKind::BrokenPipe.into(),
        };
        self.0.send(Reload { config, predictor, keep_ranker, done }).await.map_err(|_| gone())?;
        told.await.map_err(|_| gone())?
    }
}

impl Gateway {
    /// Takes the port, and starts looking after the upstreams. Nothing is served before [`Gateway::run`].
    ///
    /// # Errors
    /// [`GatewayError`] saying what to change.
    pub async fn bind(
        config: GatewayConfig,
        predictor: Option<Box<dyn Predictor>>,
    ) -> Result<Self, GatewayError> {
        config.check()?;
        let config = Arc::new(config);
        let acceptor = Arc::new(RwLock::new(config.tls.as_ref().map(tls::acceptor).transpose()?));
        let listener = listen_on(&config.host, config.port).await?;
        let local_addr =
            listener.local_addr().map_err(|source| io_error("cannot read the address", source))?;
        let metrics = Arc::new(Metrics::new());
        let journals = Journals::default();
        journals.replace(open_journal(&journals, &config, &metrics)?);
        let traces = config.otlp_endpoint.as_deref().map(|endpoint| Traces::to(endpoint, "outrank-gateway"));
        let traces = traces.transpose().map_err(|error| ConfigError(error.to_string()))?.map(Arc::new);
        let app = App::new(&config, predictor, journals, metrics, traces)
            .map_err(|source| io_error("cannot start the scoring thread", source))?;
        let app = Arc::new(app);
        let mut fleet = Fleet::new(Arc::clone(&app), tls::client()?);
        fleet.take(&config).await?;
        let (send, reloads) = mpsc::channel(1);
        let (fleet, handle) = (Arc::new(Mutex::new(fleet)), Handle(send));
        Ok(Self { app, listener, local_addr, acceptor, fleet, reloads, handle })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// To give it other settings while it runs.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until `shutdown` comes; then refuses new requests, lets those under way finish within the drain timeout, gives up
    /// the rest, writes what the journal still has to, and returns.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Drained {
        let Self { app, listener, acceptor, fleet, mut reloads, .. } = self;
        let closing = CancellationToken::new();
        let serving = listen::serve(Arc::clone(&app), listener, Arc::clone(&acceptor), closing.clone());
        let mut serving = tokio::spawn(serving);
        let chores = tokio::spawn(chores(Arc::clone(&app), Arc::clone(&fleet)));
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                _ = &mut serving => break,
                () = &mut shutdown => break,
                Some(reload) = reloads.recv() => {
                    let Reload { config, predictor, keep_ranker, done } = reload;
                    let result = take(&app, &fleet, &acceptor, config, predictor, keep_ranker).await;
                    // Who asked may have left.
                    let _ = done.send(result);
                }
            }
        }
        let told = Instant::now();
        let abandoned_requests = drain(&app).await;
        closing.cancel();
        // A client that does not read its last bytes cannot keep the gateway up.
        let closed = async {
            while app.metrics.connections.get() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, closed).await;
        chores.abort();
        serving.abort();
        // What is left of the time to drain is the disk's.
        let left = app.config().drain_timeout.saturating_sub(told.elapsed());
        app.journals.close(left.max(CLOSE_TIMEOUT)).await;
        if let Some(traces) = app.traces.clone() {
            traces.finish().await;
        }
        Drained { abandoned_requests }
    }
}

/// What is to be done beside the requests.
async fn chores(app: Arc<App>, fleet: Arc<Mutex<Fleet>>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let looks = tokio::spawn(async move {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            fleet.lock().await.look().await;
        }
    });
    let _looks = AbortOnDrop(looks);
    loop {
        ticks.tick().await;
        app.desk.tick();
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Takes other settings, all or none.
async fn take(
    app: &Arc<App>,
    fleet: &Mutex<Fleet>,
    acceptor: &Acceptor,
    config: GatewayConfig,
    predictor: Option<Box<dyn Predictor>>,
    keep_ranker: bool,
) -> Result<(), GatewayError> {
    config.check()?;
    let before = app.config();
    if (&config.host, config.port) != (&before.host, before.port) {
        tracing::warn!("host and port stay as they are until the next start");
    }
    if config.otlp_endpoint != before.otlp_endpoint {
        tracing::warn!("traces go where they went until the next start");
    }
    let config = Arc::new(config);
    let fresh_tls = config.tls.as_ref().map(tls::acceptor).transpose()?;
    let journal = open_journal(&app.journals, &config, &app.metrics)?;
    let in_force = app.scorer();
    let scorer = if keep_ranker && in_force.is_alive() {
        in_force
    } else {
        let started = start_scorer(predictor, &config, &app.metrics, &app.records);
        Arc::new(started.map_err(|source| io_error("cannot start the scoring thread", source))?)
    };
    fleet.lock().await.take(&config).await?;
    *acceptor.write() = fresh_tls;
    app.replace(config, scorer, journal);
    app.metrics.reloads.inc();
    tracing::info!("settings reloaded");
    Ok(())
}

fn open_journal(
    journals: &Journals,
    config: &GatewayConfig,
    metrics: &Arc<Metrics>,
) -> Result<Option<Journal>, GatewayError> {
    let Some(journal) = &config.journal else { return Ok(None) };
    let opened = journals.open(journal, metrics);
    opened.map(Some).map_err(|source| io_error(&format!("journal {}", journal.path.display()), source))
}

fn io_error(what: &str, source: io::Error) -> GatewayError {
    GatewayError::Io { what: what.to_owned(), source }
}

/// Lets the requests under way finish, gives up those that do not, and returns their number.
async fn drain(app: &App) -> usize {
    app.drain();
    let timeout = app.config().drain_timeout;
    tracing::info!(requests = app.records.under_way(), timeout_s = timeout.as_secs_f64(), "draining");
    if tokio::time::timeout(timeout, app.records.idle()).await.is_ok() {
        return 0;
    }
    let abandoned = app.records.under_way();
    tracing::warn!(abandoned, "drain timeout: giving up the requests that still run");
    app.stop.cancel();
    app.records.all().iter().for_each(|record| record.stop());
    // Their clients are told.
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, app.records.idle()).await;
    abandoned
}
