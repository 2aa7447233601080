//! What is said of an upstream: a URL and settings on one line, on the command line, in `outrank.toml` and in the watched file alike.

use std::str::FromStr;

use axum::http::Uri;
use axum::http::uri::Scheme;

use crate::config::{ConfigError, Mode, Stamp, WindowConfig};

/// Largest window that may be asked for.
const MAX_WINDOW_REQUESTS: u32 = 65_536;

/// An upstream: `URL [name=X] [mode=hold|stamp] [stamp=body|body-higher-first|header] [window=N|auto|MIN-MAX] [ask_seats=yes|no]
/// [limit=N] [weight=X] [models=A,B] [key_env=VARIABLE] [dns=yes|no]`.
#[derive(Clone, PartialEq, Debug)]
pub struct UpstreamConfig {
    /// `http://host:port` or `https://host:port`, with a path if the API is not at the root.
    pub url: String,
    /// What it is called in metrics and headers; host and port, unless said otherwise.
    pub name: String,
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Whether it speaks TLS.
    pub https: bool,
    /// Path in front of `/v1/...`; without a slash at its end.
    pub path: String,
    /// Hold or stamp; that of the gateway, if not said.
    pub mode: Option<Mode>,
    /// How priorities are stamped.
    pub stamp: Option<Stamp>,
    /// Window in hold mode; that of the gateway, if not said.
    pub window: Option<WindowConfig>,
    /// Whether it is asked for its seats, which bound a window that is `auto`; as the gateway does, if not said.
    pub ask_seats: Option<bool>,
    /// Requests at it at once, whatever the mode and window.
    pub limit: Option<u32>,
    /// Its share of the work, relative to the others.
    pub weight: f64,
    /// The models that it serves; asked of it, if not said.
    pub models: Option<Vec<String>>,
    /// Environment variable with the API key that it wants.
    pub key_env: Option<String>,
    /// Whether the name stands for several addresses, each a replica, and is resolved again and again.
    pub dns: bool,
}

impl FromStr for UpstreamConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut words = text.split_whitespace();
        let url = words.next().ok_or_else(|| ConfigError("an upstream needs a URL".into()))?;
        let mut config = Self::from_url(url)?;
        for word in words {
            let (key, value) = word.split_once('=').ok_or_else(|| {
                ConfigError(format!("upstream {url}: expected settings such as weight=2, found {word:?}"))
            })?;
            config
                .set(key, value)
                .map_err(|why| ConfigError(format!("upstream {url}: {key}={value}: {why}")))?;
        }
        Ok(config)
    }
}

impl UpstreamConfig {
    fn from_url(url: &str) -> Result<Self, ConfigError> {
        let fail = |why: &str| {
            ConfigError(format!("upstream {url:?}: {why}: write it as http://host:port or https://host:port"))
        };
        let uri: Uri = url.parse().map_err(|_| fail("not a URL"))?;
        let https = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(fail("neither http:// nor https://")),
        };
        let authority = uri.authority().ok_or_else(|| fail("no host"))?;
        if authority.as_str().contains('@') {
            // The text is not repeated: it may hold a key.
            return Err(ConfigError(
                "an upstream's URL has something before an @: keys do not belong into URLs, which are logged; \
                 use key_env=VARIABLE"
                    .into(),
            ));
        }
        if uri.query().is_some() {
            return Err(fail("a query string is not supported"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        // Clients' paths begin with /v1 themselves.
        let path = uri.path().trim_end_matches('/').trim_end_matches("/v1").trim_end_matches('/').to_owned();
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            name: format!("{}:{port}", authority.host()),
            host,
            port,
            https,
            path,
            mode: None,
            stamp: None,
            window: None,
            ask_seats: None,
            limit: None,
            weight: 1.0,
            models: None,
            key_env: None,
            dns: false,
        })
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "name" => self.name = parse_name(value)?,
            "mode" => self.mode = Some(value.parse()?),
            "stamp" => self.stamp = Some(value.parse()?),
            "window" => self.window = Some(value.parse()?),
            "ask_seats" => self.ask_seats = Some(yes_or_no(value)?),
            "limit" => self.limit = Some(count(value)?),
            "weight" => match value.parse::<f64>() {
                Ok(weight) if weight.is_finite() && weight > 0.0 => self.weight = weight,
                _ => return Err("expected a number above 0".into()),
            },
            "models" => {
                let names = value.split(',').filter(|name| !name.is_empty());
                self.models = Some(names.map(str::to_owned).collect());
            }
            "key_env" => self.key_env = Some(value.to_owned()),
            "dns" => self.dns = yes_or_no(value)?,
            _ => {
                return Err(
                    "no such setting; known: name, mode, stamp, window, ask_seats, limit, weight, models, \
                            key_env, dns"
                        .into(),
                );
            }
        }
        Ok(())
    }
}

