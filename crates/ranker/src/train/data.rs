//! Training data: a sparse matrix of features, one group of rows per model, and the labels.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::{Example, TraceFile, TrainConfig, TrainError};
use crate::features::{BUCKETS, DIMENSIONS, Scratch};
use crate::trace::held_out;

/// Least root mean square of a surface fact: a rare one is not blown up without bound.
const MIN_MEAN_SQUARE: f64 = 1e-2;

/// Rows of one model in one file: only the order within a group is learned.
#[derive(Debug, Clone)]
pub(super) struct Group {
    /// The file's index.
    pub(super) file: usize,
    /// Mean of ln(1 + tokens) over the learned rows.
    pub(super) mean: f64,
    /// Standard deviation of the same.
    pub(super) deviation: f64,
    /// Weight of each of its rows.
    pub(super) weight: f64,
    pub(super) rows: Vec<usize>,
}

/// A compressed sparse row matrix with its labels.
#[derive(Debug, Default)]
pub(super) struct Data {
    starts: Vec<usize>,
    columns: Vec<u32>,
    values: Vec<f32>,
    /// Column -> feature index.
    pub(super) features: Vec<u32>,
    /// Column -> scale that its values were multiplied by.
    pub(super) scales: Vec<f32>,
    /// ln(1 + tokens), standardised within the group.
    pub(super) label: Vec<f64>,
    pub(super) censored: Vec<bool>,
    pub(super) group_of: Vec<usize>,
    pub(super) fold_of: Vec<usize>,
    /// Folds of the cross-validation.
    pub(super) folds: usize,
    pub(super) groups: Vec<Group>,
    /// The raw score that the prior gives each row; empty without one.
    pub(super) prior: Vec<f64>,
}

impl Data {
    pub(super) fn rows(&self) -> usize {
        self.label.len()
    }

    pub(super) fn row(&self, row: usize) -> impl Iterator<Item = (usize, f64)> + '_ {
        let range = self.starts[row]..self.starts[row + 1];
        let values = &self.values[range.clone()];
        self.columns[range].iter().zip(values).map(|(&column, &value)| (column as usize, f64::from(value)))
    }

    /// The raw score of a row.
    pub(super) fn dot(&self, row: usize, weights: &[f64]) -> f64 {
        self.row(row).map(|(column, value)| weights[column] * value).sum()
    }

    /// Adds `factor` times a row to a vector over columns.
    pub(super) fn add_row(&self, row: usize, factor: f64, out: &mut [f64]) {
        for (column, value) in self.row(row) {
            out[column] += factor * value;
        }
    }

    /// ln(1 + tokens) of a row, no longer standardised.
    pub(super) fn ln_plus_one(&self, row: usize) -> f64 {
        let group = &self.groups[self.group_of[row]];
        group.mean + group.deviation * self.label[row]
    }

    pub(super) fn weight(&self, row: usize) -> f64 {
        self.groups[self.group_of[row]].weight
    }
}

/// Extracts the features of every row that may be learned from (all, or those not held out).
pub(super) fn build(files: &[TraceFile], config: &TrainConfig) -> Result<Data, TrainError> {
    let mut data = Data::new(config);
    let mut columns = vec![u32::MAX; DIMENSIONS];
    let mut scratch = Scratch::new();
    let mut families = Families::of(files);
    for (file_index, file) in files.iter().enumerate() {
        let mut models: BTreeMap<&str, usize> = BTreeMap::new();
        for record in file.records.iter().filter(|record| config.all || !held_out(record)) {
            let Some(tokens) = record.length_tokens() else { continue };
            let model = record.model.as_deref().unwrap_or_default();
            let group = *models.entry(model).or_insert_with(|| {
                data.groups.push(Group {
                    file: file_index,
                    mean: 0.0,
                    deviation: 1.0,
                    weight: file.weight,
                    rows: Vec::new(),
                });
                data.groups.len() - 1
            });
            let text = record.request_text();
            let number = prompt_number(&text);
            let fold = families.as_mut().map_or_else(|| prompt_fold(number, config), |f| f.fold(file));
            let labels = Labels { tokens, censored: record.is_censored(), fold, group };
            data.push(scratch.extract(&text), labels, config, &mut columns);
        }
    }
    data.folds = families.map_or(config.folds, |families| families.names.len());
    if data.folds == 1 {
        return Err(TrainError::Config("only one family has rows to learn from: leave the families away"));
    }
    data.finish()
}

/// The fold of a prompt: equal prompts share theirs, in whichever file they stand.
fn prompt_fold(number: u64, config: &TrainConfig) -> usize {
    (number % config.folds as u64) as usize
}

/// Families of traces, each a fold of its own. A trace without one is a family by itself.
struct Families<'a> {
    names: Vec<&'a str>,
}

