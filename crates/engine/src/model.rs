//! A model: weights, tokenizer and chat template of one GGUF file.

use std::path::{Path, PathBuf};

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;

use crate::backend::{backend, capture_errors};
use crate::gguf::GgufHeader;
use crate::{ChatMessage, ChatTemplate, ModelError, TemplateError};

/// A token: its number in the vocabulary.
pub type Token = i32;

/// A loaded model. Shared between threads behind an `Arc`.
#[derive(Debug)]
pub struct Model {
    llama: LlamaModel,
    name: String,
    path: PathBuf,
    pieces: Pieces,
    /// The chat template, or why there is none.
    template: Result<ChatTemplate, TemplateError>,
}

impl Model {
    /// Loads the GGUF file at `path`.
    ///
    /// # Errors
    /// [`ModelError`] if the file is missing, truncated, corrupt, one part of a split model, or not a model that
    /// generates text.
    pub fn load(path: &Path) -> Result<Self, ModelError> {
        let header = check(path)?;
        let backend = backend()?;
        let (llama, reason) =
            capture_errors(|| LlamaModel::load_from_file(backend, path, &LlamaModelParams::default()));
        let llama = llama.map_err(|_| ModelError::Load { path: path.into(), reason })?;
        if llama.n_vocab() == 0 {
            return Err(unsupported(path, "it has no vocabulary".into()));
        }
        tracing::info!(architecture = header.architecture, path = %path.display(), "model loaded");
        let template = Self::own_template(&llama);
        if let Err(error) = &template {
            tracing::warn!(path = %path.display(), %error, "chats will be refused; completions work");
        }
        let stem = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        let name = llama.meta_val_str("general.name").ok().filter(|name| !name.trim().is_empty());
        let pieces = Pieces::of(&llama);
        Ok(Self { name: name.unwrap_or(stem), path: path.into(), pieces, template, llama })
    }

    /// The same model with [`ChatTemplate::with_system_prompt`].
    ///
    /// # Errors
    /// [`TemplateError`] if the model has no chat template, or one that takes no system message.
    pub fn with_system_prompt(self, text: &str) -> Result<Self, TemplateError> {
        let template = Ok(self.template?.with_system_prompt(text)?);
        Ok(Self { template, ..self })
    }

    fn own_template(llama: &LlamaModel) -> Result<ChatTemplate, TemplateError> {
        let Ok(source) = llama.chat_template(None) else { return Err(TemplateError::Missing) };
        let source = source.as_c_str().to_string_lossy();
        let vocab = llama.vocab();
        let text = |token: LlamaToken| {
            let text = if token.0 < 0 { None } else { vocab.text(token) };
            text.map_or_else(String::new, |text| text.to_string_lossy().into_owned())
        };
        ChatTemplate::parse(&source, &text(vocab.bos()), &text(vocab.eos()))
    }

    /// The tokens of `text`.
    ///
    /// `add_special` adds the beginning-of-text token where the model wants one; `parse_special` reads control
    /// tokens that are spelled out in the text (a rendered chat needs it).
    pub fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<Token> {
        let tokens = self.llama.vocab().tokenize(text.as_bytes(), add_special, parse_special);
        tokens.into_iter().map(|token| token.0).collect()
    }

    /// The bytes that `token` prints: none for control tokens, part of a character for some.
    pub fn piece(&self, token: Token) -> &[u8] {
        self.pieces.get(token)
    }

