use super::*;

fn params(change: impl FnOnce(&mut SamplingParams)) -> SamplingParams {
    let mut params = SamplingParams { seed: Some(7), ..SamplingParams::default() };
    change(&mut params);
    params
}

/// How often each of `logits` is drawn in `draws` draws.
fn frequencies(params: &SamplingParams, logits: &[f32], draws: u32) -> Vec<f64> {
    let mut sampler = Sampler::new(params);
    let mut counts = vec![0_u32; logits.len()];
    for _ in 0..draws {
        counts[sampler.sample(logits) as usize] += 1;
    }
    counts.into_iter().map(|count| f64::from(count) / f64::from(draws)).collect()
}

fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|&logit| (f64::from(logit) / temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

fn assert_close(measured: &[f64], expected: &[f64]) {
    for (index, (a, b)) in measured.iter().zip(expected).enumerate() {
        assert!((a - b).abs() < 0.01, "token {index}: drawn {a}, expected {b}");
    }
}

const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 2.5];

#[test]
fn temperature_zero_takes_the_first_of_the_likeliest() {
    let mut logits = vec![0.5_f32; 1000];
    logits[637] = 2.0;
    logits[900] = 2.0;
    assert_eq!(Sampler::new(&SamplingParams::greedy(1)).sample(&logits), 637);
    for len in 1..50 {
        let logits: Vec<f32> = (0..len).map(|i| i as f32).collect();
        assert_eq!(Sampler::new(&SamplingParams::greedy(1)).sample(&logits), len - 1);
    }
}

#[test]
fn draws_follow_the_softmax_at_every_temperature() {
    for temperature in [0.5, 1.0, 1.7] {
        let drawn = frequencies(&params(|p| p.temperature = temperature), &LOGITS, 100_000);
        assert_close(&drawn, &softmax(&LOGITS, f64::from(temperature)));
    }
}

#[test]
fn top_k_top_p_and_min_p_keep_what_their_definitions_say() {
    let all = softmax(&LOGITS, 1.0);
    let keep = |tokens: &[usize]| -> Vec<f64> {
        let held: f64 = tokens.iter().map(|&token| all[token]).sum();
        (0..LOGITS.len()).map(|t| if tokens.contains(&t) { all[t] / held } else { 0.0 }).collect()
    };
    // Probabilities by rank: token 1, 4, 2, 0, 3 = 0.47, 0.28, 0.17, 0.06, 0.01.
    assert_close(&frequencies(&params(|p| p.top_k = 2), &LOGITS, 100_000), &keep(&[1, 4]));
    assert_close(&frequencies(&params(|p| p.top_p = 0.7), &LOGITS, 100_000), &keep(&[1, 4]));
    assert_close(&frequencies(&params(|p| p.top_p = 0.8), &LOGITS, 100_000), &keep(&[1, 4, 2]));
    assert_close(&frequencies(&params(|p| p.min_p = 0.3), &LOGITS, 100_000), &keep(&[1, 4, 2]));
    assert_close(&frequencies(&params(|p| (p.top_k, p.top_p) = (3, 0.6)), &LOGITS, 100_000), &keep(&[1, 4]));
}

#[test]
fn the_nucleus_of_a_large_vocabulary_equals_the_sorted_definition() {
    // 3,000 nearly equal logits: the nucleus is far larger than the first candidates looked at.
    let logits: Vec<f32> = (0..3000).map(|i| ((i * 7919) % 3000) as f32 * 1e-3).collect();
    let mut sampler = Sampler::new(&params(|p| p.top_p = 0.5));
    sampler.sample(&logits);
    let mut kept: Vec<Token> = sampler.candidates.iter().map(|c| c.token).collect();
    let probabilities = softmax(&logits, 1.0);
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let mut held = 0.0;
    let expected = order.iter().position(|&token| {
        held += probabilities[token];
        held >= 0.5
    });
    assert_eq!(kept.len(), expected.unwrap() + 1);
    kept.sort_unstable();
    let mut nucleus: Vec<Token> = order[..kept.len()].iter().map(|&token| token as Token).collect();
    nucleus.sort_unstable();
    assert_eq!(kept, nucleus);
}

#[test]
fn penalties_count_the_output_only() {
    let mut sampler = Sampler::new(&params(|p| (p.temperature, p.presence_penalty) = (0.0, 0.6)));
    // Token 1 (3.0), then 4 (2.5 against 2.4), then 1 again: presence counts once.
    assert_eq!([0; 4].map(|_| sampler.sample(&LOGITS)), [1, 4, 1, 1]);
    let mut sampler = Sampler::new(&params(|p| (p.temperature, p.frequency_penalty) = (0.0, 0.6)));
    // 3.0; 2.5 against 2.4; 2.4; then 2.0 for token 2 against 1.8 and 1.9.
    assert_eq!([0; 4].map(|_| sampler.sample(&LOGITS)), [1, 4, 1, 2]);
}

#[test]
fn the_seed_alone_decides() {
    let draw = |seed| {
        let mut sampler = Sampler::new(&params(|p| p.seed = seed));
        (0..64).map(|_| sampler.sample(&LOGITS)).collect::<Vec<_>>()
    };
    assert_eq!(draw(Some(1)), draw(Some(1)));
    assert_ne!(draw(Some(1)), draw(Some(2)));
    assert_ne!(draw(None), draw(None), "unseeded requests differ");
}

#[test]
fn logprobs_are_the_log_softmax_of_the_raw_logits() {
    let mut sampler = Sampler::new(&params(|p| (p.temperature, p.logprobs) = (0.1, Some(2))));
    let logprobs = sampler.logprobs(&LOGITS, 0).unwrap();
    let expected = softmax(&LOGITS, 1.0);
    assert!((f64::from(logprobs.logprob) - expected[0].ln()).abs() < 1e-6);
    assert_eq!(logprobs.top.iter().map(|&(token, _)| token).collect::<Vec<_>>(), [1, 4]);
    assert!((f64::from(logprobs.top[1].1) - expected[4].ln()).abs() < 1e-6);
    let mut none = Sampler::new(&params(|p| p.logprobs = Some(0)));
    assert!(none.logprobs(&LOGITS, 1).unwrap().top.is_empty());
    assert_eq!(Sampler::new(&params(|_| {})).logprobs(&LOGITS, 1), None);
}

#[test]
fn the_fast_exponential_is_accurate() {
    let mut x = 0.0_f32;
    while x > -80.0 {
        let exact = f64::from(x).exp();
        let error = (f64::from(fast_exp(x)) / exact - 1.0).abs();
        assert!(error < 1e-5, "exp({x}): relative error {error}");
        x -= 0.0137;
    }
    assert_eq!((fast_exp(0.0), fast_exp(-1e9), fast_exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
}
