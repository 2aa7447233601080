//! What the mock server and the load client share. Both speak HTTP/1.1 by hand on plain sockets: between them they cost a
//! fraction of any gateway, so that the gateway is what is measured.

pub mod clock;
pub mod procfs;
pub mod summary;
pub mod wire;
