//! What `collect` has so far, on disk: it goes on where it stopped.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// What the samples depend on. A journal made under other settings must not be continued.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// SHA-256 of the prompts.
    pub(crate) prompts_sha256: String,
    pub(crate) model: String,
    /// Where the answers come from: a server, or the embedded model's file and its system message.
    pub(crate) origin: String,
    pub(crate) endpoint: String,
    pub(crate) samples: u32,
    pub(crate) temperature: f64,
    pub(crate) seed: u64,
    pub(crate) max_tokens: u32,
}

/// One sampled answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Which request of the input.
    pub(crate) request: usize,
    /// Which of its samples.
    pub(crate) sample: u32,
    pub(crate) output_tokens: u32,
    pub(crate) truncated: bool,
    pub(crate) prompt_tokens: u32,
}

/// Answers by request and sample.
pub(crate) type Answers = HashMap<(usize, u32), Answer>;

/// The open journal.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Where the journal of an output file is.
    pub(crate) fn path_for(out: &Path) -> PathBuf {
        let mut name = out.as_os_str().to_owned();
        name.push(".journal");
        name.into()
    }

    /// Opens the journal at `path`, or starts it; gives the answers that it holds. A last line that is torn, as a crash
    /// leaves it, is cut off.
    pub(crate) fn open(path: &Path, header: &Header) -> Result<(Self, Answers)> {
        let context = || path.display().to_string();
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(context),
        };
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let file = OpenOptions::new().create(true).append(true).open(path).with_context(context)?;
        file.set_len(whole as u64).with_context(context)?;
        let mut journal = Self { path: path.to_owned(), file };
        let mut lines = text[..whole].split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        match lines.next() {
            None => journal.write(header)?,
            Some(line) => journal.check(line, header)?,
        }
        let mut answers = Answers::new();
        for (index, line) in lines.enumerate() {
            let answer: Answer = serde_json::from_slice(line)
                .with_context(|| format!("{}:{}: not a line of a journal", path.display(), index + 2))?;
            answers.insert((answer.request, answer.sample), answer);
        }
        Ok((journal, answers))
    }

    fn check(&self, line: &[u8], header: &Header) -> Result<()> {
        let path = self.path.display();
        let found: Header =
            serde_json::from_slice(line).with_context(|| format!("{path}:1: not a journal"))?;
        if &found != header {
            bail!(
                "{path} was begun under other prompts or settings: repeat them to go on, or delete it to start over\n  \
                 there: {}\n  here:  {}",
                serde_json::to_string(&found)?,
                serde_json::to_string(header)?
            );
        }
        Ok(())
    }

    /// Appends an answer; it survives the program from here on.
    pub(crate) fn append(&mut self, answer: &Answer) -> Result<()> {
        self.write(answer)
    }

    fn write<T: Serialize>(&mut self, value: &T) -> Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.file.write_all(&line).with_context(|| self.path.display().to_string())
    }

    /// Removes the journal: what it held is in its place.
    pub(crate) fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).with_context(|| self.path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            prompts_sha256: "ab".into(),
            origin: "a server".into(),
            model: "m".into(),
            endpoint: "/v1/chat/completions".into(),
            samples: 2,
            temperature: 0.7,
            seed: 1,
            max_tokens: 100,
        }
    }

    fn answer(request: usize) -> Answer {
        Answer { request, sample: 0, output_tokens: 5, truncated: false, prompt_tokens: 3 }
    }

    #[test]
    fn a_journal_goes_on_after_a_crash_in_the_middle_of_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let (mut journal, answers) = Journal::open(&path, &header()).unwrap();
        assert!(answers.is_empty());
        journal.append(&answer(0)).unwrap();
        journal.append(&answer(1)).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 7]).unwrap();
        let (mut journal, answers) = Journal::open(&path, &header()).unwrap();
        assert_eq!(answers.keys().collect::<Vec<_>>(), [&(0, 0)]);
        journal.append(&answer(1)).unwrap();
        assert_eq!(Journal::open(&path, &header()).unwrap().1.len(), 2);
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "the torn line is gone without a trace");
    }

    #[test]
    fn other_settings_do_not_continue_a_journal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        Journal::open(&path, &header()).unwrap();
        let error = Journal::open(&path, &Header { temperature: 1.0, ..header() }).err().unwrap();
        assert!(format!("{error:#}").contains("delete it to start over"), "{error:#}");
    }
}
