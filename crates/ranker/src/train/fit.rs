//! Cross-validated fitting: penalty and number of passes are chosen on folds of the learned part.

use super::data::Data;
use super::{Progress, TrainConfig, listmle, ridge};
use crate::tau::kendall_tau_b;

/// What fitting gives.
pub(super) struct Fit {
    /// Weights over columns: the mean of the folds' models.
    pub(super) weights: Vec<f64>,
    /// Each row's raw score by the model that did not learn from it.
    pub(super) unseen: Vec<f64>,
    /// Tau-b of `unseen`.
    pub(super) tau_b: f64,
    pub(super) penalty: f64,
    pub(super) epochs: usize,
}

/// Standard deviation of a Gumbel variable: the noise that Plackett and Luce assume.
const GUMBEL_DEVIATION: f64 = 1.282_549_830_161_864;

/// Share of the warm start's penalty that ListMLE keeps: stopping early already holds the weights back.
const RANK_PENALTY_SHARE: f64 = 0.3;

/// Rows up to which the learning rate is taken as given; beyond, it falls with their square root, since a
/// pass makes more steps.
const SMALL_ROWS: f64 = 1000.0;

/// Weight of the newest pass in the running mean of the weights, which is what is kept.
const AVERAGE_STEP: f64 = 0.3;

struct Fold {
    learned: Vec<usize>,
    unseen: Vec<usize>,
}

/// One fold's models, one after each pass (the first is the warm start), and their scores of unseen rows.
struct Path {
    models: Vec<Vec<f64>>,
    scores: Vec<Vec<f64>>,
}

pub(super) fn fit(data: &Data, config: &TrainConfig, progress: &mut dyn FnMut(Progress)) -> Fit {
    let folds: Vec<Fold> = (0..data.folds).map(|fold| split(data, fold)).collect();
    let penalty = best_penalty(data, &folds, config, progress);
    let paths = each(&folds, config, |index, fold| {
        path(data, fold, penalty, config, config.seed.wrapping_add(index as u64))
    });
    let taus: Vec<f64> =
        (0..=config.passes()).map(|epoch| tau(data, &gather(data, &folds, &paths, epoch))).collect();
    let epochs = best(&taus);
    progress(Progress { stage: "rank", done: epochs, of: config.passes(), tau_b: Some(taus[epochs]) });
    let columns = data.features.len();
    let mut weights = vec![0.0; columns];
    for path in &paths {
        for (sum, weight) in weights.iter_mut().zip(&path.models[epochs]) {
            *sum += weight / paths.len() as f64;
        }
    }
    let mut unseen = gather(data, &folds, &paths, epochs);
    align(data, &folds, &paths, epochs, &mut unseen);
    Fit { weights, unseen, tau_b: taus[epochs], penalty, epochs }
}

