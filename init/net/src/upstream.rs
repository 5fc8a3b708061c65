//! The name servers everything here asks: where they come from changes at run time (DHCP, router advertisements),
//! so the resolver and the servers on the bridges watch this value.

use std::net::SocketAddr;

/// Name servers and search domains in force.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Upstreams {
    /// Recursive name servers, best first.
    pub servers: Vec<SocketAddr>,
    /// Domains tried for names without a dot.
    pub search: Vec<String>,
}
