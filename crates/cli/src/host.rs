//! The embedded engine behind the server, in this process: what `serve`, `bench` and `collect` run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use outrank_core::{Policy, policies};
use outrank_engine::{Engine, EngineConfig, EngineError, EngineHandle, Model, ensure_q8_0};
use outrank_ranker::Ranker;
use outrank_server::{
    AdaptiveRanker, Drained, EmbeddedEngine, Predictor, Replay, Server, ServerConfig, ServerError,
    ranker_scores,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::error::usage;
use crate::output::note;
use crate::serve::DEFAULT_PORT;
use crate::settings::{EngineSettings, Learning, PolicyFlags, ServeSettings, set};

/// The file that `make model` fetches.
const DEFAULT_MODEL: &str = "smollm2-135m-instruct-q4_1.gguf";
/// Its name in the API.
const DEFAULT_MODEL_NAME: &str = "smollm2-135m-instruct";
/// Its system message where a chat brings none. With the one of its template, which names the model and its maker, it
/// answers 21 of 30 questions of common knowledge (capitals, planets, authors) at temperature 0, and what touches France
/// in broken French; with an empty one 25.
const DEFAULT_MODEL_SYSTEM_PROMPT: &str = "";
/// Where a checkout keeps it.
const CHECKOUT_MODELS: &str = ".cache/models";

/// A loaded model.
pub(crate) struct ModelFile {
    model: Arc<Model>,
    name: String,
}

impl ModelFile {
    /// Loads the model that the settings name, or the default one.
    pub(crate) fn open(engine: &EngineSettings) -> Result<Self> {
        let (path, name, system_prompt) = match &engine.model {
            // A file's name says more than the name inside it, which is often that of a training run.
            Some(path) => {
                (path.clone(), path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), None)
            }
            None => (default_model()?, DEFAULT_MODEL_NAME.to_owned(), Some(DEFAULT_MODEL_SYSTEM_PROMPT)),
        };
        let mut model = Model::load(&path)?;
        if let Some(text) = engine.system_prompt.as_deref().or(system_prompt) {
            model = model.with_system_prompt(text).context("--system-prompt")?;
        }
        Ok(Self { model: Arc::new(model), name })
    }

    /// Its name in the API.
    pub(crate) fn name(&self) -> String {
        self.name.clone()
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        self.model.path()
    }

    /// Tokens of a bare text.
    pub(crate) fn count_tokens(&self, text: &str) -> u32 {
        u32::try_from(self.model.tokenize(text, false, false).len()).unwrap_or(u32::MAX)
    }
}

/// The default model, as Q8_0.
fn default_model() -> Result<PathBuf> {
    let user = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .map(|cache| cache.join("outrank/models"));
    let folders: Vec<PathBuf> = [Some(PathBuf::from(CHECKOUT_MODELS)), user].into_iter().flatten().collect();
    let Some(folder) = folders.iter().find(|folder| folder.join(DEFAULT_MODEL).is_file()) else {
        let looked: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        bail!(
            "no model: {DEFAULT_MODEL} is not in {}; run `make model` to fetch it, or name a GGUF file with --model",
            looked.join(" or ")
        );
    };
    Ok(ensure_q8_0(&folder.join(DEFAULT_MODEL), folder)?)
}

/// Seats of the engine, with the default resolved.
pub(crate) fn seats(engine: &EngineSettings) -> u32 {
    engine.seats.unwrap_or_else(|| EngineConfig::default().seats)
}

/// What a host runs.
pub(crate) struct HostConfig {
    pub(crate) engine: EngineConfig,
    pub(crate) server: ServerConfig,
    pub(crate) policy: Box<dyn Policy>,
    pub(crate) ranker: Option<Ranker>,
    /// Whether the ranker learns from what is served; in a comparison it must not.
    pub(crate) learning: Option<Learning>,
}

impl HostConfig {
    /// A host on a free local port, whose requests may be as long as the context. Settings under which nothing could run
    /// are wrong usage.
    pub(crate) fn new(
        policy: &str,
        engine: &EngineSettings,
        flags: &PolicyFlags,
        ranker: Option<Ranker>,
    ) -> Result<Self> {
        let policy = policies::by_name(policy, &flags.settings()?)
            .ok_or_else(|| usage(format!("no policy is called {policy:?}")))?;
        let mut config = EngineConfig::default();
        set(&mut config.seats, engine.seats);
        set(&mut config.context_tokens, engine.context);
        set(&mut config.threads, engine.threads);
        set(&mut config.max_queue_requests, engine.queue);
        set(&mut config.prefill_chunk_tokens, engine.prefill_chunk);
        set(&mut config.kv_blocks, engine.kv_blocks);
        // More seats need a larger step, unless it was chosen.
        config.step_tokens =
            engine.step_tokens.unwrap_or(config.step_tokens.max(config.seats.saturating_mul(2)));
        config.step_log.clone_from(&engine.step_log);
        config.scheduler().capacity.check().map_err(|error| usage(error.to_string()))?;
        let server = ServerConfig {
            port: 0,
            default_max_tokens: config.context_tokens,
            model_name: String::new(),
            ..ServerConfig::default()
        };
        Ok(Self { engine: config, server, policy, ranker, learning: None })
    }

