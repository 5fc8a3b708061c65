//! The agent: reads the machine file, keeps the containers it asks for running, and answers the Docker Engine API.
//!
//! One task, the owner, changes the state of containers; everything else sends it [`command`]s. Killing the agent at
//! any moment loses nothing: init keeps exits and descriptors, the state disk keeps records and logs.

mod command;
mod config;
mod log;
mod logs;
mod restart;
mod server;

mod slots;

fn main() {}
