//! The trace contract: what is read, what is refused and how, and the split by prompt.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::Write;
use std::path::Path;

use outrank_ranker::trace::{
    Lengths, Message, Prompt, TraceReader, approximate_tokens, held_out, held_out_text,
};
use outrank_ranker::{TraceError, TraceRecord, read_trace, write_trace};

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn read(text: &str, lengths: Lengths<'_>) -> Result<Vec<TraceRecord>, TraceError> {
    read_trace(file(text).path(), lengths)
}

#[test]
fn all_forms_of_a_line_are_read() {
    let text = concat!(
        r#"{"prompt": "a", "output_tokens": 7, "prompt_tokens": 1, "model": "m", "arrival_s": 0.5, "note": [1]}"#,
        "\n\n",
        r#"{"prompt": "b", "output_tokens": [4, 9], "truncated": [false, true]}"#,
        "\n",
        r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "output_tokens": 3, "truncated": true}"#,
    );
    let records = read(text, Lengths::Required).unwrap();
    assert_eq!(records[0].length_tokens(), Some(7.0));
    assert_eq!(records[0].extra["note"], serde_json::json!([1]));
    assert!((records[1].length_tokens().unwrap() - 6.0).abs() < 1e-9, "geometric mean of 4 and 9");
    assert!(records[1].is_censored() && !records[0].is_censored());
    assert_eq!(records[2].text(), "[system]\ns\n\u{1e}u");
    assert_eq!(records[2].truncated, [true]);
}

