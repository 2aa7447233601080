//! Taking a port, and how a host ends.

use std::io;

use thiserror::Error;
use tokio::net::TcpListener;

/// Why a host has no port.
#[derive(Debug, Error)]
pub enum BindError {
    /// Another process listens on it.
    #[error("port {port} of {host} is in use: stop the program that listens there, or choose another port")]
    PortInUse {
        /// Address asked for.
        host: String,
        /// Port asked for.
        port: u16,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {host}:{port}: {source}; check host and port")]
    Address {
        /// Address asked for.
        host: String,
        /// Port asked for.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
}

/// Listens on a port of an address; port 0 takes a free one.
///
/// # Errors
/// [`BindError`] saying what to change.
pub async fn listen_on(host: &str, port: u16) -> Result<TcpListener, BindError> {
    TcpListener::bind((host, port)).await.map_err(|source| {
        let host = host.to_owned();
        if source.kind() == io::ErrorKind::AddrInUse {
            BindError::PortInUse { host, port }
        } else {
            BindError::Address { host, port, source }
        }
    })
}

/// How the last requests of a host ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Drained {
    /// Requests that were given up when the drain timeout passed.
    pub abandoned_requests: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_told_from_an_address_that_is_none() {
        let taken = listen_on("127.0.0.1", 0).await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = listen_on("127.0.0.1", port).await.unwrap_err();
        assert!(matches!(&error, BindError::PortInUse { port: named, .. } if *named == port), "{error}");
        // TEST-NET-1 of RFC 5737 is nobody's.
        let error = listen_on("192.0.2.1", port).await.unwrap_err();
        assert!(matches!(error, BindError::Address { .. }), "{error}");
    }
}
