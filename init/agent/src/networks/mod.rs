//! Container networks: which there are ([`registry`]), and containers' places in them ([`connect`], [`leave`]).
//!
//! What is in force in the kernel is always computed from what is here and sent as a difference, so nothing can be
//! forgotten in it. All calls block on the kernel and belong on a blocking thread.
//!
//! Reading order: [`record`] and [`options`] (what a network is), [`decide`] (what a request makes of it),
//! [`registry`], [`wanted`] and [`place`] (what a container wants and gets), [`connect`], [`leave`], [`rules`] (what the
//! firewall gets), [`publish`], [`names`], [`show`].

mod connect;
mod decide;
mod leave;
mod names;
mod options;
mod place;
mod publish;
mod record;
mod registry;
mod rules;
mod show;
mod wanted;

pub(crate) use connect::ConnectError;
pub(crate) use names::take_kept;
pub(crate) use publish::wanted_ports;
pub(crate) use record::DEFAULT;
pub(crate) use registry::Networks;
pub(crate) use wanted::Member;