fn parse_name(value: &str) -> Result<String, String> {
    let sane = |c: char| c.is_ascii_alphanumeric() || "-_.:/".contains(c);
    if value.is_empty() || !value.chars().all(sane) {
        return Err("a name is made of letters, digits and -_.:/".into());
    }
    Ok(value.to_owned())
}

fn yes_or_no(value: &str) -> Result<bool, String> {
    match value {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("expected yes or no".into()),
    }
}

fn count(value: &str) -> Result<u32, String> {
    match value.parse::<u32>() {
        Ok(count) if (1..=MAX_WINDOW_REQUESTS).contains(&count) => Ok(count),
        _ => Err(format!("expected a whole number from 1 to {MAX_WINDOW_REQUESTS}")),
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "hold" => Ok(Self::Hold),
            "stamp" => Ok(Self::Stamp),
            _ => Err("expected hold or stamp".into()),
        }
    }
}

impl FromStr for Stamp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "body" => Ok(Self::Body),
            "body-higher-first" => Ok(Self::BodyHigherFirst),
            "header" => Ok(Self::Header),
            _ => Err("expected body, body-higher-first or header".into()),
        }
    }
}

impl FromStr for WindowConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::default());
        }
        let Some((min, max)) = text.split_once('-') else {
            return count(text).map(Self::Fixed).map_err(|why| format!("{why}, MIN-MAX, or auto"));
        };
        let (min_requests, max_requests) = (count(min)?, count(max)?);
        if min_requests > max_requests {
            return Err("the smaller number goes first".into());
        }
        Ok(Self::Auto { min_requests, max_requests })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_says_all() {
        let line = "https://gpu1.example:8443/llm/v1/ name=a mode=stamp stamp=body-higher-first window=2-64 limit=100 \
                    weight=2.5 models=x,y/z key_env=KEY dns=yes ask_seats=no";
        let config: UpstreamConfig = line.parse().unwrap();
        assert_eq!((config.host.as_str(), config.port, config.https), ("gpu1.example", 8443, true));
        assert_eq!((config.path.as_str(), config.name.as_str()), ("/llm", "a"));
        assert_eq!((config.mode, config.stamp), (Some(Mode::Stamp), Some(Stamp::BodyHigherFirst)));
        assert_eq!(config.window, Some(WindowConfig::Auto { min_requests: 2, max_requests: 64 }));
        assert_eq!((config.limit, config.weight), (Some(100), 2.5));
        assert_eq!((config.dns, config.ask_seats), (true, Some(false)));
        assert_eq!(config.models.unwrap(), ["x", "y/z"]);
        let plain: UpstreamConfig = "http://[::1]:8001".parse().unwrap();
        assert_eq!(
            (plain.host.as_str(), plain.name.as_str(), plain.path.as_str()),
            ("::1", "[::1]:8001", "")
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_named() {
        for (line, word) in [
            ("", "needs a URL"),
            ("localhost:8000", "http://"),
            ("ftp://x", "http://"),
            ("http://user:secret@x", "key_env"),
            ("http://x weight=0", "above 0"),
            ("http://x window=0", "from 1 to"),
            ("http://x window=9-3", "smaller"),
            ("http://x colour=red", "known: name"),
            ("http://x fast", "weight=2"),
            ("http://x mode=queue", "hold or stamp"),
            ("http://x ask_seats=4", "yes or no"),
        ] {
            let error = line.parse::<UpstreamConfig>().unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