/// Runs a job for each fold, in parallel if so wanted; the folds share nothing, so the result does not depend
/// on how the threads run.
fn each<T: Send>(folds: &[Fold], config: &TrainConfig, job: impl Fn(usize, &Fold) -> T + Sync) -> Vec<T> {
    if !config.parallel {
        return folds.iter().enumerate().map(|(index, fold)| job(index, fold)).collect();
    }
    std::thread::scope(|scope| {
        let job = &job;
        let start = |(index, fold)| scope.spawn(move || job(index, fold));
        let threads: Vec<_> = folds.iter().enumerate().map(start).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

fn split(data: &Data, fold: usize) -> Fold {
    let (unseen, learned) = (0..data.rows()).partition(|&row| data.fold_of[row] == fold);
    Fold { learned, unseen }
}

/// Penalties in a row that are worse than the best, after which no smaller one is tried: tau-b over penalties has one peak.
const WORSE_PENALTIES: usize = 3;

/// The penalty of the warm start whose unseen rows are ordered best.
fn best_penalty(
    data: &Data,
    folds: &[Fold],
    config: &TrainConfig,
    progress: &mut dyn FnMut(Progress),
) -> f64 {
    let (mut best, mut best_index) = (f64::NEG_INFINITY, 0);
    let mut starts: Vec<Option<Vec<f64>>> = vec![None; folds.len()];
    for (index, &penalty) in config.penalties.iter().enumerate() {
        starts = each(folds, config, |at, fold| {
            Some(ridge::fit(data, &fold.learned, penalty, starts[at].as_deref()))
        });
        let mut scores = vec![0.0; data.rows()];
        for (fold, weights) in folds.iter().zip(starts.iter().flatten()) {
            fold.unseen.iter().for_each(|&row| scores[row] = data.dot(row, weights));
        }
        let tau_b = tau(data, &scores);
        if tau_b > best {
            (best, best_index) = (tau_b, index);
        }
        progress(Progress {
            stage: "penalty",
            done: index + 1,
            of: config.penalties.len(),
            tau_b: Some(tau_b),
        });
        if index >= best_index + WORSE_PENALTIES {
            break;
        }
    }
    config.penalties[best_index]
}

/// The warm start, brought to the scale of Plackett and Luce, then passes of ListMLE.
fn path(data: &Data, fold: &Fold, penalty: f64, config: &TrainConfig, seed: u64) -> Path {
    let mut weights = ridge::fit(data, &fold.learned, penalty, None);
    let residual = fold.unseen.iter().map(|&row| (data.label[row] - data.dot(row, &weights)).powi(2));
    let count = fold.unseen.len().max(1) as f64;
    let mean: f64 =
        fold.unseen.iter().map(|&row| data.label[row] - data.dot(row, &weights)).sum::<f64>() / count;
    let deviation = (residual.sum::<f64>() / count - mean * mean).max(1e-2).sqrt();
    weights.iter_mut().for_each(|weight| *weight *= GUMBEL_DEVIATION / deviation);
    let penalty = RANK_PENALTY_SHARE * penalty / (GUMBEL_DEVIATION * GUMBEL_DEVIATION);
    let rate = config.learning_rate * (SMALL_ROWS / fold.learned.len().max(1) as f64).sqrt().min(1.0);
    let mut learner = listmle::Learner::new(data, &fold.learned, config, rate, penalty);
    let mut random = fastrand::Rng::with_seed(seed);
    let score = |weights: &[f64]| fold.unseen.iter().map(|&row| data.dot(row, weights)).collect::<Vec<_>>();
    let mut path = Path { scores: vec![score(&weights)], models: vec![weights.clone()] };
    let mut average = weights.clone();
    for _ in 0..config.passes() {
        learner.epoch(&mut weights, &mut random);
        for (a, w) in average.iter_mut().zip(&weights) {
            *a += AVERAGE_STEP * (w - *a);
        }
        path.scores.push(score(&average));
        path.models.push(average.clone());
    }
    path
}

/// The scores of all rows after `epoch` passes, each by the fold that did not learn from it.
fn gather(data: &Data, folds: &[Fold], paths: &[Path], epoch: usize) -> Vec<f64> {
    let mut scores = vec![0.0; data.rows()];
    for (fold, path) in folds.iter().zip(paths) {
        for (&row, &score) in fold.unseen.iter().zip(&path.scores[epoch]) {
            scores[row] = score;
        }
    }
    scores
}

/// Shifts each fold's scores to where the mean model's are. ListMLE does not see a shift of all scores, so
/// the folds' models come with offsets of their own; a curve fitted across them would be blurred.
fn align(data: &Data, folds: &[Fold], paths: &[Path], epoch: usize, scores: &mut [f64]) {
    let mean = |fold: &Fold, weights: &[f64]| {
        let sum: f64 = fold.learned.iter().map(|&row| data.dot(row, weights)).sum();
        sum / fold.learned.len().max(1) as f64
    };
    let offsets: Vec<f64> =
        folds.iter().zip(paths).map(|(fold, path)| mean(fold, &path.models[epoch])).collect();
    let common = offsets.iter().sum::<f64>() / offsets.len() as f64;
    for (fold, offset) in folds.iter().zip(&offsets) {
        fold.unseen.iter().for_each(|&row| scores[row] += common - offset);
    }
}

/// Tau-b within each group and fold (scores of different folds are on different scales), weighted.
pub(super) fn tau(data: &Data, scores: &[f64]) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for group in &data.groups {
        for fold in 0..data.folds {
            let rows: Vec<usize> =
                group.rows.iter().copied().filter(|&row| data.fold_of[row] == fold).collect();
            let pick = |values: &[f64]| rows.iter().map(|&row| values[row]).collect::<Vec<_>>();
            if let Some(tau) = kendall_tau_b(&pick(scores), &pick(&data.label)) {
                let weight = group.weight * rows.len() as f64;
                sum += weight * tau;
                count += weight;
            }
        }
    }
    if count > 0.0 { sum / count } else { 0.0 }
}

/// The number of passes that orders unseen rows best; at least one, where any may be made.
fn best(taus: &[f64]) -> usize {
    let first = 1.min(taus.len() - 1);
    (first..taus.len()).fold(first, |best, index| if taus[index] > taus[best] { index } else { best })
}