#[test]
fn the_papers_own_format_is_read_with_a_counter_and_refused_without() {
    let text = r#"{"prompt": "a", "generated": "one two three", "truncated": true, "prompt_tokens": null}"#;
    let count = |text: &str| text.split(' ').count() as u32;
    let record = &read(text, Lengths::Count(&count)).unwrap()[0];
    assert_eq!((&record.output_tokens[..], &record.truncated[..]), (&[3][..], &[true][..]));
    let error = read(text, Lengths::Required).unwrap_err().to_string();
    assert!(error.contains(":1:") && error.contains("count"), "{error}");
    assert!(read(r#"{"prompt": "a"}"#, Lengths::Count(&count)).is_err());
    assert!(read(r#"{"prompt": "a"}"#, Lengths::Optional).unwrap()[0].output_tokens.is_empty());
    assert_eq!(approximate_tokens("The quick brown fox."), 5);
}

#[test]
fn a_bad_line_is_named_with_its_file_its_number_and_what_is_wrong() {
    let good = r#"{"prompt": "a", "output_tokens": 1}"#;
    let cases = [
        (r#"{"prompt": "a", "output_tokens": 1"#, "not valid JSON"),
        ("[1]", "expected a JSON object, found a list"),
        (r#"{"prompt": 5, "output_tokens": 1}"#, "`prompt` must be a string, found a number"),
        (r#"{"output_tokens": 1}"#, "neither `prompt`"),
        (r#"{"prompt": "a", "messages": [], "output_tokens": 1}"#, "both"),
        (r#"{"messages": [], "output_tokens": 1}"#, "at least one"),
        (r#"{"messages": [{"content": "x"}], "output_tokens": 1}"#, "`role`"),
        (r#"{"prompt": "a"}"#, "no `output_tokens`"),
        (r#"{"prompt": "a", "output_tokens": -1}"#, "whole number"),
        (r#"{"prompt": "a", "output_tokens": 1.5}"#, "whole number"),
        (r#"{"prompt": "a", "output_tokens": []}"#, "empty list"),
        (r#"{"prompt": "a", "output_tokens": [1, 2], "truncated": [true]}"#, "1 entries"),
        (r#"{"prompt": "a", "output_tokens": 1, "model": 3}"#, "`model` must be a string"),
    ];
    for (bad, wanted) in cases {
        let file = file(&format!("{good}\n{bad}\n{good}\n"));
        let error = read_trace(file.path(), Lengths::Required).unwrap_err();
        assert!(matches!(error, TraceError::Line { line: 2, .. }), "{bad}: {error}");
        let shown = error.to_string();
        assert!(shown.contains(wanted) && shown.contains(&*file.path().to_string_lossy()), "{bad}: {shown}");
        let reader = TraceReader::open(file.path(), Lengths::Required).unwrap();
        assert_eq!(reader.filter(Result::is_ok).count(), 2, "the lines around a bad one can still be read");
    }
    assert!(matches!(read("\n", Lengths::Required), Err(TraceError::Empty { .. })));
    assert!(matches!(read_trace(Path::new("/no/such"), Lengths::Required), Err(TraceError::Io { .. })));
}

#[test]
fn what_is_written_is_read_back_plain_and_gzip() {
    let text = r#"{"messages": [{"role": "user", "content": "é\n"}], "output_tokens": [1, 2], "truncated": [false, true], "tenant": "t", "class": "batch", "score": 1.5, "response": "x", "other": {"k": null}}"#;
    let records = read(text, Lengths::Required).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.jsonl", "a.jsonl.gz"] {
        let path = folder.path().join(name);
        write_trace(&path, &records).unwrap();
        assert_eq!(std::fs::read(&path).unwrap().starts_with(&[0x1f, 0x8b]), name.ends_with("gz"));
        assert_eq!(read_trace(&path, Lengths::Required).unwrap(), records);
    }
    let first = std::fs::read(folder.path().join("a.jsonl.gz")).unwrap();
    write_trace(&folder.path().join("b.jsonl.gz"), &records).unwrap();
    assert_eq!(std::fs::read(folder.path().join("b.jsonl.gz")).unwrap(), first, "no time stamp inside");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "no temporary file is left");
}

#[test]
fn a_cut_off_gzip_is_an_error_and_not_a_short_trace() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl.gz");
    let records: Vec<TraceRecord> = (0..500)
        .map(|n| {
            let mut record = TraceRecord::new(Prompt::Text(format!("prompt {}", n * 7919)));
            record.output_tokens = vec![n];
            record
        })
        .collect();
    write_trace(&path, &records).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(read_trace(&path, Lengths::Required).is_err());
}

#[test]
fn the_split_is_that_of_floor_py() {
    // Computed with Python's re and hashlib by the rule of the data's README.
    let cases = [
        ("What is the capital of France?", false),
        ("  What  is\u{9}the\u{a}capital of FRANCE? ", false),
        ("\u{1c}\u{1f}what is\u{1d}\u{1e}the capital", false),
        ("ÀÉÎ ΟΔΥΣΣΕΥΣ İstanbul", false),
        ("日本の首都は\u{3000}どこですか", false),
        ("a\u{a0}b\u{85}c", false),
        ("", false),
        ("zero\u{200b}width", true),
        ("prompt 0", false),
        ("prompt 1", false),
        ("prompt 2", false),
        ("prompt 3", false),
        ("prompt 4", false),
        ("prompt 5", false),
        ("prompt 6", false),
        ("prompt 7", false),
        ("prompt 8", false),
        ("prompt 9", true),
        ("prompt 10", true),
        ("prompt 11", false),
        ("ΣΑΣ Σ18", true),
        ("A\u{1c}B 11", true),
        ("é\u{2028}f 3", true),
    ];
    for (text, expected) in cases {
        assert_eq!(held_out_text(text), expected, "{text:?}");
    }
    assert!(
        held_out_text(&"long ".repeat(100)) == held_out_text(&("long ".repeat(45) + "other end")),
        "200 characters count"
    );
}

#[test]
fn a_chat_is_split_by_what_the_user_said() {
    let chat = |system: &str, user: &str| {
        let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
        TraceRecord::new(Prompt::Messages(vec![message("system", system), message("user", user)]))
    };
    for n in 0..40 {
        let user = format!("question {n}");
        assert_eq!(held_out(&chat("a", &user)), held_out(&chat("b", &user)));
        assert_eq!(held_out(&chat("a", &user)), held_out_text(&user));
    }
}
