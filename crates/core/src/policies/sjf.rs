use crate::{Key, Policy, RequestView};

/// Shortest predicted job first: `key = predicted length`, without preemption or any care for who waits.
///
/// What an engine with a priority queue gives when a gateway stamps the predicted length as priority (PARS, arXiv
/// 2510.03243, does so with vLLM). Optimises the mean; nothing bounds the wait of a long request. Requests without a score
/// count as the mean length, in order of arrival.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Sjf;

impl Policy for Sjf {
    fn name(&self) -> &'static str {
        "sjf"
    }

    fn key(&self, view: &RequestView<'_>) -> Key {
        Key::new(view.score.map_or(view.unscored.tokens, |score| f64::from(score.median_tokens())))
    }

    fn why(&self, view: &RequestView<'_>) -> String {
        format!("shortest predicted answer first: {:.0} tokens predicted", self.key(view).value())
    }
}
