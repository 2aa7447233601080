//! Requantising a model file once, into a cache folder.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use llama_cpp_sys_2::{LLAMA_FTYPE_MOSTLY_Q8_0, llama_model_quantize, llama_model_quantize_default_params};

use crate::ModelError;
use crate::backend::{backend, capture_errors};
use crate::gguf::GgufHeader;

/// `general.file_type` of Q8_0 files.
const FILE_TYPE_Q8_0: u64 = 7;

/// The Q8_0 form of the model at `source`: `source` itself if it is Q8_0, else `<stem>.Q8_0.gguf` in `cache_dir`,
/// made on the first call. Q4_1 files decode batches poorly; Q8_0 is near lossless and faster from a batch of 4 on.
///
/// The cached file appears by rename once it is whole and verified, so an interrupted call leaves nothing behind
/// that a later one would take for a model. A cached file that is older than `source`, or damaged, is made anew.
///
/// # Errors
/// [`ModelError`] if `source` is no whole GGUF file, or if the cache cannot be written.
pub fn ensure_q8_0(source: &Path, cache_dir: &Path) -> Result<PathBuf, ModelError> {
    let header = read_header(source)?;
    if header.file_type == Some(FILE_TYPE_Q8_0) {
        return Ok(source.into());
    }
    let stem = source.file_stem().map_or_else(|| "model".into(), |stem| stem.to_string_lossy());
    let cached = cache_dir.join(format!("{stem}.Q8_0.gguf"));
    if is_fresh(&cached, source) && read_header(&cached).is_ok_and(|it| it.tensors == header.tensors) {
        return Ok(cached);
    }
    fs::create_dir_all(cache_dir).map_err(|source| ModelError::Io { path: cache_dir.into(), source })?;
    let partial = cache_dir.join(format!("{stem}.Q8_0.{}.partial", std::process::id()));
    let made = quantize_q8_0(source, &partial).and_then(|()| {
        fs::rename(&partial, &cached).map_err(|source| ModelError::Io { path: cached.clone(), source })
    });
    if made.is_err() {
        // Best effort: the first error is the one to report.
        let _ = fs::remove_file(&partial);
    }
    made.map(|()| cached)
}

/// Writes the model at `source` to `target` with all weights as Q8_0, and verifies what was written.
///
/// # Errors
/// [`ModelError`] if `source` is no whole GGUF file, or if llama.cpp or the disk fails.
pub fn quantize_q8_0(source: &Path, target: &Path) -> Result<(), ModelError> {
    let before = read_header(source)?;
    backend()?;
    let fail = |reason: String| ModelError::Quantize { path: source.into(), reason };
    let c_path = |path: &Path| {
        CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| fail("NUL byte in a path".into()))
    };
    let (input, output) = (c_path(source)?, c_path(target)?);
    let (status, reason) = capture_errors(|| {
        // SAFETY: takes nothing and returns a plain struct of defaults.
        let mut params = unsafe { llama_model_quantize_default_params() };
        params.ftype = LLAMA_FTYPE_MOSTLY_Q8_0;
        params.allow_requantize = true;
        // SAFETY: both paths are NUL-terminated and outlive the call, `params` holds only null pointers, and the
        // function catches its C++ exceptions and reports them as a status other than 0.
        unsafe { llama_model_quantize(input.as_ptr(), output.as_ptr(), &raw const params) }
    });
    if status != 0 {
        return Err(fail(reason));
    }
    let after = read_header(target)?;
    if after.tensors != before.tensors {
        return Err(fail(format!("{} tensors became {}", before.tensors, after.tensors)));
    }
    Ok(())
}

fn read_header(path: &Path) -> Result<GgufHeader, ModelError> {
    if let Err(source) = fs::metadata(path) {
        return Err(ModelError::Io { path: path.into(), source });
    }
    GgufHeader::read(path).map_err(|source| ModelError::Gguf { path: path.into(), source })
}

/// Whether `cached` exists and is no older than `source`.
fn is_fresh(cached: &Path, source: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    matches!((modified(cached), modified(source)), (Ok(cached), Ok(source)) if cached >= source)
}
