//! Text -> word pieces, as BERT's uncased tokeniser does it (Wu et al. 2016): words and punctuation apart, lower case, no
//! accents, then the longest known piece first.
//!
//! Of the vocabulary only fingerprints are kept: 32 bits of a hash each, all different. An unknown piece passes for a known
//! one once in 140,000.

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

use crate::features::hash;

/// Stands for a word that has no pieces.
const UNKNOWN: u16 = 100;
const START: u16 = 101;
const END: u16 = 102;

/// Longest word that is cut into pieces, in characters.
const MAX_WORD: usize = 100;

/// Bytes of text that are read from either end for each piece that is wanted; more pieces than that stand in them, in all
/// but odd texts.
const BYTES_PER_PIECE: usize = 8;

/// Fingerprint -> piece, by open addressing: 0 is an empty place.
#[derive(Debug)]
pub(super) struct Vocabulary {
    places: Vec<(u32, u16)>,
}

impl Vocabulary {
    /// One fingerprint a piece; 0 for pieces that stand in no text.
    pub(super) fn new(prints: &[u32]) -> Self {
        let mut places = vec![(0, 0); (2 * prints.len()).next_power_of_two()];
        let mask = places.len() - 1;
        for (piece, &print) in prints.iter().enumerate().filter(|&(_, &print)| print != 0) {
            let mut at = print as usize & mask;
            while places[at].0 != 0 {
                at = (at + 1) & mask;
            }
            places[at] = (print, u16::try_from(piece).unwrap_or(UNKNOWN));
        }
        Self { places }
    }

    fn find(&self, hash: u64) -> Option<u16> {
        let print = hash::bucket(0, hash, u32::BITS);
        let mask = self.places.len() - 1;
        let mut at = print as usize & mask;
        loop {
            match self.places[at] {
                (0, _) => return None,
                (known, piece) if known == print => return Some(piece),
                _ => at = (at + 1) & mask,
            }
        }
    }

    /// The first `half` and the last `half` pieces of a text, or all if there are no more, between start and end mark.
    pub(super) fn pieces(&self, text: &str, half: usize, out: &mut Vec<u16>) {
        out.clear();
        out.push(START);
        let bytes = BYTES_PER_PIECE * half;
        if text.len() <= 2 * bytes {
            self.cut(text, out);
        } else {
            self.cut(&text[..text.floor_char_boundary(bytes)], out);
            out.truncate(half);
            out.resize(half, UNKNOWN);
            self.cut(&text[text.ceil_char_boundary(text.len() - bytes)..], out);
        }
        out.push(END);
        if out.len() > 2 * half {
            out.drain(half..out.len() - half);
        }
    }

    fn cut(&self, text: &str, out: &mut Vec<u16>) {
        let mut word: Vec<char> = Vec::with_capacity(32);
        let mut character = |c: char| {
            if c.is_ascii_alphanumeric() {
                // As most characters, none of what comes below.
                word.push(c);
            } else if c.is_whitespace() {
                self.end_word(&mut word, out);
            } else if c.is_control() || c == '\u{fffd}' || is_combining_mark(c) {
                // Nothing that is read.
            } else if is_punctuation(c) || is_ideograph(c) {
                self.end_word(&mut word, out);
                word.push(c);
                self.end_word(&mut word, out);
            } else {
                word.push(c);
            }
        };
        if text.is_ascii() {
            text.bytes().for_each(|byte| character(char::from(byte.to_ascii_lowercase())));
        } else {
            text.chars().flat_map(char::to_lowercase).nfd().for_each(character);
        }
        self.end_word(&mut word, out);
    }

    /// Appends the pieces of a word, and empties it.
    fn end_word(&self, word: &mut Vec<char>, out: &mut Vec<u16>) {
        let before = out.len();
        let mut from = 0;
        while from < word.len() {
            let Some((piece, end)) = self.longest(&word[from..], from > 0).filter(|_| word.len() <= MAX_WORD)
            else {
                out.truncate(before);
                out.push(UNKNOWN);
                break;
            };
            out.push(piece);
            from += end;
        }
        word.clear();
    }

    /// The longest piece that a rest of a word begins with, and its length.
    fn longest(&self, rest: &[char], continues: bool) -> Option<(u16, usize)> {
        let mut hash = if continues { hash::push(hash::START, '#') } else { hash::START };
        let mut hashes = [0; MAX_WORD];
        for (place, &c) in hashes.iter_mut().zip(rest) {
            hash = hash::push(hash, c);
            *place = hash;
        }
        let length = rest.len().min(MAX_WORD);
        (0..length).rev().find_map(|last| self.find(hashes[last]).map(|piece| (piece, last + 1)))
    }
}

fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation()
        || matches!(c, '¡' | '§' | '«' | '¶' | '·' | '»' | '¿' | '\u{2010}'..='\u{2027}' | '\u{2030}'..='\u{205e}'
            | '\u{3001}'..='\u{3003}' | '\u{3008}'..='\u{3011}' | '\u{3014}'..='\u{301f}' | '\u{30fb}' | '\u{ff01}'..='\u{ff0f}'
            | '\u{ff1a}'..='\u{ff20}' | '\u{ff3b}'..='\u{ff3d}' | '\u{ff5b}' | '\u{ff5d}' | '\u{ff5f}'..='\u{ff65}'
            | '\u{060c}' | '\u{061b}' | '\u{061f}' | '\u{0964}' | '\u{0965}')
}

fn is_ideograph(c: char) -> bool {
    matches!(c, '\u{4e00}'..='\u{9fff}' | '\u{3400}'..='\u{4dbf}' | '\u{20000}'..='\u{2fa1f}' | '\u{f900}'..='\u{faff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::Encoder;

    fn pieces(text: &str, half: usize) -> Vec<u16> {
        let mut out = Vec::new();
        Encoder::shipped().vocabulary.pieces(text, half, &mut out);
        out
    }

    /// Against the published tokeniser of MiniLM-L6 (the `tokenizers` package).
    #[test]
    fn texts_are_cut_as_the_published_tokeniser_cuts_them() {
        assert_eq!(
            pieces("Unbelievably, the café's naïve owner re-tokenised 12,345 words!", 32),
            [
                101, 4895, 8671, 2666, 3567, 6321, 1010, 1996, 7668, 1005, 1055, 15743, 3954, 2128, 1011,
                19204, 5084, 2260, 1010, 23785, 2616, 999, 102
            ]
        );
        assert_eq!(
            pieces("日本の首都は東京です。", 32),
            [101, 1864, 1876, 1671, 100, 1961, 1672, 1879, 1755, 1665, 30184, 1636, 102]
        );
        assert_eq!(
            pieces("\tWhat's 2+2?\n\n(a) 3 (b) 4", 32),
            [
                101, 2054, 1005, 1055, 1016, 1009, 1016, 1029, 1006, 1037, 1007, 1017, 1006, 1038, 1007,
                1018, 102
            ]
        );
    }

    #[test]
    fn both_ends_of_a_long_text_are_read_and_no_more() {
        let text = format!("List {}colours.", "many ".repeat(3000));
        let (long, short) = (pieces(&text, 8), pieces("List colours.", 8));
        assert_eq!(long.len(), 16);
        assert_eq!((&long[..2], &long[13..]), (&short[..2], &short[2..]));
        assert_eq!(pieces("", 8), [START, END]);
        assert_eq!(pieces(&"x".repeat(101), 8), [START, UNKNOWN, END]);
    }
}
