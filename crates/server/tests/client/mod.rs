//! The HTTP client of the tests.

use reqwest::Client;

/// A client. It wants a TLS provider even for plain HTTP, because Cargo gives it the features that the binary's needs.
pub(crate) fn client() -> Client {
    // An error means that another test of this process has installed it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::new()
}
