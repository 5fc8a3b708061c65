//! Berth's OCI runtime: a plan becomes a running container.

pub mod plan;
