//! One answer to learn from, without its prompt.

use outrank_core::Score;

use crate::features::{PackedError, Scratch, pack, sort, unpack};
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
        let mut features: Box<[(u32, f32)]> = scratch.extract(text).into();
        // An order that does not depend on where the words stood, so that one that was packed is the same to the last bit.
        sort(&mut features);
        Self { features, number: prompt_number(text), tokens, censored }
    }

    /// The features as a short text without the words, which [`Example::unpack`] reads; `None` where it would be longer than
    /// [`crate::features::MAX_PACKED_BYTES`]. Each word can be guessed from it with a dictionary: it is not anonymous.
    pub fn pack(&self) -> Option<String> {
        pack(&self.features, self.number)
    }

    /// What an answer of `tokens` tokens teaches, to a prompt of which [`Example::pack`] kept the features.
    ///
    /// # Errors
    /// [`PackedError`]: features of another version, or damaged ones.
    pub fn unpack(packed: &str, tokens: u32, censored: bool) -> Result<Self, PackedError> {
        let (features, number) = unpack(packed)?;
        Ok(Self { features: features.into(), number, tokens, censored })
    }

    /// Median length in tokens of the answers that ended by themselves; `None` without any. A censored answer that is shorter
    /// says nothing of how long it would have been.
    pub fn median_tokens<'a>(examples: impl IntoIterator<Item = &'a Self>) -> Option<u32> {
        let finished = examples.into_iter().filter(|example| !example.censored);
        let mut lengths: Vec<u32> = finished.map(|example| example.tokens).collect();
        let middle = lengths.len() / 2;
        (!lengths.is_empty()).then(|| *lengths.select_nth_unstable(middle).1)
    }

    /// Number of features.
    pub fn features(&self) -> usize {
        self.features.len()
    }

    /// The raw score that a ranker gives the prompt.
    pub fn raw(&self, ranker: &Ranker) -> f32 {
        ranker.raw_of(&self.features)
    }

    /// The length that a ranker predicts.
    pub fn score(&self, ranker: &Ranker) -> Score {
        ranker.calibration().score(self.raw(ranker))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_example_that_was_packed_scores_as_before(text in "(\\PC{0,40}[ \n]){0,30}", tokens: u32, censored: bool) {
            let ranker = Ranker::shipped();
            let example = Example::new(&mut Scratch::new(), &text, tokens, censored);
            let again = Example::unpack(&example.pack().unwrap(), tokens, censored).unwrap();
            prop_assert_eq!(&again, &example);
            prop_assert_eq!(again.raw(ranker).to_bits(), example.raw(ranker).to_bits());
            let (of_text, of_features) = (ranker.score(&text).median_tokens(), again.score(ranker).median_tokens());
            prop_assert!((of_text / of_features - 1.0).abs() < 1e-4, "{} {}", of_text, of_features);
        }
    }

    #[test]
    fn a_packed_example_is_still_in_the_fold_of_its_prompt() {
        let packed = |text: &str| Example::new(&mut Scratch::new(), text, 1, false).pack().unwrap();
        let number = |text: &str| Example::unpack(&packed(text), 1, false).unwrap().number;
        assert_eq!(number("Hi"), prompt_number("Hi"));
        assert_ne!(number("Hi"), number("Ho"));
    }
}
