//! Which upstreams there are: those of the settings, those of a file that is watched, and the addresses behind their names.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ClientConfig;
use tokio_util::sync::CancellationToken;

use super::{Upstream, UpstreamConfig, health};
use crate::app::App;
use crate::config::{ConfigError, GatewayConfig};

/// How often the file and the names are looked at.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Looks between two resolutions of names.
const LOOKS_PER_RESOLUTION: u32 = 3;
/// How long a resolution may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Replicas behind one name, at most.
const MAX_ADDRESSES: usize = 256;

/// Reads a file with an upstream a line; empty lines and those that begin with # are none.
///
/// # Errors
/// [`ConfigError`] naming the line.
pub(crate) fn read_file(path: &Path) -> Result<Vec<UpstreamConfig>, ConfigError> {
    let fail = |what: String| ConfigError(format!("{}{what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| fail(format!(": {error}")))?;
    let mut upstreams: Vec<UpstreamConfig> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let upstream: UpstreamConfig =
            line.parse().map_err(|error| fail(format!(":{}: {error}", number + 1)))?;
        if upstreams.iter().any(|other| other.url == upstream.url) {
            return Err(fail(format!(":{}: {} is named twice", number + 1, upstream.url)));
        }
        upstreams.push(upstream);
    }
    Ok(upstreams)
}

/// The upstreams in force, each with the task that checks its health.
pub(crate) struct Fleet {
    app: Arc<App>,
    tls: Arc<ClientConfig>,
    watched: Vec<(Arc<Upstream>, CancellationToken)>,
    /// What the file said, and when it said so.
    from_file: Vec<UpstreamConfig>,
    file_changed: Option<SystemTime>,
    addresses: Vec<(String, Vec<IpAddr>)>,
    looks: u32,
}

impl Fleet {
    pub(crate) fn new(app: Arc<App>, tls: Arc<ClientConfig>) -> Self {
        Self {
            app,
            tls,
            watched: Vec::new(),
            from_file: Vec::new(),
            file_changed: None,
            addresses: Vec::new(),
            looks: 0,
        }
    }

    /// Takes the upstreams of other settings. Those that stay keep their connections and what is known of them.
    ///
    /// # Errors
    /// [`ConfigError`] if the file or an upstream cannot be used; nothing changes then.
    pub(crate) async fn take(&mut self, config: &Arc<GatewayConfig>) -> Result<(), ConfigError> {
        if let Some(path) = &config.upstreams_file {
            self.from_file = read_file(path)?;
            self.file_changed = changed(path);
        } else {
            self.from_file.clear();
        }
        self.resolve(config).await;
        self.apply(config)
    }

    /// Looks whether the file or an address has changed.
    pub(crate) async fn look(&mut self) {
        let config = self.app.config();
        let mut news = false;
        if let Some(path) = &config.upstreams_file {
            let changed = changed(path);
            if changed != self.file_changed {
                self.file_changed = changed;
                match read_file(path) {
                    Ok(upstreams) => {
                        news = upstreams != self.from_file;
                        self.from_file = upstreams;
                    }
                    Err(error) => tracing::warn!(%error, "the upstreams stay as they are"),
                }
            }
        }
        self.looks += 1;
        if self.looks.is_multiple_of(LOOKS_PER_RESOLUTION) {
            news |= self.resolve(&config).await;
        }
        if news && let Err(error) = self.apply(&config) {
            tracing::warn!(%error, "the upstreams stay as they are");
        }
    }

    /// Resolves the names that stand for several replicas. Returns whether any address changed. A name that cannot be resolved
    /// keeps its addresses.
    async fn resolve(&mut self, config: &GatewayConfig) -> bool {
        let mut news = false;
        let named: Vec<UpstreamConfig> =
            config.upstreams.iter().chain(&self.from_file).filter(|upstream| upstream.dns).cloned().collect();
        for upstream in named {
            let lookup = tokio::net::lookup_host((upstream.host.as_str(), upstream.port));
            let mut found: Vec<IpAddr> = match tokio::time::timeout(RESOLVE_TIMEOUT, lookup).await {
                Ok(Ok(addresses)) => addresses.map(|address| address.ip()).collect(),
                _ => {
                    tracing::warn!(upstream = upstream.name, "its name cannot be resolved");
                    continue;
                }
            };
            found.sort_unstable();
            found.dedup();
            found.truncate(MAX_ADDRESSES);
            match self.addresses.iter_mut().find(|(url, _)| *url == upstream.url) {
                Some((_, known)) if *known == found => {}
                Some((_, known)) => {
                    *known = found;
                    news = true;
                }
                None => {
                    self.addresses.push((upstream.url, found));
                    news = true;
                }
            }
        }
        news
    }

    fn apply(&mut self, config: &Arc<GatewayConfig>) -> Result<(), ConfigError> {
        let mut upstreams = Vec::new();
        for wanted in config.upstreams.iter().chain(&self.from_file) {
            let addresses = self.addresses.iter().find(|(url, _)| wanted.dns && *url == wanted.url);
            match addresses {
                None => upstreams.push(self.upstream(wanted, None, config)?),
                Some((_, addresses)) => {
                    for &address in addresses {
                        upstreams.push(self.upstream(wanted, Some(address), config)?);
                    }
                }
            }
        }
        self.app.desk.reconfigure(Arc::clone(config), &upstreams)?;
        self.watch(upstreams, config.health_interval);
        Ok(())
    }

    /// The upstream as it is, if the settings say the same of it as before.
    fn upstream(
        &self,
        wanted: &UpstreamConfig,
        address: Option<IpAddr>,
        config: &GatewayConfig,
    ) -> Result<Arc<Upstream>, ConfigError> {
        let fresh = Upstream::new(wanted, address, config, &self.tls)?;
        let known =
            self.watched.iter().map(|(upstream, _)| upstream).find(|known| known.says_the_same(&fresh));
        Ok(known.map_or_else(|| Arc::new(fresh), Arc::clone))
    }

    fn watch(&mut self, upstreams: Vec<Arc<Upstream>>, interval: Duration) {
        let mut before = std::mem::take(&mut self.watched);
        for upstream in upstreams {
            let known = before.iter().position(|(other, _)| Arc::ptr_eq(other, &upstream));
            self.watched.push(match known {
                Some(at) => before.swap_remove(at),
                None => {
                    let gone = CancellationToken::new();
                    let desk = Arc::clone(&self.app.desk);
                    tokio::spawn(health::watch(desk, Arc::clone(&upstream), interval, gone.clone()));
                    (upstream, gone)
                }
            });
        }
        before.into_iter().for_each(|(_, gone)| gone.cancel());
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.watched.iter().for_each(|(_, gone)| gone.cancel());
    }
}

fn changed(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|data| data.modified()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_an_upstream_a_line_and_errors_name_theirs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upstreams");
        std::fs::write(&path, "# ours\nhttp://a:1 weight=2\n\n  http://b:2  \n").unwrap();
        let names: Vec<_> = read_file(&path).unwrap().into_iter().map(|it| it.name).collect();
        assert_eq!(names, ["a:1", "b:2"]);
        for (text, place) in
            [("http://a:1\nnonsense\n", "upstreams:2"), ("http://a:1\n\nhttp://a:1", "upstreams:3")]
        {
            std::fs::write(&path, text).unwrap();
            assert!(read_file(&path).unwrap_err().to_string().contains(place));
        }
    }
}
