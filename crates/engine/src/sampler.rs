//! Choosing the next token from logits.

use std::collections::HashMap;

use crate::{SamplingParams, Token, TokenLogprobs};

/// Logits this far below the likeliest (in units of the temperature) weigh less than f32 can add to 1.
const NEGLIGIBLE: f32 = 32.0;
/// Candidates sorted first when the nucleus is looked for; it grows if they do not hold it.
const FIRST_NUCLEUS_CANDIDATES: usize = 64;

/// Draws the tokens of one request. It depends on nothing but its settings, its seed, the logits and what it drew
/// before: the same request gives the same output whatever runs beside it.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    random: fastrand::Rng,
    /// How often the output contains each token; kept only if a penalty asks for it.
    counts: HashMap<Token, u32>,
    /// Working memory: logits less their penalties.
    penalised: Vec<f32>,
    /// Working memory: unnormalised probabilities.
    weights: Vec<f32>,
    /// Working memory: tokens still possible.
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    logit: f32,
    token: Token,
}

impl Sampler {
    /// A sampler with the given settings, assumed valid.
    pub fn new(params: &SamplingParams) -> Self {
        Self {
            params: SamplingParams { stop: Vec::new(), ..params.clone() },
            random: params.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed),
            counts: HashMap::new(),
            penalised: Vec::new(),
            weights: Vec::new(),
            candidates: Vec::new(),
        }
    }

    /// The next token. `logits` must be finite and not empty.
    pub fn sample(&mut self, logits: &[f32]) -> Token {
        if !self.penalises() {
            return self.choose(logits);
        }
        let mut penalised = std::mem::take(&mut self.penalised);
        penalised.clear();
        penalised.extend_from_slice(logits);
        for (&token, &count) in &self.counts {
            penalised[token as usize] -=
                self.params.presence_penalty + self.params.frequency_penalty * count as f32;
        }
        let token = self.choose(&penalised);
        self.penalised = penalised;
        *self.counts.entry(token).or_insert(0) += 1;
        token
    }

    /// Log-probabilities of `token` and of the likeliest tokens, if the request asked for them: log-softmax of the
    /// raw logits, as OpenAI and vLLM report them.
    pub fn logprobs(&mut self, logits: &[f32], token: Token) -> Option<TokenLogprobs> {
        let wanted = usize::from(self.params.logprobs?);
        let (_, max) = argmax(logits);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        let log_sum = f64::from(max) + sum.ln();
        let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
        self.keep_all(logits);
        self.keep_likeliest(wanted.min(logits.len()));
        let top = self.candidates.iter().take(wanted).map(|c| (c.token, logprob(c.logit))).collect();
        Some(TokenLogprobs { logprob: logprob(logits[token as usize]), top })
    }

    fn penalises(&self) -> bool {
        self.params.presence_penalty != 0.0 || self.params.frequency_penalty != 0.0
    }

    fn choose(&mut self, logits: &[f32]) -> Token {
        let (best, max) = argmax(logits);
        if self.params.temperature <= 0.0 || self.params.top_k == 1 {
            return best;
        }
        // Below this logit a token is out: by min_p, or because its weight vanishes beside the likeliest.
        let reach = if self.params.min_p > 0.0 { -self.params.min_p.ln() } else { NEGLIGIBLE };
        let floor = max - reach.min(NEGLIGIBLE) * self.params.temperature;
        let truncated = self.params.top_k > 0 || self.params.top_p < 1.0;
        if truncated || self.params.min_p > 0.0 {
            self.keep_above(logits, floor);
            if self.params.top_k > 0 {
                self.keep_likeliest(self.params.top_k as usize);
            }
            if self.params.top_p < 1.0 {
                self.keep_nucleus(max);
            }
            self.draw_candidate(max)
        } else {
            self.draw_any(logits, max)
        }
    }

    fn keep_all(&mut self, logits: &[f32]) {
        self.keep_above(logits, f32::NEG_INFINITY);
    }

    fn keep_above(&mut self, logits: &[f32], floor: f32) {
        self.candidates.clear();
        let tokens = logits.iter().zip(0..).filter(|&(&logit, _)| logit >= floor);
        self.candidates.extend(tokens.map(|(&logit, token)| Candidate { logit, token }));
    }

    /// Keeps the `count` likeliest candidates, sorted.
    fn keep_likeliest(&mut self, count: usize) {
        if count == 0 {
            self.candidates.clear();
            return;
        }
        if count < self.candidates.len() {
            self.candidates.select_nth_unstable_by(count - 1, likelier);
            self.candidates.truncate(count);
        }
        self.candidates.sort_unstable_by(likelier);
    }

    /// Keeps the fewest likeliest candidates that hold `top_p` of the probability of all candidates.
    fn keep_nucleus(&mut self, max: f32) {
        let weight = |candidate: &Candidate| fast_exp((candidate.logit - max) / self.params.temperature);
        let total: f64 = self.candidates.iter().map(|candidate| f64::from(weight(candidate))).sum();
        let wanted = f64::from(self.params.top_p) * total;
        let mut sorted = FIRST_NUCLEUS_CANDIDATES.min(self.candidates.len());
        loop {
            if sorted < self.candidates.len() {
                self.candidates.select_nth_unstable_by(sorted - 1, likelier);
            }
            self.candidates[..sorted].sort_unstable_by(likelier);
            let mut held = 0.0;
            for (index, candidate) in self.candidates[..sorted].iter().enumerate() {
                held += f64::from(weight(candidate));
                if held >= wanted {
                    self.candidates.truncate(index + 1);
                    return;
                }
            }
            if sorted == self.candidates.len() {
                return;
            }
            sorted = (sorted * 8).min(self.candidates.len());
        }
    }

    /// Draws one of the candidates by weight.
    fn draw_candidate(&mut self, max: f32) -> Token {
        let temperature = self.params.temperature;
        let weights = self.candidates.iter().map(|c| fast_exp((c.logit - max) / temperature));
        self.weights.clear();
        self.weights.extend(weights);
        let index = pick(&mut self.random, &self.weights);
        self.candidates[index].token
    }

    /// Draws any token by weight.
    fn draw_any(&mut self, logits: &[f32], max: f32) -> Token {
        let scale = self.params.temperature.recip();
        self.weights.clear();
        self.weights.extend(logits.iter().map(|&logit| fast_exp((logit - max) * scale)));
        pick(&mut self.random, &self.weights) as Token
    }
}

