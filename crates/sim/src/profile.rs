//! What is simulated: an engine on its hardware.

use std::path::{Path, PathBuf};

use outrank_core::{
    BLOCK_TOKENS, Capacity, CapacityError, MonitorSettings, SchedulerConfig, ServiceModel, SwitchCost,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Composition, StepCost};

/// Profiles that are built in.
const SHIPPED: [(&str, &str); 3] = [
    ("cpu-smollm2", include_str!("../profiles/cpu-smollm2.toml")),
    ("h200-llama3-8b", include_str!("../profiles/h200-llama3-8b.toml")),
    ("a100-40g-llama3-8b", include_str!("../profiles/a100-40g-llama3-8b.toml")),
];

/// An engine on its hardware, as data. Written and read as TOML.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// Where its numbers come from.
    pub source: String,
    /// What it can run.
    pub capacity: Capacity,
    /// What it costs to pause and resume a request; `swap_s_per_token = inf` where it can only recompute.
    pub switch_cost: SwitchCost,
    /// Seconds for which smaller requests may pass a head that memory keeps waiting.
    pub max_bypass_s: f64,
    /// How long a step takes.
    pub step: StepCost,
}

/// Why a profile cannot be had.
#[derive(Debug, Error)]
pub enum ProfileError {
    /// Neither built in nor a file.
    #[error("no profile {0:?}: give a TOML file, or one of cpu-smollm2, h200-llama3-8b, a100-40g-llama3-8b")]
    Unknown(String),
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a profile.
    #[error("{place}: {reason}")]
    Invalid {
        /// File or name.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// It could not run every request it accepts.
    #[error("{place}: {source}")]
    Capacity {
        /// File or name.
        place: String,
        /// What is wrong.
        source: CapacityError,
    },
}

impl Profile {
    /// The built-in profile of that name, or the one in the file of that path.
    ///
    /// # Errors
    /// [`ProfileError`].
    pub fn load(name: &str) -> Result<Self, ProfileError> {
        if let Some((_, text)) = SHIPPED.iter().find(|(shipped, _)| *shipped == name) {
            return Self::parse(name, text);
        }
        let path = Path::new(name);
        if !path.exists() {
            return Err(ProfileError::Unknown(name.into()));
        }
        let text = std::fs::read_to_string(path)
            .map_err(|source| ProfileError::Read { path: path.into(), source })?;
        Self::parse(name, &text)
    }

    /// Reads a profile from TOML; `place` names it in errors.
    ///
    /// # Errors
    /// [`ProfileError::Invalid`] and [`ProfileError::Capacity`].
    pub fn parse(place: &str, text: &str) -> Result<Self, ProfileError> {
        let invalid = |reason: String| ProfileError::Invalid { place: place.into(), reason };
        let profile: Self = toml::from_str(text).map_err(|error| invalid(error.to_string()))?;
        profile.check(place)?;
        Ok(profile)
    }

    fn check(&self, place: &str) -> Result<(), ProfileError> {
        let invalid = |reason: &str| ProfileError::Invalid { place: place.into(), reason: reason.into() };
        if let Some(flaw) = self.step.flaw() {
            return Err(invalid(&flaw));
        }
        if self.switch_cost.swap_s_per_token.is_nan() || self.switch_cost.swap_s_per_token < 0.0 {
            return Err(invalid("switch_cost.swap_s_per_token must be at least 0, or inf"));
        }
        if self.max_bypass_s.is_nan() || self.max_bypass_s < 0.0 {
            return Err(invalid("max_bypass_s must be at least 0"));
        }
        self.capacity.check().map_err(|source| ProfileError::Capacity { place: place.into(), source })
    }

    /// The same engine with another number of seats.
    ///
    /// # Errors
    /// [`ProfileError::Capacity`].
    pub fn with_seats(mut self, seats: u32) -> Result<Self, ProfileError> {
        self.capacity.seats = seats;
        self.capacity.step_tokens = self.capacity.step_tokens.max(seats.saturating_add(1));
        self.check(&self.name)?;
        Ok(self)
    }

    /// What the scheduler is told. The first guess of the step costs is that of a half full batch; the scheduler learns
    /// the rest from its steps, as it does in production.
    pub fn scheduler(&self, unscored_tokens: f64, monitor: MonitorSettings) -> SchedulerConfig {
        let decode_seqs = self.capacity.seats.div_ceil(2);
        let decode = Composition {
            decode_seqs,
            context_tokens: u64::from(decode_seqs) * 10 * u64::from(BLOCK_TOKENS),
            ..Composition::default()
        };
        let prefill_tokens = self.capacity.prefill_chunk_tokens.min(self.capacity.step_tokens - decode_seqs);
        let mixed = Composition { prefill_tokens, ..decode };
        let decode_s = self.step.seconds(&decode);
        let prefill_s = (self.step.seconds(&mixed) - decode_s) / f64::from(prefill_tokens.max(1));
        SchedulerConfig {
            capacity: self.capacity,
            max_queue_requests: usize::MAX,
            switch_cost: self.switch_cost,
            service: ServiceModel { decode_s, prefill_s },
            unscored_tokens,
            max_bypass_s: self.max_bypass_s,
            monitor,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_profiles_are_valid_and_bear_their_names() {
        for (name, _) in SHIPPED {
            assert_eq!(Profile::load(name).unwrap().name, name);
        }
    }

    #[test]
    fn an_unknown_name_lists_what_there_is_and_a_bad_file_says_what_is_wrong() {
        let error = Profile::load("h100").unwrap_err().to_string();
        assert!(error.contains("h200-llama3-8b"), "{error}");
        let text = SHIPPED[1].1;
        let unknown = text.replace("max_bypass_s", "max_bypass_ms");
        assert!(Profile::parse("p.toml", &unknown).unwrap_err().to_string().starts_with("p.toml: "));
    }

    #[test]
    fn more_seats_than_step_tokens_raise_the_step() {
        let profile = Profile::load("a100-40g-llama3-8b").unwrap().with_seats(4096).unwrap();
        assert!(profile.capacity.step_tokens > 4096);
    }
}
