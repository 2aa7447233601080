//! Training: traces in, ranker and report out.

mod blend;
mod classes;
mod data;
mod example;
mod fit;
mod listmle;
mod ridge;

use std::sync::Arc;

use half::f16;
use serde::Serialize;

use crate::calibration::Calibration;
use crate::evaluate::{EvalReport, evaluate};
use crate::features::DIMENSIONS;
use crate::ranker::{Card, HeldOut, Ranker, SourceCard};
use crate::trace::{TraceRecord, held_out};
pub use classes::{ClassRanker, ClassScheme, MAX_CLASSES};
use data::Data;
pub use example::Example;

/// Fewest rows with a length that a ranker is trained from.
pub const MIN_ROWS: usize = 20;

/// One trace to learn from.
#[derive(Debug, Clone)]
pub struct TraceFile {
    /// Its name, as the card will list it.
    pub name: String,
    /// Its licence, where known.
    pub licence: Option<String>,
    /// Weight of each of its rows; 1 unless traces are pooled and should be balanced.
    pub weight: f64,
    /// Traces of one kind of traffic (they share prompts, or users). Where traces of several families are pooled,
    /// cross-validation leaves out one family at a time, so that what is chosen serves traffic that was never seen.
    pub family: Option<String>,
    /// Its rows. Rows without a length are left out.
    pub records: Vec<TraceRecord>,
}

impl TraceFile {
    /// A trace of unknown licence and no family whose rows weigh 1.
    pub fn new(name: impl Into<String>, records: Vec<TraceRecord>) -> Self {
        Self { name: name.into(), licence: None, weight: 1.0, family: None, records }
    }
}

/// What the passes after the warm start make smaller. The warm start is ridge regression of ln-lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Objective {
    /// The likelihood of the whole order of a list under Plackett and Luce: the paper's.
    #[default]
    ListMle,
    /// A hinge on each pair of a list whose lengths differ by a fifth or more (PARS, arXiv 2510.03243).
    Pairwise,
    /// Nothing: the warm start is all.
    Regression,
}

/// How to train. The defaults are those that cross-validation chose on many traces.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainConfig {
    /// Learn from every row; otherwise the held-out fifth ([`held_out`]) is only tested on.
    pub all: bool,
    /// Seed of lists and ties.
    pub seed: u64,
    /// Folds of the cross-validation, at least 2. The ranker is the mean of the folds' models.
    pub folds: usize,
    /// Whether every fold learns on a thread of its own, or all on that of the caller, one after the other.
    pub parallel: bool,
    /// Penalties to choose from, largest first, in any unit of standardised squared ln-length.
    pub penalties: Vec<f64>,
    /// What the passes make smaller.
    pub objective: Objective,
    /// Most passes.
    pub epochs: usize,
    /// Requests in a list.
    pub list_size: usize,
    /// AdaGrad's step for up to a thousand rows; it falls with the square root of more.
    pub learning_rate: f64,
    /// A ranker that learned from other traces. What is learned is mixed with it, in the shares that cross-validation
    /// leaves plausible: small traces gain by it, and where it is of no use next to nothing of it is left.
    pub prior: Option<Ranker>,
    /// Licence of the weights, for the card.
    pub licence: String,
    /// The command that is being run, for the card.
    pub command: String,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            all: false,
            seed: 1,
            folds: 5,
            parallel: true,
            penalties: vec![256.0, 128.0, 64.0, 32.0, 16.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.125],
            objective: Objective::ListMle,
            epochs: 16,
            list_size: 32,
            learning_rate: 0.1,
            prior: None,
            licence: "unknown".into(),
            command: "unknown".into(),
        }
    }
}

impl TrainConfig {
    /// Passes after the warm start, at most.
    fn passes(&self) -> usize {
        if self.objective == Objective::Regression { 0 } else { self.epochs }
    }
}

/// Where training stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// `features`, `penalty`, `rank` or `test`.
    pub stage: &'static str,
    /// Steps of the stage that are done.
    pub done: usize,
    /// Steps of the stage.
    pub of: usize,
    /// Tau-b of cross-validation, where the step gives one.
    pub tau_b: Option<f64>,
}

