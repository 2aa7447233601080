//! A small text encoder: what a prompt asks for, beyond the words that stand in it.
//!
//! Two convolutions and a layer of attention, 64 wide, over the first and the last 64 word pieces of a request. It was made
//! outside of this program (`bench/encoder`): SmolLM2-135M was fine-tuned to order prompts by the lengths of their answers, and
//! this one, whose word vectors were made from MiniLM's, learned to say what that one says, in about a thousandth of its
//! multiplications. What it says is one feature among the others ([`crate::features`]): a trainer that learns from a trace decides
//! how far it is believed, so a ranker stays linear, learns in seconds, and goes on learning while it serves. It was shown the
//! learned part of traces with an MIT or Apache-2.0 licence (no exams), and the project's own prompts, each judged by a teacher
//! that had not seen it; never a held-out prompt.

mod file;
mod linear;
mod matrix;
mod network;
mod pieces;
mod whole;

use std::sync::LazyLock;

use file::Weights;
use pieces::Vocabulary;

const FILE: &[u8] = include_bytes!("../../assets/encoder.bin");

static SHIPPED: LazyLock<Encoder> = LazyLock::new(|| match Encoder::from_bytes(FILE) {
    Ok(encoder) => encoder,
    Err(problem) => unreachable!("the encoder in the program is sound, a test reads it: {problem}"),
});

/// The encoder; one is shared by all threads.
#[derive(Debug)]
pub(crate) struct Encoder {
    vocabulary: Vocabulary,
    weights: Weights,
}

/// Room for one prompt, reused from prompt to prompt.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pieces: Vec<u16>,
    network: network::Scratch,
}

impl Encoder {
    /// The encoder inside the program. The first call unpacks it, in a few milliseconds.
    pub(crate) fn shipped() -> &'static Self {
        &SHIPPED
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, &'static str> {
        let (prints, weights) = file::read(bytes)?;
        Ok(Self { vocabulary: Vocabulary::new(&prints), weights })
    }

    /// What it guesses of the length of the answer to a text: about ln(tokens), with a mean of 0 and a standard deviation
    /// of 1 over the prompts that it has read. Deterministic; any text will do.
    pub(crate) fn guess(&self, text: &str, scratch: &mut Scratch) -> f32 {
        self.vocabulary.pieces(text, self.weights.half, &mut scratch.pieces);
        network::run(&self.weights, &scratch.pieces, &mut scratch.network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoder_in_the_program_is_sound_and_a_damaged_one_is_refused() {
        assert!(Encoder::from_bytes(FILE).is_ok());
        let mut damaged = FILE.to_vec();
        damaged[FILE.len() / 2] ^= 1;
        assert!(Encoder::from_bytes(&damaged).is_err());
        assert!(Encoder::from_bytes(&FILE[..FILE.len() - 1]).is_err());
        assert!(Encoder::from_bytes(b"").is_err());
    }

    /// Weights and packed features hold what one encoder guesses: with another, files and journals of before mean nothing.
    #[test]
    fn another_encoder_is_another_version_of_ranker_files_and_of_packed_features() {
        let end_of_digest: [u8; 4] = FILE[FILE.len() - 4..].try_into().unwrap();
        let versions = (crate::file::VERSION, crate::features::VERSION);
        assert_eq!((end_of_digest, versions), ([0x20, 0xa0, 0x0b, 0xd7], (5, 5)));
    }

    /// Against `bench/encoder/student.py` itself, in PyTorch, with the weights of the file in 32-bit floats: whole numbers of 8 bits cost
    /// some hundredths. Otherwise it is the same in every build, whichever of its kernels multiplies.
    #[test]
    fn the_guess_is_that_of_the_network_as_it_was_trained() {
        let mut scratch = Scratch::default();
        for (text, trained, expected) in [
            ("List three colours.", -2.5243, -2.5179),
            ("Write a detailed essay about the causes of the French Revolution.", 1.7074, 1.7034),
            ("日本の首都は東京です。", -1.3034, -1.2731),
            (&format!("{}Summarise it.", "word ".repeat(200)), -1.4127, -1.4202),
        ] {
            let guess = Encoder::shipped().guess(text, &mut scratch);
            assert!((guess - trained).abs() < 0.05, "{text}: {guess}");
            assert!((guess - expected).abs() < 1e-3, "{text}: {guess}");
        }
    }

    #[test]
    fn what_asks_for_more_is_said_to_be_longer() {
        let mut scratch = Scratch::default();
        let mut length = |text: &str| Encoder::shipped().guess(text, &mut scratch);
        let short = length("Is Paris the capital of France? Answer yes or no.");
        let long = length("Write a detailed essay about the causes of the French Revolution.");
        assert!(long > short + 1.0, "{short} {long}");
    }

    #[test]
    fn any_text_gives_a_finite_number() {
        let mut scratch = Scratch::default();
        for text in
            ["", " ", "\u{0}", "日本の首都は?", "a\u{301}\u{301}", &"x".repeat(5000), &"word ".repeat(9000)]
        {
            assert!(Encoder::shipped().guess(text, &mut scratch).is_finite(), "{text:?}");
        }
    }
}
