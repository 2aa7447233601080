//! Trying out settings without serving.

use serde::Serialize;

use crate::config::GatewayConfig;
use crate::desk::Models;
use crate::gateway::GatewayError;
use crate::tls;
use crate::upstream::Upstream;
use crate::upstream::discovery::read_file;
use crate::upstream::health::{self, Health};
use crate::upstream::seats;

/// Whether an upstream was reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Reached {
    /// Its name.
    pub upstream: String,
    /// Whether it answered.
    pub up: bool,
    /// What it said, in words.
    pub says: String,
}

/// Checks the settings and the files that they name, and asks the upstreams for their models.
///
/// # Errors
/// [`GatewayError`] naming the setting or file.
pub async fn check(config: &GatewayConfig) -> Result<Vec<Reached>, GatewayError> {
    config.check()?;
    config.tls.as_ref().map(tls::acceptor).transpose()?;
    let mut wanted = config.upstreams.clone();
    if let Some(path) = &config.upstreams_file {
        wanted.extend(read_file(path)?);
    }
    let trust = tls::client()?;
    let mut all = Vec::new();
    for upstream in &wanted {
        let upstream = Upstream::new(upstream, None, config, &trust)?;
        let (up, mut says) = match health::check(&upstream).await {
            Health::Up(Some(Models::Listed(models) | Models::Configured(models))) => {
                (true, format!("serves {}", models.join(", ")))
            }
            Health::Up(_) => (true, "answers, and does not tell its models".to_owned()),
            Health::Unreachable => {
                (false, "cannot be reached: is it running, and is the port right?".to_owned())
            }
            Health::Failing => (false, "does not answer /v1/models as it should".to_owned()),
        };
        if up
            && upstream.wants_seats()
            && let Some(seats) = seats::ask(&upstream).await
        {
            says.push_str(&format!("; works on {seats} requests at once"));
        }
        all.push(Reached { upstream: upstream.name, up, says });
    }
    Ok(all)
}
