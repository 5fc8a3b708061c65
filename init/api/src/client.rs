//! A small client of the API over a unix socket or TCP with mutual TLS.
