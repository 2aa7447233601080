//! Training, scoring and the ranker file, on a trace made up here: prompts whose answers grow with what
//! they ask for.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use outrank_ranker::trace::{Message, Prompt, flatten_messages, held_out};
use outrank_ranker::{
    Ranker, RankerBytesError, TraceFile, TraceRecord, TrainConfig, TrainError, evaluate, file,
    pairwise_accuracy, train,
};

const KINDS: [(&str, u32); 6] = [
    ("Answer yes or no: is {} larger than a house?", 3),
    ("Name the colour of {} in one word.", 2),
    ("List five facts about {}.", 120),
    ("Write a short poem about {}.", 200),
    ("Explain in detail how {} came to be.", 400),
    ("Write a long story about {} and its friends.", 900),
];

/// `count` prompts of six kinds about made-up things; ln(length) varies by 0.2 around the kind's own.
fn trace(count: u32, model: &str, factor: f64) -> Vec<TraceRecord> {
    let mut random = fastrand::Rng::with_seed(7);
    (0..count)
        .map(|index| {
            let (kind, tokens) = KINDS[index as usize % KINDS.len()];
            let thing =
                format!("the {} number {index}", ["lion", "river", "engine", "poet"][index as usize % 4]);
            // The sum of twelve uniform numbers is nearly normal.
            let normal: f64 = (0..12).map(|_| random.f64()).sum::<f64>() - 6.0;
            let mut record = TraceRecord::new(Prompt::Text(kind.replace("{}", &thing)));
            record.output_tokens = vec![(f64::from(tokens) * (0.2 * normal).exp() * factor).round() as u32];
            record.model = Some(model.into());
            record
        })
        .collect()
}

/// The pairwise accuracy of knowing each prompt's kind, which is all that can be known of it.
fn accuracy_of_the_kind(records: &[&TraceRecord]) -> f64 {
    let known = |record: &TraceRecord| {
        let text = record.text();
        let kind = KINDS.iter().find(|(kind, _)| text.starts_with(&kind[..8])).unwrap();
        f64::from(kind.1)
    };
    let known: Vec<f64> = records.iter().map(|record| known(record)).collect();
    let truth: Vec<f64> = records.iter().map(|record| record.length_tokens().unwrap()).collect();
    pairwise_accuracy(&known, &truth).unwrap()
}

fn config() -> TrainConfig {
    TrainConfig { penalties: vec![1.0], epochs: 3, ..TrainConfig::default() }
}

fn trained() -> Ranker {
    train(&config(), &[TraceFile::new("made-up", trace(600, "m", 1.0))], &mut |_| {}).unwrap().0
}

#[test]
fn a_trained_ranker_orders_unseen_prompts_about_as_well_as_can_be() {
    let records = trace(600, "m", 1.0);
    let (ranker, report) =
        train(&config(), &[TraceFile::new("made-up", records.clone())], &mut |_| {}).unwrap();
    let unseen: Vec<&TraceRecord> = records.iter().filter(|record| held_out(record)).collect();
    assert_eq!(report.held_out.unwrap().requests, unseen.len());
    let (best, ours) = (accuracy_of_the_kind(&unseen), report.files[0].pairwise_accuracy.unwrap());
    assert!(ours > best - 0.03, "{ours}, where knowing the kind gives {best}");
    let short = ranker.score("Name the colour of the old bridge in one word.");
    let long = ranker.score("Write a long story about the old bridge and its friends.");
    assert!(short.median_tokens() < 10.0 && long.median_tokens() > 300.0, "{short:?} {long:?}");
}

#[test]
fn predictions_are_calibrated_in_tokens() {
    let records = trace(900, "m", 1.0);
    let (ranker, _) = train(&config(), &[TraceFile::new("made-up", records.clone())], &mut |_| {}).unwrap();
    let unseen: Vec<&TraceRecord> = records.iter().filter(|record| held_out(record)).collect();
    let report = evaluate("made-up", &ranker, &unseen);
    assert!(report.calibration_error < 0.25, "{report:?}");
    assert!((0.7..0.9).contains(&report.interval_80_coverage), "{report:?}");
}

#[test]
fn the_same_trace_and_seed_give_the_same_bytes_and_another_seed_does_not() {
    let file = || [TraceFile::new("made-up", trace(300, "m", 1.0))];
    let bytes = |config| train(&config, &file(), &mut |_| {}).unwrap().0.to_bytes();
    let seeded = |seed| bytes(TrainConfig { seed, ..config() });
    assert_eq!(seeded(1), seeded(1));
    assert_ne!(seeded(1), seeded(2));
    let one_thread = TrainConfig { seed: 1, parallel: false, ..config() };
    assert_eq!(bytes(one_thread), seeded(1), "the number of threads changes nothing");
}