/// What training found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainReport {
    /// Rows learned from.
    pub learned_rows: usize,
    /// Groups (one model in one file each).
    pub groups: usize,
    /// Penalty that cross-validation chose.
    pub penalty: f64,
    /// Passes of ListMLE that cross-validation chose.
    pub epochs: usize,
    /// Tau-b of cross-validation within the learned part.
    pub validation_tau_b: f64,
    /// Share of the prior's order in the ranker, from 0 to 1; `None` without a prior.
    pub prior_share: Option<f64>,
    /// The held-out result over all files; `None` with [`TrainConfig::all`], or where nothing is held out.
    pub held_out: Option<HeldOut>,
    /// The held-out result of each file.
    pub files: Vec<EvalReport>,
}

/// Why a ranker could not be trained.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Too few rows with a length.
    #[error(
        "{found} rows with a length to learn from, but at least {needed} are needed; add traces or train with --all"
    )]
    TooFew {
        /// Rows there.
        found: usize,
        /// [`MIN_ROWS`].
        needed: usize,
    },
    /// All lengths are equal.
    #[error("every answer has the same length: there is no order to learn")]
    NoOrder,
    /// A setting is out of its range.
    #[error("{0}")]
    Config(&'static str),
}

/// Trains a ranker. The same files in the same order, with the same settings, give the same bytes.
///
/// A warm start (ridge regression of ln-lengths, standardised per model) is followed by ListMLE in each
/// fold of a cross-validation by prompt; penalty and passes are those that order unseen rows best; the
/// ranker is the mean of the folds' models, mixed with the prior where there is one, and its calibration is
/// fitted to the scores of unseen rows.
///
/// # Errors
/// [`TrainError`].
pub fn train(
    config: &TrainConfig,
    files: &[TraceFile],
    progress: &mut dyn FnMut(Progress),
) -> Result<(Ranker, TrainReport), TrainError> {
    check(config)?;
    let data = data::build(files, config)?;
    let learned = |index: usize| data.groups.iter().filter(|g| g.file == index).map(|g| g.rows.len()).sum();
    let sources = files.iter().enumerate().map(|(index, file)| SourceCard {
        name: file.name.clone(),
        licence: file.licence.clone(),
        rows: file.records.len(),
        learned_rows: learned(index),
    });
    let sources = sources.collect();
    let (mut ranker, mut report) = fit_data(config, &data, sources, progress)?;
    if !config.all {
        (report.held_out, report.files) = test(&ranker, files);
        ranker.card.held_out = report.held_out;
    }
    let tau_b = report.held_out.map(|held_out| held_out.tau_b);
    progress(Progress { stage: "test", done: 1, of: 1, tau_b });
    Ok((ranker, report))
}

/// Trains a ranker from examples, a group of them a model: only the order within a group is learned. Nothing is held out; the
/// report has the cross-validation.
///
/// # Errors
/// [`TrainError`]; also where a group is empty.
pub fn learn(
    config: &TrainConfig,
    groups: &[&[Arc<Example>]],
    progress: &mut dyn FnMut(Progress),
) -> Result<(Ranker, TrainReport), TrainError> {
    check(config)?;
    if groups.iter().any(|examples| examples.is_empty()) {
        return Err(TrainError::Config("a model without any answer: leave it out"));
    }
    let data = data::from_examples(groups, config)?;
    let rows = data.rows();
    let source = SourceCard { name: "served requests".into(), licence: None, rows, learned_rows: rows };
    fit_data(config, &data, vec![source], progress)
}

/// Fits and calibrates.
fn fit_data(
    config: &TrainConfig,
    data: &Data,
    sources: Vec<SourceCard>,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Ranker, TrainReport), TrainError> {
    if data.label.iter().all(|&label| label.abs() < 1e-9) {
        return Err(TrainError::NoOrder);
    }
    progress(Progress { stage: "features", done: 1, of: 1, tau_b: None });
    let mut fit = fit::fit(data, config, progress);
    let mut weights = features(data, &fit.weights);
    let prior_share =
        config.prior.as_ref().map(|prior| mix(data, prior, &mut weights, &mut fit, config.seed));
    let (weights, shrink) = round_weights(&weights);
    let calibration = calibrate(data, &fit.unseen, shrink).ok_or(TrainError::NoOrder)?;
    let card = Card {
        licence: config.licence.clone(),
        command: config.command.clone(),
        sources,
        seed: config.seed,
        held_out: None,
        validation_tau_b: Some(fit.tau_b),
    };
    let report = TrainReport {
        learned_rows: data.rows(),
        groups: data.groups.len(),
        penalty: fit.penalty,
        epochs: fit.epochs,
        validation_tau_b: fit.tau_b,
        prior_share,
        held_out: None,
        files: Vec::new(),
    };
    Ok((Ranker { weights: weights.into(), calibration, card }, report))
}

