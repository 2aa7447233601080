//! Model files: what loads, what does not, and why.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod common;

use std::fs;
use std::path::Path;

use common::{model, served, source};
use outrank_engine::{
    ChatMessage, Executor, ExecutorConfig, GgufHeader, Model, ModelError, TemplateError, ensure_q8_0,
};

fn refused(path: &Path) -> String {
    Model::load(path).unwrap_err().to_string()
}

#[test]
fn a_missing_file_a_folder_and_garbage_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    assert!(refused(&path).contains("cannot read model"), "{}", refused(&path));
    assert!(refused(folder.path()).contains("not a file"));
    fs::write(&path, b"<html>404 not found</html>").unwrap();
    assert!(refused(&path).contains("does not begin with the GGUF magic"));
    fs::write(&path, b"").unwrap();
    assert!(refused(&path).contains("truncated"));
    fs::write(&path, b"GGUF\x03\0\0\0\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\0\0\0\0\0\0\0\0").unwrap();
    assert!(refused(&path).contains("corrupt"));
}

#[test]
fn a_truncated_file_is_refused_wherever_it_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gguf");
    let whole = fs::read(source()).unwrap();
    for keep in [3, 12, 100, 5_000, 300_000, 1_000_000, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..keep]).unwrap();
        assert!(matches!(Model::load(&path), Err(ModelError::Gguf { .. })), "cut to {keep} bytes");
        assert!(refused(&path).contains("truncated"), "cut to {keep}: {}", refused(&path));
        assert!(ensure_q8_0(&path, folder.path()).is_err());
    }
}

#[test]
fn damaged_headers_are_refused_or_harmless_and_never_abort() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.gguf");
    let whole = fs::read(source()).unwrap();
    // The first 400 bytes hold counts, the first keys and their types.
    for at in (4..400).step_by(9) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x5A;
        fs::write(&path, &bytes).unwrap();
        if let Err(error) = Model::load(&path) {
            assert!(!error.to_string().is_empty());
        }
    }
}

#[test]
fn an_unknown_architecture_and_a_part_of_a_split_model_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.gguf");
    let mut bytes = fs::read(source()).unwrap();
    let key = b"general.architecture";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 4 + 8;
    assert_eq!(&bytes[at..at + 5], b"llama");
    bytes[at..at + 5].copy_from_slice(b"llamb");
    fs::write(&path, &bytes).unwrap();
    assert!(refused(&path).contains("unknown model architecture"), "{}", refused(&path));
    bytes[at..at + 5].copy_from_slice(b"xbert");
    fs::write(&path, &bytes).unwrap();
    assert!(refused(&path).contains("encoder"), "{}", refused(&path));
}

#[test]
fn requantising_happens_once_and_damage_is_repaired() {
    let cache = tempfile::tempdir().unwrap();
    let source = source();
    let made = ensure_q8_0(&source, cache.path()).unwrap();
    assert_eq!(GgufHeader::read(&made).unwrap().file_type, Some(7));
    let modified = || fs::metadata(&made).unwrap().modified().unwrap();
    let first = modified();
    assert_eq!(ensure_q8_0(&source, cache.path()).unwrap(), made);
    assert_eq!(modified(), first, "the cached file is used again");
    let half = fs::read(&made).unwrap().len() / 2;
    fs::File::options().write(true).open(&made).unwrap().set_len(half as u64).unwrap();
    assert_eq!(ensure_q8_0(&source, cache.path()).unwrap(), made);
    assert!(GgufHeader::read(&made).is_ok(), "a damaged file is made anew");
    assert_eq!(ensure_q8_0(&made, cache.path()).unwrap(), made, "Q8_0 stays as it is");
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1, "no partial file is left");
}

#[test]
fn the_models_own_template_and_tokenizer_are_used() {
    let model = Model::load(&served()).unwrap();
    let template = model.chat_template().unwrap();
    let text = template.render(&[ChatMessage::new("user", "Hi")], true).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    let own =
        template.render(&[ChatMessage::new("system", "Be brief."), ChatMessage::new("user", "Hi")], true);
    assert!(own.unwrap().starts_with("<|im_start|>system\nBe brief.<|im_end|>\n"));
    let error = model.chat_prompt(&[ChatMessage::new("wizard", "Hi")]).unwrap_err();
    assert!(matches!(error, TemplateError::UnknownRole { index: 0, .. }), "{error}");
    let tokens = model.chat_prompt(&[ChatMessage::new("user", "Hi")]).unwrap();
    assert_eq!(model.token_text(tokens[0]), "<|im_start|>");
    assert_ne!(tokens[0], tokens[1], "the beginning-of-text token is not doubled");
    let plain = model.tokenize("<|im_end|>", false, false);
    assert!(plain.len() > 1, "control tokens in user text stay text: {plain:?}");
    assert_eq!(model.tokenize("<|im_end|>", false, true).len(), 1);
    assert_eq!(model.detokenize(&model.tokenize("naïve 日本 😀", false, false)), "naïve 日本 😀");
    assert!(model.tokenize("", false, false).is_empty());
    assert_eq!((model.piece(-1), model.piece(i32::MAX)), (&[][..], &[][..]));
}

#[test]
fn one_sequence_that_fails_does_not_take_the_others_with_it() {
    let model = model();
    let config = ExecutorConfig { seats: 2, context_tokens: 256, step_tokens: 512, threads: 1 };
    let mut executor = Executor::new(&model, config).unwrap();
    let (fits, exceeds) = (vec![1; 8], vec![1; 300]);
    let slice = |seat, tokens| outrank_engine::BatchSlice { seat, start: 0, tokens, samples: true };
    let mut sampled = Vec::new();
    let failures = executor.decode(&[slice(0, &exceeds), slice(1, &fits)], |index, _| sampled.push(index));
    assert_eq!(sampled, [1]);
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0].index, 0);
    assert!(failures[0].reason.contains("NoKvCacheSlot"), "{}", failures[0].reason);
    executor.clear(0).unwrap();
    assert!(executor.decode(&[slice(0, &fits)], |_, _| {}).is_empty(), "the seat serves again");
}