/// Orders candidates from the likeliest down, ties by token, so that the order is total.
fn likelier(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// The likeliest token and its logit; the first of equals. Not a comparison per token but a maximum per lane, which
/// the compiler vectorises.
fn argmax(logits: &[f32]) -> (Token, f32) {
    const LANES: usize = 16;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = logits.chunks_exact(LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    let max =
        lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |max, &logit| if logit > max { logit } else { max });
    let token = logits.iter().position(|&logit| logit == max).unwrap_or(0);
    (token as Token, max)
}

/// e^x for x <= 0 with a relative error below 2e-6, without branches or calls so that loops over it vectorise; 0 for
/// x below -80.
fn fast_exp(x: f32) -> f32 {
    // x = (n + f) ln 2 with f in [-0.5, 0.5]; 2^f by its Taylor polynomial, 2^n by the exponent bits.
    let scaled = x.max(-80.0) * std::f32::consts::LOG2_E;
    // Adding and taking away 1.5 * 2^23 rounds to the nearest integer.
    let magic = 12_582_912.0_f32;
    let whole = (scaled + magic) - magic;
    let f = scaled - whole;
    let poly = 1.0
        + f * (std::f32::consts::LN_2
            + f * (0.240_226_5
                + f * (0.055_504_11 + f * (0.009_618_129 + f * (0.001_333_356 + f * 0.000_154_035_3)))));
    let power = f32::from_bits(((whole as i32 + 127) << 23) as u32);
    let value = poly * power;
    if x < -80.0 { 0.0 } else { value }
}

/// An index with probability proportional to its weight.
fn pick(random: &mut fastrand::Rng, weights: &[f32]) -> usize {
    const BLOCK: usize = 256;
    let sum = |block: &[f32]| block.iter().map(|&weight| f64::from(weight)).sum::<f64>();
    let total: f64 = weights.chunks(BLOCK).map(sum).sum();
    let mut left = random.f64() * total;
    for (index, block) in weights.chunks(BLOCK).enumerate() {
        let held = sum(block);
        if left >= held {
            left -= held;
            continue;
        }
        for (offset, &weight) in block.iter().enumerate() {
            left -= f64::from(weight);
            if left < 0.0 {
                return index * BLOCK + offset;
            }
        }
    }
    // Rounding left a sliver beyond the last weight.
    weights.iter().rposition(|&weight| weight > 0.0).unwrap_or(0)
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
