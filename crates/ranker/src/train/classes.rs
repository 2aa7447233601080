//! The paper's baseline: a classifier over classes of length, on the same features and rows as the ranker.
//!
//! Softmax regression by cross-entropy (AdaGrad). A prompt's score is the median length of its likeliest class, so requests
//! of one class are tied. Classes of equal width put most requests of a chat in one class; classes by percentile are the
//! fair version.

use super::data::{self, Data};
use super::{TraceFile, TrainConfig, TrainError};
use crate::features::{DIMENSIONS, Scratch};

/// Most classes: beyond it, a class of equal width takes all that is longer.
pub const MAX_CLASSES: usize = 64;

/// Passes over all rows.
const PASSES: usize = 12;

/// AdaGrad's step.
const RATE: f64 = 0.1;

/// Penalty on squared weights, for each row that touches them.
const PENALTY: f64 = 1e-4;

/// How lengths are cut into classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassScheme {
    /// Classes of so many tokens each; at least 1.
    Width(u32),
    /// So many classes of equally many requests; at least 2.
    Percentile(usize),
}

/// A classifier over classes of length.
#[derive(Debug, Clone)]
pub struct ClassRanker {
    /// One row of weights a class, over features.
    weights: Vec<f32>,
    bias: Vec<f32>,
    /// Median length of each class in tokens.
    median_tokens: Vec<f64>,
}

impl ClassRanker {
    /// Learns from the rows that are not held out (or all, with [`TrainConfig::all`]); of the settings only the seed counts.
    ///
    /// # Errors
    /// [`TrainError`]: too few rows, or all in one class.
    pub fn train(config: &TrainConfig, files: &[TraceFile], scheme: ClassScheme) -> Result<Self, TrainError> {
        let data = data::build(files, &TrainConfig { prior: None, ..config.clone() })?;
        let tokens: Vec<f64> = (0..data.rows()).map(|row| libm::expm1(data.ln_plus_one(row))).collect();
        let (class_of, median_tokens) = classes(&tokens, scheme);
        if median_tokens.len() < 2 {
            return Err(TrainError::NoOrder);
        }
        let (columns, bias) = descend(&data, &class_of, median_tokens.len(), config.seed);
        let mut weights = vec![0.0f32; median_tokens.len() * DIMENSIONS];
        for (class, own) in columns.chunks_exact(data.features.len()).enumerate() {
            for ((&feature, &scale), &weight) in data.features.iter().zip(&data.scales).zip(own) {
                weights[class * DIMENSIONS + feature as usize] = weight as f32 * scale;
            }
        }
        Ok(Self { weights, bias: bias.iter().map(|&bias| bias as f32).collect(), median_tokens })
    }

    /// The median length of the likeliest class, in tokens.
    pub fn tokens(&self, scratch: &mut Scratch, text: &str) -> f64 {
        let features = scratch.extract(text);
        let logit = |class: usize| {
            let own = &self.weights[class * DIMENSIONS..(class + 1) * DIMENSIONS];
            self.bias[class] + features.iter().map(|&(index, value)| own[index as usize] * value).sum::<f32>()
        };
        let likeliest = (0..self.median_tokens.len()).max_by(|&a, &b| logit(a).total_cmp(&logit(b)));
        self.median_tokens[likeliest.unwrap_or(0)]
    }
}

/// The class of each length, and each class's median; empty classes are left out.
fn classes(tokens: &[f64], scheme: ClassScheme) -> (Vec<usize>, Vec<f64>) {
    let mut sorted = tokens.to_vec();
    sorted.sort_by(f64::total_cmp);
    let raw: Vec<usize> = match scheme {
        ClassScheme::Width(width) => {
            tokens.iter().map(|&n| ((n / f64::from(width.max(1))) as usize).min(MAX_CLASSES - 1)).collect()
        }
        ClassScheme::Percentile(count) => {
            let count = count.clamp(2, MAX_CLASSES);
            let bounds: Vec<f64> = (1..count).map(|part| sorted[part * sorted.len() / count]).collect();
            tokens.iter().map(|&n| bounds.partition_point(|&bound| bound <= n)).collect()
        }
    };
    let mut members: Vec<Vec<f64>> = vec![Vec::new(); MAX_CLASSES];
    raw.iter().zip(tokens).for_each(|(&class, &n)| members[class].push(n));
    let mut number = vec![0; MAX_CLASSES];
    let mut medians = Vec::new();
    for (class, own) in members.iter_mut().enumerate().filter(|(_, own)| !own.is_empty()) {
        own.sort_by(f64::total_cmp);
        number[class] = medians.len();
        medians.push(own[own.len() / 2]);
    }
    (raw.into_iter().map(|class| number[class]).collect(), medians)
}