impl<'a> Families<'a> {
    /// `None` where all traces are of one kind.
    fn of(files: &'a [TraceFile]) -> Option<Self> {
        let named: BTreeSet<&str> = files.iter().filter_map(|file| file.family.as_deref()).collect();
        let apart = named.len() > 1 || named.len() == 1 && files.iter().any(|file| file.family.is_none());
        apart.then(|| Self { names: Vec::new() })
    }

    fn fold(&mut self, file: &'a TraceFile) -> usize {
        let name = file.family.as_deref().unwrap_or(&file.name);
        self.names.iter().position(|&known| known == name).unwrap_or_else(|| {
            self.names.push(name);
            self.names.len() - 1
        })
    }
}

/// A matrix of examples, a group of them a model.
pub(super) fn from_examples(groups: &[&[Arc<Example>]], config: &TrainConfig) -> Result<Data, TrainError> {
    let mut data = Data::new(config);
    let mut columns = vec![u32::MAX; DIMENSIONS];
    for (index, examples) in groups.iter().enumerate() {
        data.groups.push(Group { file: index, mean: 0.0, deviation: 1.0, weight: 1.0, rows: Vec::new() });
        for example in *examples {
            let labels = Labels {
                tokens: f64::from(example.tokens),
                censored: example.censored,
                fold: prompt_fold(example.number, config),
                group: index,
            };
            data.push(&example.features, labels, config, &mut columns);
        }
    }
    data.finish()
}

/// What is known of a row beside its features.
#[derive(Clone, Copy)]
struct Labels {
    tokens: f64,
    censored: bool,
    fold: usize,
    group: usize,
}

impl Data {
    fn new(config: &TrainConfig) -> Self {
        Self { starts: vec![0], folds: config.folds, ..Self::default() }
    }

    fn push(&mut self, features: &[(u32, f32)], labels: Labels, config: &TrainConfig, columns: &mut [u32]) {
        if let Some(prior) = &config.prior {
            self.prior.push(f64::from(prior.raw_of(features)));
        }
        for &(feature, value) in features {
            let column = &mut columns[feature as usize];
            if *column == u32::MAX {
                *column = self.features.len() as u32;
                self.features.push(feature);
            }
            self.columns.push(*column);
            self.values.push(value);
        }
        self.starts.push(self.columns.len());
        self.groups[labels.group].rows.push(self.label.len());
        self.label.push(libm::log1p(labels.tokens));
        self.censored.push(labels.censored);
        self.group_of.push(labels.group);
        self.fold_of.push(labels.fold);
    }

    /// Standardises labels and scales columns, once all rows are there.
    fn finish(mut self) -> Result<Self, TrainError> {
        if self.rows() < super::MIN_ROWS {
            return Err(TrainError::TooFew { found: self.rows(), needed: super::MIN_ROWS });
        }
        standardise(&mut self);
        scale_columns(&mut self);
        Ok(self)
    }
}

/// A number by which equal prompts fall in the same fold, in whichever file they stand.
pub(super) fn prompt_number(text: &str) -> u64 {
    let digest = Sha256::digest(text.as_bytes());
    digest[..8].iter().fold(0u64, |number, &byte| number << 8 | u64::from(byte))
}

fn standardise(data: &mut Data) {
    for group in &mut data.groups {
        let count = group.rows.len() as f64;
        group.mean = group.rows.iter().map(|&row| data.label[row]).sum::<f64>() / count;
        let squares: f64 = group.rows.iter().map(|&row| (data.label[row] - group.mean).powi(2)).sum();
        group.deviation = (squares / count).sqrt().max(1e-3);
        for &row in &group.rows {
            data.label[row] = (data.label[row] - group.mean) / group.deviation;
        }
    }
}

/// A hashed feature keeps its value; a surface fact is divided by the square root of its root mean square,
/// halfway to standardised, so that the penalty falls on all of them alike. The scale is multiplied into
/// the weight after training and costs nothing when scoring.
fn scale_columns(data: &mut Data) {
    let mut squares = vec![0.0f64; data.features.len()];
    for (&column, &value) in data.columns.iter().zip(&data.values) {
        squares[column as usize] += f64::from(value) * f64::from(value);
    }
    let rows = data.label.len() as f64;
    let scale = |(&feature, &sum): (&u32, &f64)| {
        if (feature as usize) < BUCKETS {
            1.0
        } else {
            (sum / rows).sqrt().max(MIN_MEAN_SQUARE).sqrt().recip() as f32
        }
    };
    data.scales = data.features.iter().zip(&squares).map(scale).collect();
    for (value, &column) in data.values.iter_mut().zip(&data.columns) {
        *value *= data.scales[column as usize];
    }
}
