//! Free ports on this machine's loopback.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};

/// That many different free TCP ports, held together so that none is given twice. Another program may take one
/// before it is used; who uses it must notice and ask again.
pub fn free(count: usize) -> Result<Vec<u16>> {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("binding a free port");
    let held = (0..count).map(|_| bind()).collect::<Result<Vec<_>>>()?;
    let ports =
        held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<Result<BTreeSet<_>>>()?;
    Ok(ports.into_iter().collect())
}