    /// A host for anybody, as the settings say. What the policy saves against order of arrival is counted where a replay can tell;
    /// in shadow mode, which is for nothing else, a policy whose savings it cannot tell is wrong usage.
    pub(crate) fn to_serve(
        serve: &ServeSettings,
        engine: &EngineSettings,
        flags: &PolicyFlags,
        ranker: Option<Ranker>,
    ) -> Result<Self> {
        let policy = serve.policy();
        let shadow = serve.shadow.unwrap_or(false);
        let config = Self::new(if shadow { "fcfs" } else { policy }, engine, flags, ranker)?;
        let replay = Replay {
            policy: policy.to_owned(),
            settings: flags.settings()?,
            monitor: config.engine.monitor,
            unscored_tokens: config.engine.unscored_tokens,
            seats: config.engine.seats,
        };
        let replay = match replay.book(policy, config.engine.service) {
            Ok(_) => Some(replay),
            Err(error) if shadow => {
                return Err(usage(format!(
                    "{error}; --shadow can compare outrank, sjf, tie and oracle-sjf with order of arrival"
                )));
            }
            Err(_) => None,
        };
        let mut server = ServerConfig { port: DEFAULT_PORT, replay, ..ServerConfig::default() };
        set(&mut server.host, serve.host.clone());
        set(&mut server.port, serve.port);
        set(&mut server.default_max_tokens, serve.default_max_tokens);
        set(&mut server.drain_timeout_s, serve.drain_s);
        server.api_keys.extend(serve.api_key.clone());
        set(&mut server.model_name, serve.model_name.clone());
        server.otlp_endpoint = serve.otlp_endpoint();
        server.check().map_err(|error| usage(error.to_string()))?;
        Ok(Self { server, ..config })
    }

    /// Makes room for so many waiting requests.
    pub(crate) fn queue_at_least(&mut self, requests: usize) {
        self.engine.max_queue_requests = self.engine.max_queue_requests.max(requests);
    }
}

/// A running server with its engine.
pub(crate) struct Host {
    url: String,
    engine: EngineHandle,
    shutdown: oneshot::Sender<()>,
    serving: JoinHandle<Result<Drained, ServerError>>,
}

impl Host {
    /// Takes the port, starts the engine, and serves.
    pub(crate) async fn start(model: &ModelFile, config: HostConfig) -> Result<Self> {
        // Every client that waits is an open socket.
        crate::http::allow_many_sockets();
        let HostConfig { engine, mut server, policy, ranker, learning } = config;
        if server.model_name.is_empty() {
            server.model_name = model.name();
        }
        let context_tokens = engine.context_tokens;
        let engine =
            Engine::start(Arc::clone(&model.model), &engine, policy).map_err(|error| match error {
                EngineError::Capacity(_) | EngineError::Config(_) => usage(error.to_string()),
                _ => error.into(),
            })?;
        let backend = Arc::new(EmbeddedEngine::new(engine.clone(), context_tokens));
        let predictor = ranker.map(|ranker| match learning {
            Some(Learning { file }) => Box::new(AdaptiveRanker::new(ranker, file)) as Box<dyn Predictor>,
            None => ranker_scores(ranker),
        });
        let server = Server::bind(server, backend, predictor).await?;
        let url = format!("http://{}", server.local_addr());
        let (shutdown, signal) = oneshot::channel::<()>();
        // Dropping the sender shuts the server down too: a host that is forgotten does not live on.
        let serving = tokio::spawn(server.run(async move { drop(signal.await) }));
        Ok(Self { url, engine, shutdown, serving })
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The engine behind it.
    pub(crate) fn engine(&self) -> EngineHandle {
        self.engine.clone()
    }

    /// Returns when the server has broken, which it does not do by itself; cancel safe.
    pub(crate) async fn broken(&mut self) -> anyhow::Error {
        match (&mut self.serving).await {
            Ok(Err(error)) => error.into(),
            Ok(Ok(_)) => anyhow::anyhow!("the server ended"),
            Err(error) => error.into(),
        }
    }

    /// Lets what runs finish, and stops the server and the engine.
    pub(crate) async fn stop(self) -> Result<()> {
        // An error means that the server has ended already, which the next line tells.
        let _ = self.shutdown.send(());
        let drained = self.serving.await??;
        let engine = self.engine;
        tokio::task::spawn_blocking(move || engine.shutdown()).await?;
        if drained.abandoned_requests > 0 {
            note(&format!(
                "{} requests did not finish in time and were given up",
                drained.abandoned_requests
            ));
        }
        Ok(())
    }
}
