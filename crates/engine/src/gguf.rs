//! The header of a GGUF file, read before llama.cpp sees the file: a truncated download or a file of another kind
//! is refused with its exact reason.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use thiserror::Error;

/// Longest string in a header, in bytes; larger ones are corruption (chat templates reach some 100 KB).
const MAX_STRING_BYTES: u64 = 16 << 20;
/// Most metadata pairs or tensors of a file; larger counts are corruption.
const MAX_COUNT: u64 = 1 << 20;
/// Most elements of one metadata array (vocabularies reach some 300,000).
const MAX_ARRAY_LEN: u64 = 1 << 26;
const DEFAULT_ALIGNMENT: u64 = 32;

/// What is wrong with a GGUF file.
#[derive(Debug, Error)]
pub enum GgufError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(std::io::Error),
    /// It does not begin with `GGUF`.
    #[error("it does not begin with the GGUF magic")]
    Magic,
    /// A version that llama.cpp does not read.
    #[error("GGUF version {0} is not supported (2 and 3 are)")]
    Version(u32),
    /// It ends within the header or within a tensor.
    #[error("truncated: {0}")]
    Truncated(String),
    /// A value that no well-formed file has.
    #[error("corrupt: {0}")]
    Corrupt(String),
}

/// What the header says of the model.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct GgufHeader {
    /// Model architecture, `llama` for instance.
    pub architecture: String,
    /// Number of the quantisation scheme (`general.file_type`), if stated; 7 is Q8_0.
    pub file_type: Option<u64>,
    /// Files that the model is split into; 0 or 1 if it is not.
    pub split_count: u64,
    /// Number of tensors.
    pub tensors: u64,
}

impl GgufHeader {
    /// Reads the header of the file at `path` and checks that every tensor lies within the file.
    ///
    /// # Errors
    /// [`GgufError`] with what is wrong.
    pub fn read(path: &Path) -> Result<Self, GgufError> {
        let file = File::open(path).map_err(GgufError::Io)?;
        let file_bytes = file.metadata().map_err(GgufError::Io)?.len();
        let mut reader = Reader { inner: BufReader::new(file), position: 0, file_bytes };
        reader.header()
    }
}

struct Reader {
    inner: BufReader<File>,
    position: u64,
    file_bytes: u64,
}

impl Reader {
    fn header(&mut self) -> Result<GgufHeader, GgufError> {
        if &self.bytes::<4>()? != b"GGUF" {
            return Err(GgufError::Magic);
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(GgufError::Version(version));
        }
        let tensors = self.count("tensors", MAX_COUNT)?;
        let pairs = self.count("metadata pairs", MAX_COUNT)?;
        let (mut numbers, mut header) = (HashMap::new(), GgufHeader { tensors, ..GgufHeader::default() });
        for _ in 0..pairs {
            let key = self.string()?;
            let kind = self.u32()?;
            if key == "general.architecture" && kind == STRING {
                header.architecture = self.string()?;
            } else if let Some(number) = self.value(kind)? {
                numbers.insert(key, number);
            }
        }
        header.file_type = numbers.get("general.file_type").copied();
        header.split_count = numbers.get("split.count").copied().unwrap_or(0);
        self.tensors(tensors, numbers.get("general.alignment").copied().unwrap_or(DEFAULT_ALIGNMENT))?;
        Ok(header)
    }

    /// Checks the extent of every tensor against the length of the file.
    fn tensors(&mut self, tensors: u64, alignment: u64) -> Result<(), GgufError> {
        let mut ends = Vec::new();
        for _ in 0..tensors {
            let name = self.string()?;
            let dimensions = self.u32()?;
            if dimensions > 4 {
                return Err(GgufError::Corrupt(format!("tensor {name} has {dimensions} dimensions")));
            }
            let mut elements = 1_u64;
            for _ in 0..dimensions {
                elements = elements
                    .checked_mul(self.u64()?)
                    .ok_or_else(|| GgufError::Corrupt(format!("size of tensor {name}")))?;
            }
            let kind = self.u32()?;
            let offset = self.u64()?;
            ends.push((offset.saturating_add(tensor_bytes(kind, elements)), name));
        }
        if !alignment.is_power_of_two() {
            return Err(GgufError::Corrupt(format!("alignment of {alignment} bytes")));
        }
        let data_start = self.position.next_multiple_of(alignment);
        match ends.into_iter().max() {
            Some((end, name)) if data_start.saturating_add(end) > self.file_bytes => {
                let (need, have) = (data_start.saturating_add(end), self.file_bytes);
                Err(GgufError::Truncated(format!("tensor {name} ends at byte {need}, the file at {have}")))
            }
            _ => Ok(()),
        }
    }

    /// Reads a value; integers are returned, everything else is skipped.
    fn value(&mut self, kind: u32) -> Result<Option<u64>, GgufError> {
        Ok(match kind {
            0 | 1 | 7 => Some(u64::from(self.bytes::<1>()?[0])),
            2 | 3 => Some(u64::from(u16::from_le_bytes(self.bytes()?))),
            4 | 5 => Some(u64::from(self.u32()?)),
            6 => self.skip(4)?,
            10 | 11 => Some(self.u64()?),
            12 => self.skip(8)?,
            STRING => {
                let bytes = self.count("bytes of a string", MAX_STRING_BYTES)?;
                self.skip(bytes)?
            }
            ARRAY => {
                let element = self.u32()?;
                let len = self.count("elements of an array", MAX_ARRAY_LEN)?;
                if element == ARRAY {
                    return Err(GgufError::Corrupt("nested array".into()));
                }
                for _ in 0..len {
                    self.value(element)?;
                }
                None
            }
            other => return Err(GgufError::Corrupt(format!("metadata value of type {other}"))),
        })
    }

    fn string(&mut self) -> Result<String, GgufError> {
        let len = self.count("bytes of a string", MAX_STRING_BYTES)?;
        if len > self.file_bytes - self.position {
            return Err(self.cut());
        }
        let mut bytes = vec![0; len as usize];
        self.read(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| GgufError::Corrupt("a name is not UTF-8".into()))
    }

    fn count(&mut self, what: &str, limit: u64) -> Result<u64, GgufError> {
        let count = self.u64()?;
        if count > limit {
            return Err(GgufError::Corrupt(format!("{count} {what}")));
        }
        Ok(count)
    }

    fn skip(&mut self, bytes: u64) -> Result<Option<u64>, GgufError> {
        if bytes > self.file_bytes - self.position {
            return Err(self.cut());
        }
        self.inner.seek_relative(bytes as i64).map_err(GgufError::Io)?;
        self.position += bytes;
        Ok(None)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), GgufError> {
        self.inner.read_exact(bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => self.cut(),
            _ => GgufError::Io(error),
        })?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn cut(&self) -> GgufError {
        GgufError::Truncated(format!("the file ends within its header, at byte {}", self.file_bytes))
    }
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a tensor of `elements`; 0 for types whose size is not known here (llama.cpp checks those).
fn tensor_bytes(kind: u32, elements: u64) -> u64 {
    // (elements, bytes) of one block, as in ggml.h.
    let (block_elements, block_bytes) = match kind {
        0 | 26 => (1, 4),
        1 | 25 | 30 => (1, 2),
        2 => (32, 18),
        3 => (32, 20),
        6 => (32, 22),
        7 => (32, 24),
        8 => (32, 34),
        10 => (256, 84),
        11 => (256, 110),
        12 => (256, 144),
        13 => (256, 176),
        14 => (256, 210),
        _ => (1, 0),
    };
    (elements / block_elements).saturating_mul(block_bytes)
}
