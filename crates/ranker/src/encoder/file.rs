//! The encoder file.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | magic `OUTRANKE` |
//! | 11 × 4 | version, pieces, width, convolutions, attentions, inner width, half, heads, hidden, outputs, parameters |
//! | 4 a piece | fingerprints of the vocabulary's pieces ([`super::pieces`]), 0 for the special ones |
//! | 2 a piece | scale of the piece's embedding |
//! | width a piece | embeddings: 8-bit integers |
//! | 2 a parameter | everything else, in the order in which [`read`] takes it, matrices with the input as rows |
//! | 32 | SHA-256 of all that stands before |
//!
//! All little-endian; scales and parameters in IEEE 754 half precision. `bench/encoder/pack.py` writes it.

use sha2::{Digest, Sha256};

use super::linear::Linear;
use super::matrix::LANES;
use crate::file::{halves, take, take_u32};

const MAGIC: &[u8; 8] = b"OUTRANKE";
const VERSION: u32 = 2;
/// Places whose values a convolution sums: two before and two after its own.
pub(super) const TAPS: usize = 5;
const CHECKSUM_BYTES: usize = 32;
const TRUNCATED: &str = "truncated";

/// Scale and shift of a layer norm.
#[derive(Debug)]
pub(super) struct Norm {
    pub(super) scale: Vec<f32>,
    pub(super) shift: Vec<f32>,
}

/// How a layer brings the places of a text together.
#[derive(Debug)]
pub(super) enum Mixing {
    /// A depthwise convolution: its taps, for each number of a place.
    Neighbours { taps: Vec<[f32; TAPS]> },
    /// Self-attention.
    Attention { queries_keys_values: Linear, out: Linear },
}

/// One layer, norms first.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) mixing_norm: Norm,
    pub(super) mixing: Mixing,
    pub(super) inner_norm: Norm,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// All that was learned.
#[derive(Debug)]
pub(super) struct Weights {
    /// Of the embeddings.
    pub(super) width: usize,
    /// Pieces read from either end.
    pub(super) half: usize,
    pub(super) scales: Vec<f32>,
    pub(super) embeddings: Vec<i8>,
    /// One row a place.
    pub(super) places: Vec<f32>,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Norm,
    /// How much each place counts in the pooled sums, one a head.
    pub(super) attention: Linear,
    pub(super) hidden: Linear,
    pub(super) output: Vec<f32>,
    pub(super) output_bias: f32,
}

/// Fingerprints and weights of a file.
pub(super) fn read(bytes: &[u8]) -> Result<(Vec<u32>, Weights), &'static str> {
    let (body, checksum) =
        bytes.split_at_checked(bytes.len().saturating_sub(CHECKSUM_BYTES)).ok_or(TRUNCATED)?;
    if !body.starts_with(MAGIC) {
        return Err("not an encoder file");
    }
    if Sha256::digest(body).as_slice() != checksum {
        return Err("the checksum does not match");
    }
    let mut rest = Rest(&body[MAGIC.len()..]);
    let mut header = [0; 11];
    for number in &mut header {
        *number = take_u32(&mut rest.0).ok_or(TRUNCATED)? as usize;
    }
    let [version, pieces, width, convolutions, attentions, inner, half, heads, hidden, outputs, parameters] =
        header;
    if version != VERSION as usize {
        return Err("another version");
    }
    if ![width, inner, hidden, 2 * half].iter().all(|size| size.is_multiple_of(LANES))
        || heads > LANES
        || outputs != 1
        || pieces > usize::from(u16::MAX)
    {
        return Err("sizes that this program cannot run");
    }
    let prints = rest
        .take(4 * pieces)?
        .chunks_exact(4)
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    let scales = rest.halves(pieces)?;
    let embeddings = rest.take(pieces * width)?.iter().map(|&byte| byte.cast_signed()).collect();
    let mut of = Rest(rest.take(2 * parameters)?);
    let weights = Weights {
        width,
        half,
        scales,
        embeddings,
        places: of.halves(2 * half * width)?,
        layers: (0..convolutions + attentions)
            .map(|layer| of.layer(width, inner, layer < convolutions))
            .collect::<Result<_, _>>()?,
        norm: of.norm(width)?,
        attention: of.linear(width, heads)?,
        hidden: of.linear((2 + heads) * width + 1, hidden)?,
        output: of.halves(hidden)?,
        output_bias: of.halves(1)?[0],
    };
    if of.0.is_empty() && rest.0.is_empty() { Ok((prints, weights)) } else { Err("bytes too many") }
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], &'static str> {
        take(&mut self.0, bytes).ok_or(TRUNCATED)
    }

    fn halves(&mut self, count: usize) -> Result<Vec<f32>, &'static str> {
        Ok(halves(self.take(2 * count)?))
    }

    fn norm(&mut self, width: usize) -> Result<Norm, &'static str> {
        Ok(Norm { scale: self.halves(width)?, shift: self.halves(width)? })
    }

    fn linear(&mut self, inputs: usize, outputs: usize) -> Result<Linear, &'static str> {
        let weights = self.halves(inputs * outputs)?;
        Ok(Linear::new(&weights, &self.halves(outputs)?))
    }

    fn layer(&mut self, width: usize, inner: usize, convolution: bool) -> Result<Layer, &'static str> {
        Ok(Layer {
            mixing_norm: self.norm(width)?,
            mixing: if convolution {
                let rows = self.halves(TAPS * width)?;
                let taps = |index| std::array::from_fn(|tap| rows[tap * width + index]);
                Mixing::Neighbours { taps: (0..width).map(taps).collect() }
            } else {
                Mixing::Attention {
                    queries_keys_values: self.linear(width, 3 * width)?,
                    out: self.linear(width, width)?,
                }
            },
            inner_norm: self.norm(width)?,
            up: self.linear(width, inner)?,
            down: self.linear(inner, width)?,
        })
    }
}