/// Prompts about sixty made-up words, each of which has a length of its own; `order` gives each word's rank.
fn words(range: std::ops::Range<usize>, order: fn(usize) -> usize) -> Vec<TraceRecord> {
    let letter = |number: usize| char::from(b'a' + number as u8);
    let record = |index: usize| {
        let word = index * 37 % 60;
        let (first, last) = (letter(word / 8), letter(8 + word % 8));
        let text = format!("Item {index}: {first}{last}{first}{last} it, please");
        let noise = [1.0, 1.2, 0.9][index % 3];
        let tokens = (20.0 * 1.06f64.powi(order(word * 7 % 60) as i32) * noise) as u32;
        TraceRecord { output_tokens: vec![tokens], ..TraceRecord::new(Prompt::Text(text)) }
    };
    range.map(record).collect()
}

/// What a ranker learns from `count` rows about those words beside a prior: its tau-b on others, the prior's, that of one
/// without a prior, and the prior's share.
fn beside(prior_order: fn(usize) -> usize, count: usize) -> [f64; 4] {
    let with = |prior, rows| {
        let config = TrainConfig { all: true, prior, ..config() };
        train(&config, &[TraceFile::new("words", rows)], &mut |_| {}).unwrap()
    };
    let test = words(5000..5300, |rank| rank);
    let tau = |ranker: &Ranker| evaluate("t", ranker, &test.iter().collect::<Vec<_>>()).tau_b.unwrap();
    let prior = with(None, words(1000..1900, prior_order)).0;
    let (ranker, report) = with(Some(prior.clone()), words(0..count, |rank| rank));
    let alone = with(None, words(0..count, |rank| rank)).0;
    [tau(&ranker), tau(&prior), tau(&alone), report.prior_share.unwrap()]
}

#[test]
fn a_small_trace_keeps_what_its_prior_knows() {
    let [found, cold, alone, share] = beside(|rank| rank, 30);
    assert!(found > cold - 0.06 && found > alone + 0.2, "{found} {cold} {alone}");
    assert!(share > 0.5, "{share}");
}

#[test]
fn a_prior_that_is_upside_down_is_left() {
    let [found, cold, alone, share] = beside(|rank| 59 - rank, 400);
    assert!(cold < -0.5 && found > alone - 0.01, "{found} {cold} {alone}");
    assert!(share < 0.1, "{share}");
}

#[test]
fn a_talkative_model_in_the_pool_does_not_make_its_users_words_look_long() {
    // The two models differ a hundredfold, and only one of them is greeted with "Ahoy".
    let mut verbose = trace(600, "verbose", 100.0);
    for record in &mut verbose {
        record.prompt = Prompt::Text(format!("Ahoy! {}", record.text()));
    }
    let files = [TraceFile::new("terse", trace(600, "terse", 1.0)), TraceFile::new("verbose", verbose)];
    let (ranker, report) = train(&config(), &files, &mut |_| {}).unwrap();
    assert_eq!(report.groups, 2);
    let short = "Name the colour of the old bridge in one word.";
    let kinds = ranker.raw("Write a long story about the old bridge and its friends.") - ranker.raw(short);
    let greeting = ranker.raw(&format!("Ahoy! {short}")) - ranker.raw(short);
    assert!(greeting.abs() < 0.25 * kinds, "the greeting moves by {greeting}, the kind by {kinds}");
}

#[test]
fn censored_lengths_do_no_harm() {
    let limit = 500;
    let mut records = trace(600, "m", 1.0);
    for record in &mut records {
        record.truncated = vec![record.output_tokens[0] > limit];
        record.output_tokens[0] = record.output_tokens[0].min(limit);
    }
    let (ranker, _) = train(&config(), &[TraceFile::new("cut", records)], &mut |_| {}).unwrap();
    let explain = ranker.raw("Explain in detail how the moon came to be.");
    let story = ranker.raw("Write a long story about the moon and its friends.");
    assert!(story > explain, "{story} {explain}");
}

#[test]
fn a_chat_of_one_user_message_scores_as_the_bare_prompt_and_the_last_message_counts() {
    let ranker = trained();
    let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let one = [message("user", "Name the colour of snow in one word.")];
    assert_eq!(ranker.raw(&flatten_messages(&one)), ranker.raw("Name the colour of snow in one word."));
    let chat = |last: &str| {
        let turns = [message("system", "Be kind."), message("user", "Hello"), message("assistant", "Hi!")];
        flatten_messages(&[turns.as_slice(), &[message("user", last)]].concat())
    };
    let short = ranker.raw(&chat("Name the colour of snow in one word."));
    let long = ranker.raw(&chat("Write a long story about snow and its friends."));
    assert!(short < long);
}