    /// The text that `tokens` print; incomplete characters become U+FFFD.
    pub fn detokenize(&self, tokens: &[Token]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|&token| self.piece(token)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The spelling of `token` in the vocabulary, control tokens included, for showing it to a person.
    pub fn token_text(&self, token: Token) -> String {
        if !(0..self.n_vocab()).contains(&token) {
            return String::new();
        }
        let bytes = self.llama.vocab().token_to_piece(LlamaToken(token), true, None);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether `token` ends the output.
    pub fn is_eog(&self, token: Token) -> bool {
        self.llama.vocab().is_eog(LlamaToken(token))
    }

    /// The end-of-text token.
    pub fn eos(&self) -> Token {
        self.llama.vocab().eos().0
    }

    /// Tokens in the vocabulary.
    pub fn n_vocab(&self) -> i32 {
        self.llama.n_vocab()
    }

    /// Context length that the model was trained for, in tokens.
    pub fn n_ctx_train(&self) -> u32 {
        self.llama.n_ctx_train()
    }

    /// Name that the model gives itself, or that of its file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file it was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of parameters.
    pub fn n_params(&self) -> u64 {
        self.llama.n_params()
    }

    /// The model's own chat template, if it has one that can be read.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref().ok()
    }

    /// The prompt of a chat in the model's own template, ready to be continued by the assistant, in tokens.
    ///
    /// # Errors
    /// [`TemplateError`] if there is no template, no message, an unknown role, or if the template refuses.
    pub fn chat_prompt(&self, messages: &[ChatMessage]) -> Result<Vec<Token>, TemplateError> {
        let template = self.template.as_ref().map_err(Clone::clone)?;
        let text = template.render(messages, true)?;
        // Templates spell out the beginning-of-text token; those that do not get the one the model wants.
        let adds_bos = self.llama.vocab().should_add_bos();
        let spelled_out = text.starts_with(template.bos()) && !template.bos().is_empty();
        Ok(self.tokenize(&text, adds_bos && !spelled_out, true))
    }

    /// A bare llama.cpp context on this model, for measurements against it.
    ///
    /// # Errors
    /// What the binding reports.
    #[doc(hidden)]
    pub fn new_context(
        &self,
        params: llama_cpp_2::context::params::LlamaContextParams,
    ) -> Result<llama_cpp_2::context::LlamaContext<'_>, Box<dyn std::error::Error>> {
        Ok(self.llama.new_context(backend()?, params)?)
    }

    pub(crate) fn llama(&self) -> &LlamaModel {
        &self.llama
    }
}

/// Refuses files that llama.cpp would refuse less clearly, or accept and then fail on.
fn check(path: &Path) -> Result<GgufHeader, ModelError> {
    let io = |source| ModelError::Io { path: path.into(), source };
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        return Err(unsupported(path, "it is not a file".into()));
    }
    let header = GgufHeader::read(path).map_err(|source| ModelError::Gguf { path: path.into(), source })?;
    if header.split_count > 1 {
        let parts = header.split_count;
        let reason = format!("it is one of {parts} parts: merge them first with llama-gguf-split --merge");
        return Err(unsupported(path, reason));
    }
    let architecture = header.architecture.as_str();
    if architecture.is_empty() {
        return Err(unsupported(path, "it names no architecture".into()));
    }
    let encoder = ["bert", "t5encoder", "embed", "clip"].iter().any(|part| architecture.contains(part));
    if encoder {
        return Err(unsupported(path, format!("{architecture} is an encoder: it generates no text")));
    }
    Ok(header)
}

fn unsupported(path: &Path, reason: String) -> ModelError {
    ModelError::Unsupported { path: path.into(), reason }
}

/// What every token prints, in one allocation.
#[derive(Debug)]
struct Pieces {
    bytes: Vec<u8>,
    /// End of each token's bytes.
    ends: Vec<u32>,
}

impl Pieces {
    fn of(llama: &LlamaModel) -> Self {
        let vocab = llama.vocab();
        let mut pieces = Self { bytes: Vec::new(), ends: Vec::with_capacity(llama.n_vocab() as usize) };
        let mut piece = Vec::with_capacity(64);
        for token in 0..llama.n_vocab() {
            piece.clear();
            vocab.token_to_piece_into(LlamaToken(token), &mut piece, false, None);
            pieces.bytes.extend_from_slice(&piece);
            pieces.ends.push(pieces.bytes.len() as u32);
        }
        pieces
    }

    fn get(&self, token: Token) -> &[u8] {
        let Ok(index) = usize::try_from(token) else { return &[] };
        let Some(&end) = self.ends.get(index) else { return &[] };
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start as usize..end as usize]
    }
}
