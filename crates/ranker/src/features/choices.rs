//! Prompts that offer choices to pick from, as exams do.
//!
//! What makes an answer long is another thing there: digits and formulas mean that something must be worked out, where
//! elsewhere they mean little or the opposite, and an open "why" means less than which subject is asked. A linear model
//! that must serve both gets each half right; so such prompts have weights of their own, and lend a share of the common
//! ones. Tau-b on exam questions by a ranker that had seen no such trace: 0.15 without, 0.36 with.

use super::{BUCKET_BITS, BUCKETS, SURFACE, hash};

/// Share of the common features that stays, and of each that is set apart: together a norm of 1.
const COMMON_SHARE: f32 = 0.3;
const OWN_SHARE: f32 = 0.954;

/// Markers that must stand at the start of lines, or in brackets, for a prompt to offer choices.
const MARKERS: usize = 3;

/// Whether a text offers choices: `A.`, `B)`, `(C)`, `D:` open lines, or stand in brackets within one, in this order.
pub(super) fn offered(text: &str) -> bool {
    let lines = text.lines().map(str::trim_start).filter_map(opening);
    in_order(lines) || in_order(bracketed(text))
}

/// The letter of a line that opens with a choice's marker.
fn opening(line: &str) -> Option<u8> {
    match *line.as_bytes() {
        [b'(', letter, b')' | b'.', ..] => Some(letter),
        [letter, b'.' | b')' | b':', b' ' | b'\t', ..] => Some(letter),
        _ => None,
    }
}

/// Letters that stand alone in brackets.
fn bracketed(text: &str) -> impl Iterator<Item = u8> + '_ {
    text.as_bytes().windows(3).filter(|w| w[0] == b'(' && w[2] == b')').map(|w| w[1])
}

fn in_order(letters: impl Iterator<Item = u8>) -> bool {
    let mut next = b'A';
    for letter in letters.map(|letter| letter.to_ascii_uppercase()) {
        next += u8::from(letter == next);
        if usize::from(next - b'A') == MARKERS {
            return true;
        }
    }
    false
}

/// Doubles the features: a share stays, the rest moves to buckets and surface facts of its own.
pub(super) fn set_apart(list: &mut Vec<(u32, f32)>) {
    for at in 0..list.len() {
        let (index, value) = list[at];
        list[at].1 = COMMON_SHARE * value;
        list.push((own(index), OWN_SHARE * value));
    }
}

fn own(index: u32) -> u32 {
    if (index as usize) < BUCKETS {
        hash::bucket(super::group::CHOICES, u64::from(index), BUCKET_BITS)
    } else {
        index + SURFACE as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_seen_however_they_are_marked_and_nothing_else_is() {
        for text in [
            "Which?\nA. red\nB. green\nC. blue",
            "Which?\n(a) red\n(b) green\n(c) blue",
            "Which? (A) red (B) green (C) blue",
            "Options:\n  A) red\n  B) green\n  C) blue\nAnswer:",
        ] {
            assert!(offered(text), "{text}");
        }
        for text in [
            "Which colour?",
            "A. Smith and B. Jones (C. Brown)",
            "A. one\nB. two",
            "1. x\n2. y\n3. z",
            "(C) (B) (A)",
        ] {
            assert!(!offered(text), "{text}");
        }
    }

    #[test]
    fn every_feature_has_a_twin_and_the_norm_stays() {
        let mut list = vec![(5, 1.0), (BUCKETS as u32 + 3, 0.5)];
        set_apart(&mut list);
        assert_eq!(list.len(), 4);
        assert_eq!(list[3].0 as usize, BUCKETS + SURFACE + 3);
        assert!((list[2].0 as usize) < BUCKETS && list[2].0 != 5);
        let norm = |list: &[(u32, f32)]| list.iter().map(|(_, value)| value * value).sum::<f32>();
        assert!((norm(&list) - 1.25).abs() < 1e-3);
    }
}
