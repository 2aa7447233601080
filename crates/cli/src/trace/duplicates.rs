//! Near-duplicates across a split: prompts that a ranker could learn by heart although they are not equal.

use std::collections::{BTreeSet, HashMap};

/// Words of one shingle.
const SHINGLE_WORDS: usize = 3;

/// The set of word shingles of a prompt, hashed. Case, punctuation and white space do not matter; characters of scripts
/// without spaces count as words. A prompt of fewer words is one shingle.
pub(crate) fn shingles(text: &str) -> BTreeSet<u64> {
    let words = words(text);
    match words.len() {
        0 => BTreeSet::new(),
        short if short < SHINGLE_WORDS => BTreeSet::from([hash(&words)]),
        _ => words.windows(SHINGLE_WORDS).map(hash).collect(),
    }
}

fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for c in text.chars().flat_map(char::to_lowercase) {
        match c {
            // Kana, CJK ideographs and their extensions: no spaces between words.
            '\u{3040}'..='\u{30ff}'
            | '\u{3400}'..='\u{9fff}'
            | '\u{f900}'..='\u{faff}'
            | '\u{20000}'..='\u{3ffff}' => {
                words.push(c.into());
                words.push(String::new());
            }
            // It's and its are the same word.
            '\'' | '\u{2019}' => {}
            _ if c.is_alphanumeric() => words.last_mut().into_iter().for_each(|word| word.push(c)),
            _ => words.push(String::new()),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// FNV-1a over the words, with a separator.
fn hash(words: &[String]) -> u64 {
    let bytes = words.iter().flat_map(|word| word.bytes().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn jaccard(a: &BTreeSet<u64>, b: &BTreeSet<u64>) -> f64 {
    let both = a.intersection(b).count();
    both as f64 / (a.len() + b.len() - both).max(1) as f64
}

/// A pair of prompts that are nearly the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct NearPair {
    /// Index in the first list.
    pub(crate) first: usize,
    /// Index in the second.
    pub(crate) second: usize,
    /// Jaccard similarity of their shingles.
    pub(crate) similarity: f64,
}

/// For each of `first`, its nearest neighbour in `second` with a similarity above `threshold`, if there is one. Exact.
///
/// Two sets with a Jaccard similarity of at least t share at least t of the shingles of either, so one of them is among
/// the rarest (1 - t) share plus one: only those are looked up.
pub(crate) fn near_pairs(first: &[BTreeSet<u64>], second: &[BTreeSet<u64>], threshold: f64) -> Vec<NearPair> {
    let mut index: HashMap<u64, Vec<usize>> = HashMap::new();
    for (position, set) in second.iter().enumerate() {
        for &shingle in set {
            index.entry(shingle).or_default().push(position);
        }
    }
    let nearest = |(position, set): (usize, &BTreeSet<u64>)| {
        let mut rarest: Vec<u64> = set.iter().copied().collect();
        rarest.sort_by_key(|shingle| (index.get(shingle).map_or(0, Vec::len), *shingle));
        rarest.truncate(set.len() - (threshold * set.len() as f64).ceil() as usize + 1);
        let candidates: BTreeSet<usize> =
            rarest.iter().filter_map(|shingle| index.get(shingle)).flatten().copied().collect();
        let pairs = candidates.into_iter().map(|other| (other, jaccard(set, &second[other])));
        let best = pairs.filter(|&(_, similarity)| similarity > threshold).max_by(|a, b| a.1.total_cmp(&b.1));
        best.map(|(second, similarity)| NearPair { first: position, second, similarity })
    };
    first.iter().enumerate().filter(|(_, set)| !set.is_empty()).filter_map(nearest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_punctuation_and_one_word_of_many_make_no_difference() {
        let a = shingles("Write a short story about a fox who learns to swim in the cold river.");
        let b = shingles("write a short story about a fox, who learns to swim in the cold RIVER!!");
        let c = shingles("Write a short story about a fox who learns to swim in the cold lake.");
        let d = shingles("List ten rivers in Europe by length.");
        assert_eq!(a, b);
        let pairs = near_pairs(&[b, c, d], &[a], 0.6);
        assert_eq!(pairs.iter().map(|pair| pair.first).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn scripts_without_spaces_are_compared_by_character() {
        let (a, b) = (shingles("日本の首都はどこですか"), shingles("日本の首都はどこですか。"));
        assert!(a.len() > 5);
        assert_eq!(near_pairs(&[a], &[b], 0.6).len(), 1);
    }

    #[test]
    fn the_index_finds_exactly_what_comparing_all_pairs_finds() {
        let mut random = fastrand::Rng::with_seed(11);
        let mut text = || {
            (0..random.usize(1..14))
                .map(|_| ["a", "b", "c"][random.usize(0..3)])
                .collect::<Vec<_>>()
                .join(" ")
        };
        let first: Vec<_> = (0..200).map(|_| shingles(&text())).collect();
        let second: Vec<_> = (0..200).map(|_| shingles(&text())).collect();
        for threshold in [0.3, 0.6, 0.9] {
            let found: Vec<usize> =
                near_pairs(&first, &second, threshold).iter().map(|pair| pair.first).collect();
            let naive: Vec<usize> = (0..first.len())
                .filter(|&i| second.iter().any(|set| jaccard(&first[i], set) > threshold))
                .collect();
            assert!(!naive.is_empty() && found == naive, "{threshold}: {} and {}", found.len(), naive.len());
        }
    }
}
