//! TLS towards clients and towards upstreams.

use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::config::{ConfigError, TlsConfig};

/// Reads certificate and key.
///
/// # Errors
/// [`ConfigError`] naming the file.
pub(crate) fn acceptor(config: &TlsConfig) -> Result<TlsAcceptor, ConfigError> {
    let fail = |path: &std::path::Path, why: &dyn std::fmt::Display| {
        ConfigError(format!("{}: {why}", path.display()))
    };
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&config.cert)
        .and_then(Iterator::collect)
        .map_err(|error| fail(&config.cert, &error))?;
    if certificates.is_empty() {
        return Err(fail(&config.cert, &"there is no certificate in it: it must be PEM"));
    }
    let key = PrivateKeyDer::from_pem_file(&config.key).map_err(|error| fail(&config.key, &error))?;
    let mut server = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| fail(&config.cert, &error))?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(|error| {
            fail(&config.cert, &format!("does not go with {}: {error}", config.key.display()))
        })?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(server)))
}

/// How upstreams are trusted: by the certificates of the system, or those of `SSL_CERT_FILE`.
///
/// # Errors
/// [`ConfigError`] if the protocol cannot be set up.
pub(crate) fn client() -> Result<Arc<ClientConfig>, ConfigError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (_, ignored) = roots.add_parsable_certificates(found.certs);
    tracing::debug!(ignored, errors = found.errors.len(), "certificates of the system");
    let client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| ConfigError(format!("TLS: {error}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(client))
}
