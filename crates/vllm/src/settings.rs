//! What `--additional-config '{"outrank": {...}}'` may say.

use std::path::PathBuf;

use outrank_core::policies::{Ltr, OutOfRange, Outrank, PolicySettings, by_name};
use outrank_core::{MonitorSettings, Policy, ServiceModel};
use outrank_ranker::{Ranker, RankerFileError};
use serde::Deserialize;
use thiserror::Error;

/// Policies that vLLM's queue can serve.
const POLICIES: [&str; 5] = ["outrank", "fcfs", "ltr", "sjf", "oracle"];
/// What `oracle` is called elsewhere.
const ORACLE: &str = "oracle-sjf";

/// Settings that the plug-in cannot start with.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// No JSON object of known keys.
    #[error("additional_config[\"outrank\"]: {0}")]
    Json(#[from] serde_json::Error),
    /// No such policy, or one that vLLM's queue cannot serve.
    #[error(
        "additional_config[\"outrank\"]: unknown policy `{0}`; allowed here: outrank, fcfs, ltr, sjf (the order of ltr, \
         without preemption and promotion), oracle"
    )]
    Policy(String),
    /// The ranker's file cannot be read.
    #[error("additional_config[\"outrank\"].ranker: {0}")]
    Ranker(#[from] RankerFileError),
    /// A number out of its range.
    #[error("additional_config[\"outrank\"].{0} must be a positive finite number")]
    Range(&'static str),
    /// A setting of the policy out of its range.
    #[error("additional_config[\"outrank\"].outrank.{0}")]
    OutOfRange(#[from] OutOfRange),
}

/// The ranker to start from.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(from = "String")]
pub enum RankerChoice {
    /// The one that comes with outrank.
    #[default]
    Shipped,
    /// None: requests go by arrival until one has been learned.
    None,
    /// A file made by `outrank train`.
    File(PathBuf),
}

impl From<String> for RankerChoice {
    fn from(name: String) -> Self {
        match name.as_str() {
            "shipped" => Self::Shipped,
            "none" => Self::None,
            _ => Self::File(name.into()),
        }
    }
}

/// Settings of the plug-in.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `outrank`, `fcfs`, `ltr`, `sjf` or `oracle`.
    pub policy: String,
    /// `shipped`, `none`, or a file made by `outrank train`.
    pub ranker: RankerChoice,
    /// Whether to learn from served answers.
    pub learn: bool,
    /// Settings of the policy `outrank`.
    pub outrank: Outrank,
    /// Settings of the policy `ltr`.
    pub ltr: Ltr,
    /// When to stop following the ranker.
    pub monitor: MonitorSettings,
    /// First guess of the seconds of a step without prefill; measured steps replace it.
    pub decode_s: f64,
    /// First guess of the seconds that a prefill token adds to a step.
    pub prefill_s: f64,
    /// Output tokens that a request without score is taken for.
    pub unscored_tokens: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: "outrank".into(),
            ranker: RankerChoice::Shipped,
            learn: true,
            outrank: Outrank::default(),
            ltr: Ltr::default(),
            monitor: MonitorSettings::default(),
            decode_s: 0.02,
            prefill_s: 5e-5,
            unscored_tokens: 250.0,
        }
    }
}

impl Settings {
    /// Reads and checks settings; `json` is an object.
    ///
    /// # Errors
    /// [`SettingsError`] that names the key and what is allowed.
    pub fn parse(json: &str) -> Result<Self, SettingsError> {
        let mut settings: Self = serde_json::from_str(json)?;
        if settings.policy == ORACLE {
            settings.policy = "oracle".into();
        }
        if !POLICIES.contains(&settings.policy.as_str()) {
            return Err(SettingsError::Policy(settings.policy));
        }
        settings.outrank.check()?;
        let positive = [
            ("decode_s", settings.decode_s),
            ("prefill_s", settings.prefill_s),
            ("unscored_tokens", settings.unscored_tokens),
        ];
        match positive.into_iter().find(|(_, value)| !(value.is_finite() && *value > 0.0)) {
            Some((name, _)) => Err(SettingsError::Range(name)),
            None => Ok(settings),
        }
    }

    /// First guess of the step costs.
    pub fn service(&self) -> ServiceModel {
        ServiceModel { decode_s: self.decode_s, prefill_s: self.prefill_s }
    }

    /// The policy.
    pub(crate) fn policy(&self) -> Result<Box<dyn Policy>, SettingsError> {
        let settings = PolicySettings { outrank: self.outrank, ltr: self.ltr, ..Default::default() };
        let name = if self.policy == "oracle" { ORACLE } else { &self.policy };
        by_name(name, &settings).ok_or_else(|| SettingsError::Policy(self.policy.clone()))
    }

    /// The ranker to start from.
    pub(crate) fn load_ranker(&self) -> Result<Option<Ranker>, SettingsError> {
        Ok(match &self.ranker {
            RankerChoice::Shipped => Some(Ranker::shipped().clone()),
            RankerChoice::None => None,
            RankerChoice::File(path) => Some(Ranker::load(path)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_refused_with_what_is_allowed() {
        let error = Settings::parse(r#"{"polcy": "outrank"}"#).unwrap_err().to_string();
        assert!(
            error.contains("polcy") && error.contains("ranker") && error.contains("unscored_tokens"),
            "{error}"
        );
        let error = Settings::parse(r#"{"policy": "mlfq"}"#).unwrap_err().to_string();
        assert!(error.contains("mlfq") && error.contains("ltr"), "{error}");
        let error = Settings::parse(r#"{"outrank": {"patience": 1}}"#).unwrap_err().to_string();
        assert!(error.contains("patience_s"), "{error}");
        let error = Settings::parse(r#"{"decode_s": 0}"#).unwrap_err().to_string();
        assert!(error.contains("decode_s"), "{error}");
        let error = Settings::parse(r#"{"outrank": {"gather_share": 2}}"#).unwrap_err().to_string();
        assert!(error.contains("outrank.gather_share = 2") && error.contains("from 0 to 1"), "{error}");
        let missing = Settings::parse(r#"{"ranker": "/no/such.outrank"}"#).unwrap();
        assert!(missing.load_ranker().unwrap_err().to_string().contains("/no/such.outrank"));
    }

    #[test]
    fn nothing_said_is_the_default_and_every_policy_allowed_exists() {
        assert_eq!(Settings::parse("{}").unwrap(), Settings::default());
        for name in POLICIES {
            let settings = Settings::parse(&format!(r#"{{"policy": "{name}"}}"#)).unwrap();
            assert!(settings.policy().unwrap().name().starts_with(name));
        }
    }
}
