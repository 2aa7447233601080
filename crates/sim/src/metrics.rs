//! Latencies of answers, as every table of outrank reports them.

use std::str::FromStr;

use outrank_core::Summary;
use serde::{Deserialize, Serialize};

/// One answered request, in a simulation or in a benchmark.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// Which request, from 0.
    pub index: usize,
    /// When it arrived, in seconds since the start.
    pub arrival_s: f64,
    /// Length of the answer in tokens.
    pub output_tokens: u32,
    /// Time to the first token; without one, to the end.
    pub ttft_s: f64,
    /// Time to the last token.
    pub e2e_s: f64,
    /// Largest gap between two tokens; 0 for fewer than two.
    pub max_gap_s: f64,
    /// Times that it lost its seat.
    pub preemptions: u32,
    /// E2E as it was expected on arrival, where that was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_s: Option<f64>,
}

impl Answer {
    /// E2E latency over output tokens.
    pub fn s_per_token(&self) -> f64 {
        self.e2e_s / f64::from(self.output_tokens.max(1))
    }

    /// (E2E - TTFT) / (tokens - 1); `None` for a single token.
    pub fn tpot_s(&self) -> Option<f64> {
        let rest = self.output_tokens.checked_sub(1).filter(|&rest| rest > 0)?;
        Some((self.e2e_s - self.ttft_s) / f64::from(rest))
    }

    /// How far off the time was that the client was told on arrival; `None` where it was told none.
    pub fn eta_error_s(&self) -> Option<f64> {
        self.eta_s.map(|eta_s| (eta_s - self.e2e_s).abs())
    }

    /// The larger of TTFT and the largest gap between tokens (the paper's `max_waiting_time`).
    pub fn max_waiting_s(&self) -> f64 {
        self.ttft_s.max(self.max_gap_s)
    }
}

/// Latencies of a set of answers, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Metrics {
    /// End to end, divided by the tokens of the answer.
    pub s_per_token: Option<Summary>,
    /// Until the first token.
    pub ttft_s: Option<Summary>,
    /// Until the end of the answer.
    pub e2e_s: Option<Summary>,
    /// (E2E - TTFT) / (tokens - 1).
    pub tpot_s: Option<Summary>,
    /// Gaps between tokens, over all tokens of all requests, where they were recorded.
    pub itl_s: Option<Summary>,
    /// max(TTFT, largest gap between two tokens).
    pub max_waiting_s: Option<Summary>,
    /// Between the E2E that was expected on arrival and the true one, either way, where one was said.
    pub eta_error_s: Option<Summary>,
}

impl Metrics {
    /// The latencies of `answers`; gaps between single tokens are not among them.
    pub fn of(answers: &[Answer]) -> Self {
        let of = |figure: fn(&Answer) -> f64| Summary::of(answers.iter().map(figure).collect());
        Self {
            s_per_token: of(Answer::s_per_token),
            ttft_s: of(|answer| answer.ttft_s),
            e2e_s: of(|answer| answer.e2e_s),
            tpot_s: Summary::of(answers.iter().filter_map(Answer::tpot_s).collect()),
            itl_s: None,
            max_waiting_s: of(Answer::max_waiting_s),
            eta_error_s: Summary::of(answers.iter().filter_map(Answer::eta_error_s).collect()),
        }
    }
}

/// The requests of one range of lengths.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Group {
    /// How many were answered.
    pub requests: usize,
    /// Shortest and longest, in tokens.
    pub tokens: [u32; 2],
    /// E2E over tokens.
    pub s_per_token: Option<Summary>,
    /// Time to the first token.
    pub ttft_s: Option<Summary>,
    /// Time to the last token.
    pub e2e_s: Option<Summary>,
}

/// Answers in `parts` groups of equal size, shortest first.
pub fn by_length(answers: &[Answer], parts: usize) -> Vec<Group> {
    let mut sorted = answers.to_vec();
    // Equal lengths (many, where a limit cuts answers) in an order that has nothing to do with arrival.
    sorted
        .sort_by_key(|answer| (answer.output_tokens, answer.index.wrapping_mul(0x9E37_79B9_7F4A_7C15_usize)));
    let n = sorted.len();
    let group = |part: usize| {
        let group = &sorted[part * n / parts..(part + 1) * n / parts];
        let (first, last) = (group.first()?, group.last()?);
        let metrics = Metrics::of(group);
        Some(Group {
            requests: group.len(),
            tokens: [first.output_tokens, last.output_tokens],
            s_per_token: metrics.s_per_token,
            ttft_s: metrics.ttft_s,
            e2e_s: metrics.e2e_s,
        })
    };
    (0..parts).filter_map(group).collect()
}

