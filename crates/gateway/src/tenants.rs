//! Who asks: API keys, and what each tenant may have.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use outrank_http::{ApiError, KeyDigest, Keys};
use parking_lot::Mutex;
use serde::Deserialize;

use crate::config::ConfigError;

/// Service class of a request, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Somebody waits for it.
    Interactive,
    /// As most requests.
    #[default]
    Default,
    /// Nobody waits for it: it lets later requests by, within a bound.
    Batch,
}

impl Class {
    /// All classes.
    pub(crate) const ALL: [Self; 3] = [Self::Interactive, Self::Default, Self::Batch];

    /// Its name in headers, settings and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Default => "default",
            Self::Batch => "batch",
        }
    }

    /// The class of this name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }
}

/// A tenant: one table `[[tenants]]` of the settings file.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantConfig {
    /// Its name in metrics and the journal.
    pub name: String,
    /// SHA-256 of its API keys, in hexadecimal (`printf %s KEY | sha256sum`).
    #[serde(default)]
    pub key_sha256: Vec<String>,
    /// Its share of the work while others wait too, relative to theirs.
    #[serde(default = "one")]
    pub weight: f64,
    /// Requests a minute.
    #[serde(default)]
    pub max_requests_per_minute: Option<u32>,
    /// Requests under way at once, waiting or running.
    #[serde(default)]
    pub max_concurrent_requests: Option<u32>,
    /// Class of its requests that name none.
    #[serde(default)]
    pub class: Class,
    /// The best class that its requests may ask for.
    #[serde(default = "interactive")]
    pub best_class: Class,
}

fn one() -> f64 {
    1.0
}

fn interactive() -> Class {
    Class::Interactive
}

impl TenantConfig {
    /// A tenant with this key.
    pub fn with_key(name: &str, key: &str) -> Self {
        use std::fmt::Write as _;
        let digest = <sha2::Sha256 as sha2::Digest>::digest(key.as_bytes());
        let hex = digest.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        Self {
            name: name.to_owned(),
            key_sha256: vec![hex],
            weight: 1.0,
            max_requests_per_minute: None,
            max_concurrent_requests: None,
            class: Class::Default,
            best_class: Class::Interactive,
        }
    }
}

/// Checks what [`Tenants::new`] relies on.
pub(crate) fn check(configs: &[TenantConfig]) -> Result<(), ConfigError> {
    let mut names = Vec::new();
    for TenantConfig { name, key_sha256, weight, class, best_class, .. } in configs {
        let fail = |why: &str| Err(ConfigError(format!("tenant {name:?}: {why}")));
        if name.is_empty() || names.contains(&name) {
            return fail("its name is empty or another's too: give it one of its own");
        }
        if key_sha256.is_empty() || key_sha256.iter().any(|hex| KeyDigest::from_hex(hex).is_none()) {
            return fail(
                "key_sha256 must hold at least one SHA-256 of 64 hexadecimal digits (printf %s KEY | sha256sum)",
            );
        }
        if !(weight.is_finite() && *weight > 0.0) {
            return fail("weight must be a number above 0");
        }
        if class < best_class {
            return fail("class is better than best_class: raise the one or lower the other");
        }
        names.push(name);
    }
    Ok(())
}

/// The tenants of one state of the settings.
#[derive(Debug, Default)]
pub(crate) struct Tenants {
    keys: Keys,
    list: Vec<Arc<Tenant>>,
}

/// A tenant.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) name: Arc<str>,
    pub(crate) config: TenantConfig,
    /// Its lane in every queue.
    pub(crate) lane: usize,
    use_: Arc<Use>,
}

/// What a tenant uses; it outlives a reload of the settings.
#[derive(Debug)]
struct Use {
    under_way: AtomicU32,
    bucket: Mutex<Bucket>,
}

/// Requests that may still come now, refilled with time.
#[derive(Debug)]
struct Bucket {
    left: f64,
    filled: Instant,
}