/// Weights (class by class, over columns) and biases.
fn descend(data: &Data, class_of: &[usize], count: usize, seed: u64) -> (Vec<f64>, Vec<f64>) {
    let columns = data.features.len();
    let (mut weights, mut squares) = (vec![0.0f64; count * columns], vec![1e-2f64; count * columns]);
    let (mut bias, mut bias_squares) = (vec![0.0f64; count], vec![1e-2f64; count]);
    let mut rows: Vec<usize> = (0..data.rows()).collect();
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..PASSES {
        random.shuffle(&mut rows);
        for &row in &rows {
            let logits: Vec<f64> = (0..count)
                .map(|class| bias[class] + data.dot(row, &weights[class * columns..(class + 1) * columns]))
                .collect();
            let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let powers: Vec<f64> = logits.iter().map(|logit| libm::exp(logit - top)).collect();
            let sum: f64 = powers.iter().sum();
            for class in 0..count {
                let slope = powers[class] / sum - f64::from(u8::from(class == class_of[row]));
                bias_squares[class] += slope * slope;
                bias[class] -= RATE * slope / bias_squares[class].sqrt();
                for (column, value) in data.row(row) {
                    let at = class * columns + column;
                    let gradient = slope * value + PENALTY * weights[at];
                    squares[at] += gradient * gradient;
                    weights[at] -= RATE * gradient / squares[at].sqrt();
                }
            }
        }
    }
    (weights, bias)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{Prompt, TraceRecord};

    #[test]
    fn classes_of_equal_width_are_uneven_and_those_by_percentile_are_not() {
        let tokens: Vec<f64> =
            (0..100).map(|n| if n < 90 { f64::from(n) } else { 1000.0 + f64::from(n) }).collect();
        let (class_of, medians) = classes(&tokens, ClassScheme::Width(100));
        assert_eq!((class_of[..90].iter().max(), medians.len()), (Some(&0), 2));
        let (class_of, medians) = classes(&tokens, ClassScheme::Percentile(10));
        assert_eq!(medians.len(), 10);
        assert!((0..10).all(|class| class_of.iter().filter(|&&it| it == class).count() == 10));
    }

    #[test]
    fn what_tells_short_from_long_is_learned_and_requests_of_a_class_are_tied() {
        let record = |index: u32, word: &str, tokens: u32| TraceRecord {
            output_tokens: vec![tokens + index % 9],
            ..TraceRecord::new(Prompt::Text(format!("Item {index}: {word} it")))
        };
        let rows = (0..60).flat_map(|n| [record(n, "glorp", 10), record(n, "zindle", 500)]).collect();
        let files = [TraceFile::new("t", rows)];
        let config = TrainConfig { all: true, ..TrainConfig::default() };
        let ranker = ClassRanker::train(&config, &files, ClassScheme::Percentile(2)).unwrap();
        let mut scratch = Scratch::new();
        let mut tokens = |text: &str| ranker.tokens(&mut scratch, text);
        assert!(tokens("Item 99: glorp it") < 20.0 && tokens("Item 99: zindle it") > 400.0);
        assert_eq!(tokens("Item 7: glorp it").to_bits(), tokens("Item 8: glorp it").to_bits());
        let flat = ClassRanker::train(&config, &files, ClassScheme::Width(10_000));
        assert!(matches!(flat, Err(TrainError::NoOrder)));
    }
}
