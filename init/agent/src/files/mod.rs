//! Copying files into and out of containers: `docker cp`, `docker export`.
//!
//! The agent is the host's root, and a container's tree is full of what a stranger wrote. So a process of its own does
//! the copying: for a running container it joins the container's user namespace first, so that it may do there what the
//! container's root may, and nothing elsewhere; for a stopped one it mounts the tree in a mount namespace of its own
//! and gives up all but the rights over files. Archives are read and written only there.
//!
//! Rooms in reading order: [`job`] (what is asked and answered), [`courier`] (the agent's side), [`run`] (the process),
//! [`enter`] (how it gets to the tree), [`hold`] (a stopped container's tree has one user), [`tree`] (paths), [`pack`],
//! [`unpack`].

pub(crate) mod courier;
mod enter;
pub(crate) mod hold;
pub(crate) mod job;
mod pack;
pub(crate) mod run;
pub(crate) mod tree;
mod unpack;
