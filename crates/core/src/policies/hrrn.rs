use serde::{Deserialize, Serialize};

use crate::{Key, Policy, RequestView};

/// Highest response ratio next (Brinch Hansen, "Short-Term Scheduling in Multiprogramming Systems", SOSP 1971):
///
/// ```text
/// key = -(waited + service) / service        service: expected seconds, prefill and predicted answer
/// ```
///
/// Short requests go first, and everyone's turn comes: a request that asks for ten times the service rises a tenth
/// as fast. It optimises mean slowdown (time in system over service) without starvation, and never preempts; it
/// hurts a short request that arrives behind long ones which have waited for long, and states no bound in seconds.
///
/// Where it differs: SGLang ships a policy of this name (pull request 32911, 2026) in which service is the part of
/// the prompt that no cache holds, in tokens, and waiting is counted in tokens prefilled meanwhile: it is blind to
/// the answer. Here service includes the predicted answer, within the limit of the request. The order changes with
/// time, so the keys of all who wait are taken anew every `rekey_interval_s`. Requests without a score are all
/// taken for one service: they keep the order of arrival.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hrrn {
    /// Seconds after which the ratios of all who wait are taken anew; 0 does so in every step.
    pub rekey_interval_s: f64,
}

/// Shortest service, in seconds: below it ratios would overflow.
const MIN_SERVICE_S: f64 = 1e-6;

impl Default for Hrrn {
    fn default() -> Self {
        Self { rekey_interval_s: 0.1 }
    }
}

fn expected_service_s(view: &RequestView<'_>) -> f64 {
    let service_s = match view.score {
        Some(_) => view.service.service_s(view.request.prompt_tokens, view.predicted_tokens),
        None => view.unscored.service_s,
    };
    service_s.max(MIN_SERVICE_S)
}

impl Policy for Hrrn {
    fn name(&self) -> &'static str {
        "hrrn"
    }

    fn key(&self, view: &RequestView<'_>) -> Key {
        Key::new(-(1.0 + view.age_s() / expected_service_s(view)))
    }

    fn rekey_interval_s(&self) -> Option<f64> {
        Some(self.rekey_interval_s)
    }

    fn why(&self, view: &RequestView<'_>) -> String {
        format!(
            "highest response ratio first: {:.1}, for {:.1} s in the system and {:.1} s of expected service",
            -self.key(view).value(),
            view.age_s(),
            expected_service_s(view)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Facts;
    use super::*;

    fn ratio(median: f32, age_s: f64) -> f64 {
        -Facts { median: Some(median), age_s, ..Facts::default() }.key(&Hrrn::default())
    }

    #[test]
    fn the_ratio_starts_at_one_and_grows_the_faster_the_less_is_asked_for() {
        assert_eq!(ratio(10.0, 0.0), 1.0);
        assert!(ratio(10.0, 2.0) > ratio(100.0, 2.0) && ratio(100.0, 2.0) > ratio(100.0, 1.0));
        assert!(ratio(100.0, 30.0) > ratio(10.0, 1.0), "in the end everyone's turn comes");
    }

    #[test]
    fn the_ratio_is_that_of_time_in_system_to_service() {
        // A step takes 10 ms: 100 tokens with a spread of next to nothing take 1 s, 50 prompt tokens 5 ms.
        let facts = Facts { median: Some(100.0), spread: 0.0, age_s: 3.0, ..Facts::default() };
        let facts = Facts { prompt_tokens: 50, max_tokens: 1000, ..facts };
        let ratio = -facts.key(&Hrrn::default());
        assert!((ratio - (1.0 + 3.0 / 1.005)).abs() < 0.01, "{ratio}");
    }
}