#[test]
fn a_file_comes_back_as_it_was_saved() {
    let ranker = trained();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.outrank");
    ranker.save(&path).unwrap();
    let back = Ranker::load(&path).unwrap();
    assert_eq!(back, ranker);
    assert_eq!(back.score("Tell me a joke."), ranker.score("Tell me a joke."));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn every_flipped_byte_is_noticed() {
    let bytes = trained().to_bytes();
    for at in (0..bytes.len()).step_by(9973).chain(0..24).chain(bytes.len() - 32..bytes.len()) {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        assert!(Ranker::from_bytes(&bad).is_err(), "byte {at}");
    }
}

#[test]
fn a_truncated_file_says_so_wherever_it_ends() {
    let bytes = trained().to_bytes();
    for end in [1, 7, 8, 11, 12, 15, 16, 100, 5000, bytes.len() - 33, bytes.len() - 1] {
        let error = Ranker::from_bytes(&bytes[..end]).unwrap_err();
        assert!(matches!(error, RankerBytesError::Truncated { .. }), "{end}: {error}");
    }
    let longer = [bytes.as_slice(), b"x"].concat();
    assert!(matches!(Ranker::from_bytes(&longer), Err(RankerBytesError::Trailing { extra: 1 })));
}

#[test]
fn a_file_of_the_future_or_of_another_kind_is_refused_with_what_to_do() {
    let mut bytes = trained().to_bytes();
    for (version, advice) in [(file::VERSION + 1, "update outrank"), (file::VERSION - 1, "train it again")] {
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        let error = Ranker::from_bytes(&bytes).unwrap_err().to_string();
        assert!(error.contains(&format!("version {version}")) && error.contains(advice), "{error}");
    }
    let error = Ranker::from_bytes(b"GGUF and so on").unwrap_err();
    assert!(matches!(error, RankerBytesError::NotARanker));
    assert!(matches!(Ranker::from_bytes(b""), Err(RankerBytesError::NotARanker)));
    let missing = Ranker::load("/no/such/file.outrank".as_ref()).unwrap_err().to_string();
    assert!(missing.contains("/no/such/file.outrank"), "{missing}");
}

#[test]
fn too_small_or_flat_traces_are_refused() {
    let few = train(&config(), &[TraceFile::new("few", trace(5, "m", 1.0))], &mut |_| {});
    assert!(matches!(few, Err(TrainError::TooFew { .. })));
    let mut flat = trace(100, "m", 1.0);
    flat.iter_mut().for_each(|record| record.output_tokens = vec![7]);
    let flat = train(&config(), &[TraceFile::new("flat", flat)], &mut |_| {});
    assert!(matches!(flat, Err(TrainError::NoOrder)));
}

#[test]
fn any_text_gets_a_finite_score() {
    let ranker = Ranker::shipped();
    let long = "word ".repeat(1_000_000);
    for text in [
        "",
        " ",
        "\u{1e}",
        "\u{0}",
        "🦀🦀🦀",
        "ありがとう",
        "Ω\u{301}",
        "99999999999999999999999999",
        long.as_str(),
    ] {
        let score = ranker.score(text);
        assert!(score.median_tokens() >= 1.0 && score.spread() > 0.0);
    }
}

#[test]
fn the_shipped_ranker_is_small_licensed_and_knows_short_from_long() {
    let ranker = Ranker::shipped();
    assert!(outrank_ranker::shipped::FILE.len() <= outrank_ranker::shipped::MAX_FILE_BYTES);
    let free = |licence: &str| {
        licence == "MIT"
            || licence == "Apache-2.0"
            || licence == "MIT AND Apache-2.0"
            || licence == "MIT OR Apache-2.0"
    };
    assert!(ranker.card().sources.iter().all(|source| source.licence.as_deref().is_some_and(free)));
    let pairs = [
        ("What is the capital of France?", "Write a detailed essay about the history of France."),
        (
            "Is the earth flat? Answer yes or no.",
            "Write a Python program that simulates the solar system, with comments.",
        ),
        ("Translate 'good morning' into Spanish.", "Write a story of 800 words about a lighthouse keeper."),
    ];
    for (short, long) in pairs {
        assert!(ranker.score(short).median_tokens() < ranker.score(long).median_tokens(), "{short} / {long}");
    }
}
