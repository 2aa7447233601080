//! The llama.cpp library itself: one initialisation per process, and its log.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_sys_2::{GGML_LOG_LEVEL_ERROR, GGML_LOG_LEVEL_WARN, ggml_log_level, llama_log_set};

use crate::ModelError;

thread_local! {
    /// Error lines that llama.cpp logged on this thread since [`capture_errors`] began.
    static ERRORS: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The initialised library. It lives until the process ends.
pub(crate) fn backend() -> Result<&'static LlamaBackend, ModelError> {
    static BACKEND: OnceLock<Result<LlamaBackend, String>> = OnceLock::new();
    let backend = BACKEND.get_or_init(|| {
        // SAFETY: `on_log` has the signature that llama.cpp calls and uses no user data. The call happens once,
        // before any other use of the library by this process.
        unsafe { llama_log_set(Some(on_log), std::ptr::null_mut()) };
        LlamaBackend::init().map_err(|error| error.to_string())
    });
    backend.as_ref().map_err(|reason| ModelError::Backend(reason.clone()))
}

/// Runs `call` and returns its result with the error lines that llama.cpp logged on this thread meanwhile.
pub(crate) fn capture_errors<T>(call: impl FnOnce() -> T) -> (T, String) {
    ERRORS.with(|errors| errors.replace(Some(String::new())));
    let result = call();
    let lines = ERRORS.with(RefCell::take).unwrap_or_default();
    let mut reason = lines.trim().replace('\n', "; ");
    if reason.is_empty() {
        reason = "no reason given".into();
    }
    (result, reason)
}

/// Receives every log line of llama.cpp and ggml, on the thread that logs it.
extern "C" fn on_log(level: ggml_log_level, text: *const c_char, _user_data: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that lives until this function returns.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    if level == GGML_LOG_LEVEL_ERROR {
        ERRORS.with_borrow_mut(|errors| {
            if let Some(errors) = errors {
                errors.push_str(&text);
            }
        });
        tracing::error!(target: "llama.cpp", "{}", text.trim_end());
    } else if level == GGML_LOG_LEVEL_WARN {
        tracing::warn!(target: "llama.cpp", "{}", text.trim_end());
    } else {
        tracing::trace!(target: "llama.cpp", "{}", text.trim_end());
    }
}
