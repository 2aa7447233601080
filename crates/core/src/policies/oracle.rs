use crate::{Key, Load, Policy, Preemption, RequestView};

/// Shortest job first with perfect knowledge: `key = true output length`.
///
/// The bound for any ranker that orders without preemption; only a replayed trace knows it. Requests whose true
/// length is not known go last, in order of arrival.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct OracleSjf;

/// Shortest remaining time first with perfect knowledge: `key = true output length - tokens generated`, with
/// preemption whenever a waiting request has less left than a running one.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct OracleSrtf;

fn remaining(view: &RequestView<'_>, generated_tokens: u32) -> Key {
    Key::new(
        view.request.true_tokens.map_or(f64::INFINITY, |n| f64::from(n.saturating_sub(generated_tokens))),
    )
}

fn why(view: &RequestView<'_>) -> String {
    match view.request.true_tokens {
        Some(n) => format!("true length first: {n} tokens, of which {} are done", view.generated_tokens),
        None => "its true length is not known: after all whose length is, in order of arrival".into(),
    }
}

impl Policy for OracleSjf {
    fn name(&self) -> &'static str {
        "oracle-sjf"
    }

    fn key(&self, view: &RequestView<'_>) -> Key {
        remaining(view, 0)
    }

    fn why(&self, view: &RequestView<'_>) -> String {
        why(view)
    }
}

impl Policy for OracleSrtf {
    fn name(&self) -> &'static str {
        "oracle-srtf"
    }

    fn key(&self, view: &RequestView<'_>) -> Key {
        remaining(view, view.generated_tokens)
    }

    fn preemption(&self, _load: Load) -> Preemption {
        Preemption::Always
    }

    fn why(&self, view: &RequestView<'_>) -> String {
        why(view)
    }
}