/// Objectives that a good answer meets, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Slo {
    ttft_s: Option<f64>,
    tpot_s: Option<f64>,
    e2e_s: Option<f64>,
}

impl Slo {
    /// Whether an answer is good.
    pub fn met(&self, answer: &Answer) -> bool {
        let within = |value: f64, limit: Option<f64>| limit.is_none_or(|limit| value <= limit);
        within(answer.ttft_s, self.ttft_s)
            && within(answer.tpot_s().unwrap_or(0.0), self.tpot_s)
            && within(answer.e2e_s, self.e2e_s)
    }
}

impl FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut slo = Self::default();
        for part in text.split(',') {
            let (name, value) =
                part.split_once(':').ok_or("expected a list such as ttft:2,tpot:0.1,e2e:30")?;
            let seconds = match value.trim().parse::<f64>() {
                Ok(value) if value.is_finite() && value > 0.0 => Some(value),
                _ => return Err(format!("expected a positive number, found {value:?}")),
            };
            match name.trim() {
                "ttft" => slo.ttft_s = seconds,
                "tpot" => slo.tpot_s = seconds,
                "e2e" | "e2el" => slo.e2e_s = seconds,
                other => return Err(format!("{other:?} is no objective; choose from ttft, tpot, e2e")),
            }
        }
        Ok(slo)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(index: usize, output_tokens: u32, ttft_s: f64, e2e_s: f64) -> Answer {
        Answer { index, output_tokens, ttft_s, e2e_s, ..Answer::default() }
    }

    #[test]
    fn the_figures_of_one_answer_are_those_of_their_definitions() {
        let metrics = Metrics::of(&[Answer { max_gap_s: 1.5, ..answer(0, 3, 2.0, 4.0) }]);
        let mean = |s: Option<Summary>| s.unwrap().mean;
        assert_eq!((mean(metrics.e2e_s), mean(metrics.ttft_s), mean(metrics.tpot_s)), (4.0, 2.0, 1.0));
        assert!((mean(metrics.s_per_token) - 4.0 / 3.0).abs() < 1e-12);
        assert_eq!(mean(metrics.max_waiting_s), 2.0);
    }

    #[test]
    fn an_expected_end_is_off_by_as_much_either_way_and_none_was_said_where_none_was_said() {
        let said = |eta_s| Answer { eta_s, ..answer(0, 3, 2.0, 4.0) };
        let metrics = Metrics::of(&[said(Some(1.0)), said(Some(9.0)), said(None)]);
        assert_eq!(metrics.eta_error_s.map(|it| (it.mean, it.max)), Some((4.0, 5.0)));
        assert_eq!(Metrics::of(&[said(None)]).eta_error_s, None);
    }

    #[test]
    fn a_long_pause_between_tokens_counts_as_waiting_and_one_token_has_no_time_per_further_token() {
        assert_eq!(Answer { max_gap_s: 8.0, ..answer(0, 2, 1.0, 9.0) }.max_waiting_s(), 8.0);
        assert_eq!(answer(0, 1, 1.0, 1.0).tpot_s(), None);
    }

    #[test]
    fn groups_are_cut_by_length_and_lose_nobody() {
        let answers: Vec<Answer> = (0..10).map(|i| answer(i, 10 - i as u32, 1.0, 2.0)).collect();
        let thirds = by_length(&answers, 3);
        assert_eq!(thirds.iter().map(|group| group.requests).sum::<usize>(), 10);
        assert_eq!((thirds[0].tokens, thirds[2].tokens), ([1, 3], [7, 10]));
        assert_eq!(by_length(&answers[..2], 10).len(), 2);
    }

    #[test]
    fn objectives_are_read_and_misspelt_ones_refused() {
        let slo: Slo = "ttft:2,e2e:30".parse().unwrap();
        assert!(slo.met(&answer(0, 2, 2.0, 30.0)));
        assert!(!slo.met(&answer(0, 2, 2.1, 3.0)) && !slo.met(&answer(0, 2, 1.0, 31.0)));
        for text in ["ttf:2", "ttft", "e2e:-1"] {
            assert!(text.parse::<Slo>().is_err(), "{text}");
        }
    }
}
