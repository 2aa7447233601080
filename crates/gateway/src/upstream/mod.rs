//! The servers behind the gateway: what is said of them, how they are reached, and how they are judged.

pub(crate) mod breaker;
mod config;
mod connect;
pub(crate) mod discovery;
mod found;
pub(crate) mod health;
pub(crate) mod seats;
pub(crate) mod window;
pub(crate) mod works;

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::HeaderValue;
use rustls::ClientConfig;

use crate::config::{ConfigError, GatewayConfig, Mode, Stamp, WindowConfig};
pub use config::UpstreamConfig;
pub(crate) use connect::{Connections, Lease, Outgoing, SendError};

/// An upstream, as the settings say.
pub(crate) struct Upstream {
    pub(crate) config: UpstreamConfig,
    /// One address of several behind a name.
    pub(crate) address: Option<IpAddr>,
    /// What it is called in metrics and headers.
    pub(crate) name: String,
    pub(crate) mode: Mode,
    pub(crate) stamp: Stamp,
    pub(crate) window: WindowConfig,
    /// Whether it is asked how many requests it works on at once.
    ask_seats: bool,
    /// The API key that it wants, as the value of a header.
    pub(crate) authorization: Option<HeaderValue>,
    pub(crate) connections: Arc<Connections>,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Upstream {
    /// An upstream, or one address of it.
    ///
    /// # Errors
    /// [`ConfigError`] if its key is not there, or its name cannot be in a certificate.
    pub(crate) fn new(
        config: &UpstreamConfig,
        address: Option<IpAddr>,
        gateway: &GatewayConfig,
        tls: &Arc<ClientConfig>,
    ) -> Result<Self, ConfigError> {
        let name = match address {
            Some(address) => format!("{}@{address}", config.name),
            None => config.name.clone(),
        };
        let authorization =
            config.key_env.as_deref().map(|variable| authorization(config, variable)).transpose()?;
        Ok(Self {
            name,
            mode: config.mode.unwrap_or(gateway.mode),
            stamp: config.stamp.unwrap_or_default(),
            window: config.window.unwrap_or(gateway.window),
            ask_seats: config.ask_seats.unwrap_or(gateway.ask_seats),
            authorization,
            connections: Arc::new(Connections::new(config, address, tls, gateway.connect_timeout)?),
            address,
            config: config.clone(),
        })
    }

    /// Whether both are the same server, whatever else the settings say of it.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let place = |it: &Self| {
            (it.config.https, it.config.host.clone(), it.config.port, it.config.path.clone(), it.address)
        };
        place(self) == place(other) && self.mode == other.mode
    }

    /// Whether the settings say the same of both.
    pub(crate) fn says_the_same(&self, other: &Self) -> bool {
        let said = |it: &Self| {
            let config = (it.config.clone(), it.address, it.authorization.clone());
            (config, it.mode, it.stamp, it.window, it.ask_seats)
        };
        said(self) == said(other)
    }

    /// Whether the number of its seats would change anything.
    pub(crate) fn wants_seats(&self) -> bool {
        self.ask_seats && self.mode == Mode::Hold && matches!(self.window, WindowConfig::Auto { .. })
    }

    pub(crate) fn mode_name(&self) -> &'static str {
        match self.mode {
            Mode::Hold => "hold",
            Mode::Stamp => "stamp",
        }
    }
}

fn authorization(config: &UpstreamConfig, variable: &str) -> Result<HeaderValue, ConfigError> {
    let fail = |why: &str| ConfigError(format!("upstream {}: key_env={variable}: {why}", config.url));
    let key = std::env::var(variable)
        .map_err(|_| fail("no such environment variable: set it to the upstream's API key"))?;
    let mut value = HeaderValue::try_from(format!("Bearer {}", key.trim()))
        .map_err(|_| fail("its value cannot be sent in a header"))?;
    value.set_sensitive(true);
    Ok(value)
}
