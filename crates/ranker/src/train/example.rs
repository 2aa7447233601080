//! One answer to learn from, without its prompt.

use crate::features::Scratch;
use crate::ranker::Ranker;

use super::data::prompt_number;

/// The features of a prompt and the length of its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    pub(super) features: Box<[(u32, f32)]>,
    /// Equal for equal prompts.
    pub(super) number: u64,
    /// Output length in tokens.
    pub tokens: u32,
    /// Whether its limit ended it.
    pub censored: bool,
}

impl Example {
    /// What an answer of `tokens` tokens to this prompt teaches.
    pub fn new(scratch: &mut Scratch, text: &str, tokens: u32, censored: bool) -> Self {
        Self { features: scratch.extract(text).into(), number: prompt_number(text), tokens, censored }
    }

    /// Number of features.
    pub fn features(&self) -> usize {
        self.features.len()
    }

    /// The raw score that a ranker gives the prompt.
    pub fn raw(&self, ranker: &Ranker) -> f32 {
        ranker.raw_of(&self.features)
    }
}
