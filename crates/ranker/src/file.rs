//! The ranker file: one versioned file with a checksum.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | magic `OUTRANKR` |
//! | 4 | version, little-endian |
//! | 4 | bytes of the header, little-endian |
//! | … | header: JSON, the [`Card`] and the calibration |
//! | 4 | number of weights, little-endian |
//! | 2 each | weights: IEEE 754 half precision, little-endian |
//! | 32 | SHA-256 of all that stands before |
//!
//! The version covers the features too ([`crate::features::VERSION`]): weights mean nothing under another way of hashing.

use std::path::{Path, PathBuf};

use half::f16;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::calibration::Calibration;
use crate::features::DIMENSIONS;
use crate::ranker::{Card, Ranker};
use crate::trace::write_whole;

/// The version that this program writes, and the only one that it reads.
pub const VERSION: u32 = 5;

/// The largest ranker file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

const MAGIC: &[u8; 8] = b"OUTRANKR";
const CHECKSUM_BYTES: usize = 32;

/// Why a ranker file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RankerFileError {
    /// The file could not be opened, read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file's content is not a sound ranker.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: RankerBytesError,
    },
}

/// Why bytes are not a sound ranker.
#[derive(Debug, thiserror::Error)]
pub enum RankerBytesError {
    /// The magic is missing.
    #[error("not a ranker file; `outrank train` makes one")]
    NotARanker,
    /// The file is of another version.
    #[error("ranker file version {found}, but this program reads version {VERSION}; {}",
        if *found > VERSION { "update outrank" } else { "train it again" })]
    Version {
        /// The file's version.
        found: u32,
    },
    /// The file ends early.
    #[error("truncated: {found} bytes, {expected} expected; copy or train it again")]
    Truncated {
        /// Bytes there.
        found: usize,
        /// Bytes that the file says it has, as far as can be told.
        expected: usize,
    },
    /// More bytes follow than the file says it has.
    #[error("{extra} bytes too many at the end; copy or train it again")]
    Trailing {
        /// Bytes too many.
        extra: usize,
    },
    /// The checksum does not match.
    #[error("corrupt: the checksum does not match; copy or train it again")]
    Checksum,
    /// The header is not what it should be.
    #[error("corrupt header: {0}")]
    Header(String),
    /// The weights are not what they should be.
    #[error("corrupt weights: {0}")]
    Weights(String),
}

#[derive(Serialize, Deserialize)]
struct Header {
    card: Card,
    calibration: Calibration,
}

impl Ranker {
    /// The bytes of the ranker file. Equal rankers give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let header = Header { card: self.card.clone(), calibration: self.calibration.clone() };
        let header = serde_json::to_vec(&header).expect("a card of strings and finite numbers is JSON");
        let mut bytes = Vec::with_capacity(header.len() + 2 * self.weights.len() + 64);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&length_u32(header.len()).to_le_bytes());
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(&length_u32(self.weights.len()).to_le_bytes());
        for &weight in self.weights.iter() {
            bytes.extend_from_slice(&f16::from_f32(weight).to_le_bytes());
        }
        let checksum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&checksum);
        bytes
    }

    /// Reads the bytes of a ranker file.
    ///
    /// # Errors
    /// [`RankerBytesError`] says what is wrong with them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RankerBytesError> {
        let mut rest = bytes;
        let truncated = |expected: usize| RankerBytesError::Truncated { found: bytes.len(), expected };
        if !bytes.starts_with(&MAGIC[..bytes.len().min(MAGIC.len())]) || bytes.is_empty() {
            return Err(RankerBytesError::NotARanker);
        }
        take(&mut rest, MAGIC.len()).ok_or_else(|| truncated(MAGIC.len() + 8))?;
        let version = take_u32(&mut rest).ok_or_else(|| truncated(MAGIC.len() + 8))?;
        if version != VERSION {
            return Err(RankerBytesError::Version { found: version });
        }
        let header_bytes = take_u32(&mut rest).ok_or_else(|| truncated(MAGIC.len() + 8))? as usize;
        let expected = MAGIC.len() + 12 + header_bytes + 2 * DIMENSIONS + CHECKSUM_BYTES;
        let header = take(&mut rest, header_bytes).ok_or_else(|| truncated(expected))?;
        let weights = take_u32(&mut rest).ok_or_else(|| truncated(expected))? as usize;
        let expected = MAGIC.len() + 12 + header_bytes + 2 * weights + CHECKSUM_BYTES;
        let payload = take(&mut rest, 2 * weights).ok_or_else(|| truncated(expected))?;
        let checksum = take(&mut rest, CHECKSUM_BYTES).ok_or_else(|| truncated(expected))?;
        if !rest.is_empty() {
            return Err(RankerBytesError::Trailing { extra: rest.len() });
        }
        if Sha256::digest(&bytes[..bytes.len() - CHECKSUM_BYTES]).as_slice() != checksum {
            return Err(RankerBytesError::Checksum);
        }
        Self::from_parts(header, payload)
    }

    fn from_parts(header: &[u8], payload: &[u8]) -> Result<Self, RankerBytesError> {
        let header: Header =
            serde_json::from_slice(header).map_err(|error| RankerBytesError::Header(error.to_string()))?;
        if !header.calibration.is_sound() {
            return Err(RankerBytesError::Header("the calibration curve is not sound".into()));
        }
        let weights = halves(payload);
        if weights.len() != DIMENSIONS {
            return Err(RankerBytesError::Weights(format!("{} of them, not {DIMENSIONS}", weights.len())));
        }
        if weights.iter().any(|weight| !weight.is_finite()) {
            return Err(RankerBytesError::Weights("one is not a finite number".into()));
        }
        Ok(Self { weights: weights.into(), calibration: header.calibration, card: header.card })
    }

    /// Reads a ranker file.
    ///
    /// # Errors
    /// [`RankerFileError`], with the path and what to do.
    pub fn load(path: &Path) -> Result<Self, RankerFileError> {
        let io = |source| RankerFileError::Io { path: path.to_owned(), source };
        let bytes = std::fs::metadata(path).map_err(io)?.len();
        if bytes > MAX_FILE_BYTES {
            return Err(RankerFileError::File {
                path: path.to_owned(),
                problem: RankerBytesError::NotARanker,
            });
        }
        let bytes = std::fs::read(path).map_err(io)?;
        Self::from_bytes(&bytes).map_err(|problem| RankerFileError::File { path: path.to_owned(), problem })
    }

    /// Writes the ranker file atomically: a temporary file beside it, then a rename.
    ///
    /// # Errors
    /// [`RankerFileError::Io`]; what stood at the path before is then still there.
    pub fn save(&self, path: &Path) -> Result<(), RankerFileError> {
        let io = |source| RankerFileError::Io { path: path.to_owned(), source };
        write_whole(path, &self.to_bytes()).map_err(io)
    }
}

fn length_u32(length: usize) -> u32 {
    u32::try_from(length).expect("header and weights are far below 4 GiB")
}

pub(crate) fn take<'a>(rest: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(bytes)?;
    *rest = left;
    Some(taken)
}

pub(crate) fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    take(rest, 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)
}

/// Numbers of half precision.
pub(crate) fn halves(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|pair| f16::from_le_bytes([pair[0], pair[1]]).to_f32()).collect()
}
