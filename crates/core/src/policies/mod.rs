//! The policies, one small file each: its formula, what it optimises and what it hurts.

mod boost;
mod class;
mod fcfs;
mod hrrn;
mod ltr;
mod mlfq;
mod oracle;
mod outrank;
mod po;
mod sjf;
mod tie;

use serde::{Deserialize, Serialize};

pub use boost::Boost;
pub use class::{Class, Classes};
pub use fcfs::Fcfs;
pub use hrrn::Hrrn;
pub use ltr::Ltr;
pub use mlfq::Mlfq;
pub use oracle::{OracleSjf, OracleSrtf};
pub use outrank::{OutOfRange, Outrank};
pub use po::Po;
pub use sjf::Sjf;
pub use tie::Tie;

use crate::Policy;

/// Seconds after which policies whose keys depend on measured step costs take them anew for all who wait, so that two
/// equal requests are ordered by the same costs, and thus by arrival, whatever was measured between them.
const COST_REKEY_S: f64 = 1.0;

/// Settings of all policies; each reads its own.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicySettings {
    /// Settings of `outrank`.
    pub outrank: Outrank,
    /// Settings of `ltr`.
    pub ltr: Ltr,
    /// Settings of `class`.
    pub class: Class,
    /// Settings of `po`.
    pub po: Po,
    /// Settings of `mlfq`.
    pub mlfq: Mlfq,
    /// Settings of `hrrn`.
    pub hrrn: Hrrn,
    /// Settings of `tie`.
    pub tie: Tie,
    /// Settings of `boost`.
    pub boost: Boost,
}

/// Names that [`by_name`] knows, the default first.
pub const NAMES: [&str; 12] = [
    "outrank",
    "fcfs",
    "ltr",
    "sjf",
    "class",
    "po",
    "mlfq",
    "hrrn",
    "tie",
    "boost",
    "oracle-sjf",
    "oracle-srtf",
];

/// The policy called `name`, or `None` if there is none of that name.
pub fn by_name(name: &str, settings: &PolicySettings) -> Option<Box<dyn Policy>> {
    Some(match name {
        "outrank" => Box::new(settings.outrank),
        "fcfs" => Box::new(Fcfs),
        "ltr" => Box::new(settings.ltr),
        "sjf" => Box::new(Sjf),
        "class" => Box::new(settings.class),
        "po" => Box::new(settings.po),
        "mlfq" => Box::new(settings.mlfq),
        "hrrn" => Box::new(settings.hrrn),
        "tie" => Box::new(settings.tie),
        "boost" => Box::new(settings.boost),
        "oracle-sjf" => Box::new(OracleSjf),
        "oracle-srtf" => Box::new(OracleSrtf),
        _ => return None,
    })
}

/// What tests of a policy say of one request.
#[cfg(test)]
mod testing {
    use crate::{Policy, Request, RequestView, Score, ServiceModel, Timestamp, Unscored};