/// A request that counts towards the limits of its tenant until this is dropped.
#[derive(Debug)]
pub(crate) struct Counted(Arc<Use>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Tenants {
    /// The tenants of checked settings. Those that were there before keep their lane and what they use.
    pub(crate) fn new(
        configs: &[TenantConfig],
        lanes: &mut HashMap<String, usize>,
        before: Option<&Self>,
    ) -> Self {
        let mut tenants = Self::default();
        for (owner, config) in (0..).zip(configs) {
            for digest in config.key_sha256.iter().filter_map(|hex| KeyDigest::from_hex(hex)) {
                tenants.keys.add(digest, owner);
            }
            // Lane 0 is that of a gateway without tenants.
            let next = lanes.len() + 1;
            let lane = *lanes.entry(config.name.clone()).or_insert(next);
            let known =
                before.and_then(|before| before.list.iter().find(|tenant| *tenant.name == config.name));
            let use_ = known.map_or_else(|| Arc::new(Use::new(config)), |known| Arc::clone(&known.use_));
            let name = config.name.as_str().into();
            tenants.list.push(Arc::new(Tenant { name, config: config.clone(), lane, use_ }));
        }
        tenants
    }

    /// The tenants.
    pub(crate) fn list(&self) -> &[Arc<Tenant>] {
        &self.list
    }

    /// Who asks; `None` where everybody may.
    pub(crate) fn identify(&self, headers: &HeaderMap) -> Result<Option<&Arc<Tenant>>, ApiError> {
        if self.list.is_empty() {
            return Ok(None);
        }
        let owner = self.keys.owner(headers)?;
        Ok(self.list.get(owner as usize))
    }
}

impl Use {
    fn new(config: &TenantConfig) -> Self {
        let left = config.max_requests_per_minute.map_or(0.0, f64::from);
        Self { under_way: AtomicU32::new(0), bucket: Mutex::new(Bucket { left, filled: Instant::now() }) }
    }

    /// Takes a request from the bucket, or tells how long until there is one.
    fn take(&self, per_minute: u32, now: Instant) -> Result<(), Duration> {
        let (per_second, most) = (f64::from(per_minute) / 60.0, f64::from(per_minute));
        let mut bucket = self.bucket.lock();
        let since_s = now.saturating_duration_since(bucket.filled).as_secs_f64();
        bucket.left = (bucket.left + since_s * per_second).min(most);
        bucket.filled = now.max(bucket.filled);
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64(((1.0 - bucket.left) / per_second.max(1e-9)).min(3600.0)))
    }
}

impl Tenant {
    /// Counts a request, or says why it is too much.
    pub(crate) fn admit(&self, now: Instant) -> Result<Counted, ApiError> {
        let before = self.use_.under_way.fetch_add(1, Ordering::Relaxed);
        // From here on it is counted, unless it is refused.
        let counted = Counted(Arc::clone(&self.use_));
        if let Some(most) = self.config.max_concurrent_requests.filter(|&most| before >= most) {
            return Err(ApiError::too_many_at_once(most));
        }
        if let Some(per_minute) = self.config.max_requests_per_minute {
            self.use_.take(per_minute, now).map_err(|after| ApiError::rate_limited(per_minute, after))?;
        }
        Ok(counted)
    }

    /// The class of a request that asks for this one: never better than the tenant may have.
    pub(crate) fn class(&self, asked: Option<Class>) -> Class {
        asked.unwrap_or(self.config.class).max(self.config.best_class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(config: TenantConfig) -> Arc<Tenant> {
        Arc::clone(&Tenants::new(&[config], &mut HashMap::new(), None).list[0])
    }

    #[test]
    fn a_rate_is_a_burst_that_refills_and_tells_when_to_come_again() {
        let tenant =
            tenant(TenantConfig { max_requests_per_minute: Some(30), ..TenantConfig::with_key("a", "k") });
        let start = Instant::now();
        for _ in 0..30 {
            drop(tenant.admit(start).unwrap());
        }
        assert!(tenant.admit(start).is_err());
        assert!(tenant.admit(start + Duration::from_millis(1900)).is_err());
        assert!(tenant.admit(start + Duration::from_millis(2100)).is_ok());
        // A clock that seems to go back gives nothing away.
        assert!(tenant.admit(start).is_err());
    }

    #[test]
    fn requests_count_until_they_end_and_through_a_reload() {
        let config = TenantConfig { max_concurrent_requests: Some(2), ..TenantConfig::with_key("a", "k") };
        let mut lanes = HashMap::new();
        let before = Tenants::new(std::slice::from_ref(&config), &mut lanes, None);
        let first = before.list[0].admit(Instant::now()).unwrap();
        let after = Tenants::new(&[TenantConfig::with_key("b", "x"), config], &mut lanes, Some(&before));
        assert_eq!(after.list[1].lane, before.list[0].lane);
        let _second = after.list[1].admit(Instant::now()).unwrap();
        assert!(after.list[1].admit(Instant::now()).is_err());
        drop(first);
        assert!(after.list[1].admit(Instant::now()).is_ok());
    }

    #[test]
    fn a_class_may_be_asked_for_up_to_the_best_that_is_allowed() {
        let config = TenantConfig { best_class: Class::Default, ..TenantConfig::with_key("a", "k") };
        let tenant = tenant(config);
        assert_eq!(tenant.class(Some(Class::Interactive)), Class::Default);
        assert_eq!((tenant.class(Some(Class::Batch)), tenant.class(None)), (Class::Batch, Class::Default));
    }

    #[test]
    fn tenants_that_make_no_sense_are_refused() {
        let good = TenantConfig::with_key("a", "k");
        assert!(check(std::slice::from_ref(&good)).is_ok());
        for bad in [
            TenantConfig { name: String::new(), ..good.clone() },
            TenantConfig { key_sha256: vec!["ab".into()], ..good.clone() },
            TenantConfig { key_sha256: vec![], ..good.clone() },
            TenantConfig { weight: 0.0, ..good.clone() },
            TenantConfig { class: Class::Interactive, best_class: Class::Batch, ..good.clone() },
        ] {
            assert!(check(&[bad]).is_err());
        }
        assert!(check(&[good.clone(), good]).is_err(), "two of one name");
    }
}