fn check(config: &TrainConfig) -> Result<(), TrainError> {
    if config.folds < 2 {
        return Err(TrainError::Config("folds must be at least 2"));
    }
    if config.penalties.is_empty() || config.penalties.iter().any(|p| !(p.is_finite() && *p > 0.0)) {
        return Err(TrainError::Config("penalties must be positive numbers, at least one"));
    }
    if config.list_size < 2 {
        return Err(TrainError::Config("list_size must be at least 2"));
    }
    if !(config.learning_rate.is_finite() && config.learning_rate > 0.0) {
        return Err(TrainError::Config("learning_rate must be a positive number"));
    }
    Ok(())
}

/// Weights over columns back to weights over features.
fn features(data: &Data, columns: &[f64]) -> Vec<f64> {
    let mut weights = vec![0.0; DIMENSIONS];
    for ((&feature, &scale), &weight) in data.features.iter().zip(&data.scales).zip(columns) {
        weights[feature as usize] = weight * f64::from(scale);
    }
    weights
}

/// Mixes the prior into what was learned: it is linear in the same features, so the sum is a ranker again. Returns its share.
fn mix(data: &Data, prior: &Ranker, weights: &mut [f64], fit: &mut fit::Fit, seed: u64) -> f64 {
    let blend = blend::blend(data, &data.prior, &fit.unseen, seed);
    let sum = |learned: &mut f64, prior: f64| *learned = blend.learned * *learned + blend.prior * prior;
    weights.iter_mut().zip(prior.weights.iter()).for_each(|(own, &prior)| sum(own, f64::from(prior)));
    fit.unseen.iter_mut().zip(&data.prior).for_each(|(own, &prior)| sum(own, prior));
    fit.tau_b = fit::tau(data, &fit.unseen);
    blend.prior_share
}

/// Weights rounded to half precision. Those too large for it are all shrunk alike; returns the factor.
fn round_weights(weights: &[f64]) -> (Vec<f32>, f64) {
    let largest = weights.iter().fold(0.0f64, |largest, weight| largest.max(weight.abs()));
    let shrink = if largest > 1000.0 { 1000.0 / largest } else { 1.0 };
    (weights.iter().map(|&weight| f16::from_f64(weight * shrink).to_f32()).collect(), shrink)
}

/// The curve from raw score to tokens, over all groups: lengths standardised within their group first,
/// then the mean group's centre and scale; how far the groups' centres lie apart widens the spread.
/// Training takes ln(1 + tokens); a [`outrank_core::Score`] wants ln(tokens), which differs for short answers.
fn calibrate(data: &Data, unseen: &[f64], shrink: f64) -> Option<Calibration> {
    let raw: Vec<f64> = unseen.iter().map(|score| score * shrink).collect();
    let mut standard = vec![0.0; data.rows()];
    let mut centers = Vec::new();
    for group in &data.groups {
        let ln = |row: usize| libm::log((libm::exp(data.ln_plus_one(row)) - 1.0).max(1.0));
        let count = group.rows.len() as f64;
        let center = group.rows.iter().map(|&row| ln(row)).sum::<f64>() / count;
        let squares: f64 = group.rows.iter().map(|&row| (ln(row) - center).powi(2)).sum();
        let deviation = (squares / count).sqrt().max(1e-3);
        group.rows.iter().for_each(|&row| standard[row] = (ln(row) - center) / deviation);
        centers.push((group.weight * count, center, deviation));
    }
    let curve = Calibration::fit(&raw, &standard)?;
    let weight: f64 = centers.iter().map(|(weight, _, _)| weight).sum();
    let center = centers.iter().map(|(w, center, _)| w * center).sum::<f64>() / weight;
    let scale = centers.iter().map(|(w, _, deviation)| w * deviation).sum::<f64>() / weight;
    let apart = centers.iter().map(|(w, own, _)| w * (own - center).powi(2)).sum::<f64>() / weight;
    Some(curve.scaled(center, scale, apart))
}

/// Tests on the held-out rows of each file.
fn test(ranker: &Ranker, files: &[TraceFile]) -> (Option<HeldOut>, Vec<EvalReport>) {
    let reports: Vec<EvalReport> = files
        .iter()
        .map(|file| {
            let rows: Vec<&TraceRecord> = file.records.iter().filter(|record| held_out(record)).collect();
            evaluate(&file.name, ranker, &rows)
        })
        .collect();
    (HeldOut::mean(reports.iter().map(|report| (report.requests, report.tau_b))), reports)
}