    /// A request: what a test does not name is as in the default.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Facts {
        pub(crate) arrival_s: f64,
        pub(crate) age_s: f64,
        pub(crate) prompt_tokens: u32,
        pub(crate) max_tokens: u32,
        pub(crate) generated_tokens: u32,
        /// Median of its score; none leaves it unscored.
        pub(crate) median: Option<f32>,
        pub(crate) spread: f32,
        pub(crate) backlog_s: f64,
        pub(crate) service: ServiceModel,
    }

    impl Default for Facts {
        fn default() -> Self {
            Self {
                arrival_s: 0.0,
                age_s: 0.0,
                prompt_tokens: 10,
                max_tokens: 1000,
                generated_tokens: 0,
                median: None,
                spread: 0.5,
                backlog_s: 0.0,
                service: ServiceModel { decode_s: 0.01, prefill_s: 0.0001 },
            }
        }
    }

    /// What requests without score are taken for.
    pub(crate) const UNSCORED: Unscored = Unscored { tokens: 50.0, service_s: 0.5 };

    impl Facts {
        /// Shows the request as policies see it.
        pub(crate) fn see<T>(self, look: impl FnOnce(&RequestView<'_>) -> T) -> T {
            let arrival = Timestamp::from_secs_f64(self.arrival_s);
            let score = self.median.map(|median| Score::new(median, self.spread).unwrap());
            look(&RequestView {
                request: &Request::new(0, arrival, self.prompt_tokens, self.max_tokens),
                score,
                predicted_tokens: score
                    .map_or(UNSCORED.tokens, |score| score.mean_tokens_within(self.max_tokens)),
                unscored: UNSCORED,
                generated_tokens: self.generated_tokens,
                prefill_tokens: if self.generated_tokens == 0 { self.prompt_tokens } else { 1 },
                service: &self.service,
                now: Timestamp::from_secs_f64(self.arrival_s + self.age_s),
                running: false,
                load: crate::Load { backlog_s: 10.0, mean_service_s: 4.0, short_s: 1.0 },
                backlog_at_arrival_s: self.backlog_s,
            })
        }

        /// Its key under `policy`.
        pub(crate) fn key(self, policy: &dyn Policy) -> f64 {
            self.see(|view| policy.key(view).value())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::testing::Facts;
    use super::*;
    use crate::{Policy, ServiceModel};

    fn policy(name: &str) -> Box<dyn Policy> {
        by_name(name, &PolicySettings::default()).unwrap()
    }

    /// Policies that order by predictions, or by arrival alone.
    const SCORE_READERS: [&str; 8] = ["outrank", "fcfs", "ltr", "class", "po", "hrrn", "sjf", "tie"];
    /// Policies that read the prompt and the service had, and no prediction.
    const PREDICTION_FREE: [&str; 2] = ["mlfq", "boost"];

    #[test]
    fn every_listed_name_gives_the_policy_of_that_name() {
        for name in NAMES {
            assert_eq!(policy(name).name(), name);
        }
        assert!(by_name("Outrank", &PolicySettings::default()).is_none(), "names are exact");
    }

    #[test]
    fn every_policy_is_of_one_kind() {
        let oracles = ["oracle-sjf", "oracle-srtf"];
        let mut kinds = [&SCORE_READERS[..], &PREDICTION_FREE, &oracles].concat();
        let mut names = NAMES.to_vec();
        kinds.sort_unstable();
        names.sort_unstable();
        assert_eq!(kinds, names);
    }

    #[test]
    fn settings_are_read_as_they_are_written_and_unknown_ones_refused() {
        let mut settings = PolicySettings::default();
        (settings.class.width_tokens, settings.boost.gamma_per_s, settings.tie.alpha) = (10.0, 2.0, 0.5);
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<PolicySettings>(&text).unwrap(), settings);
        for name in ["outrank", "ltr", "class", "po", "mlfq", "hrrn", "tie", "boost"] {
            let unknown = format!(r#"{{"{name}": {{"no_such_setting": 1}}}}"#);
            assert!(serde_json::from_str::<PolicySettings>(&unknown).is_err(), "{name}");
            let known = format!(r#"{{"{name}": {{}}}}"#);
            assert_eq!(serde_json::from_str::<PolicySettings>(&known).unwrap(), PolicySettings::default());
        }
    }

    /// Whatever else is known of them: the key of requests without score never falls from one arrival to the next.
    #[test]
    fn requests_without_score_are_ordered_by_arrival() {
        let now_s = 900.0;
        for name in SCORE_READERS {
            let keys = (0..60_u32).map(|i| {
                let arrival_s = f64::from(i);
                let facts = Facts {
                    arrival_s,
                    age_s: now_s - arrival_s,
                    prompt_tokens: 1 + i * 7919 % 500,
                    max_tokens: 1 + i * 104_729 % 900,
                    backlog_s: f64::from(i * 31 % 17),
                    ..Facts::default()
                };
                facts.key(&*policy(name))
            });
            assert!(keys.collect::<Vec<_>>().is_sorted(), "{name}");
        }
    }

    #[test]
    fn prediction_free_policies_do_not_see_scores_and_keep_equals_in_order_of_arrival() {
        for name in PREDICTION_FREE {
            for (prompt_tokens, generated_tokens) in [(1, 0), (700, 0), (30, 200), (700, 3)] {
                let at = |arrival_s, median| {
                    let facts =
                        Facts { arrival_s, prompt_tokens, generated_tokens, median, ..Facts::default() };
                    facts.key(&*policy(name))
                };
                assert_eq!(at(1.0, None), at(1.0, Some(3.0)), "{name}");
                assert_eq!(at(1.0, None), at(1.0, Some(3000.0)), "{name}");
                assert!(at(1.0, None) <= at(2.0, None), "{name}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn no_input_makes_a_key_that_is_not_finite(
            arrival_s in select(vec![0.0, 3.5, 1e13]),
            age_s in select(vec![0.0, 3.5, 1e13]),
            prompt_tokens in select(vec![1, 16, 5000, u32::MAX]),
            max_tokens in select(vec![1, 16, 5000, u32::MAX]),
            generated_tokens in select(vec![0, 1, 16, u32::MAX]),
            median in select(vec![None, Some(f32::MIN_POSITIVE), Some(20.0), Some(f32::MAX)]),
            spread in select(vec![0.0, 0.7, 40.0, f32::MAX]),
            backlog_s in select(vec![0.0, 5.0, 1e13]),
            (decode_s, prefill_s) in (select(vec![0.0, 0.02, 1e6]), select(vec![0.0, 0.001, 1e6])),
        ) {
            let service = ServiceModel { decode_s, prefill_s };
            let facts = Facts {
                arrival_s, age_s, prompt_tokens, max_tokens, generated_tokens, median, spread, backlog_s, service,
            };
            for name in SCORE_READERS.iter().chain(&PREDICTION_FREE) {
                let key = facts.key(&*policy(name));
                prop_assert!(key.is_finite(), "{}: {}", name, key);
            }
        }
    }
}
