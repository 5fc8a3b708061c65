//! Boots the real image under QEMU and drives it from outside.

pub mod session;
