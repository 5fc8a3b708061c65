//! The agent: reads the machine file, keeps the containers it asks for running, and answers the Docker Engine API.
//!
//! One task, the owner, changes the state of containers; everything else sends it [`command`]s. Killing the agent at
//! any moment loses nothing: init keeps exits and descriptors, the state disk keeps records and logs.
//!
//! In reading order: [`config`] (the machine file), [`command`] (what may be asked), [`phase`] and [`restart`] (pure
//! rules), [`store`], [`volumes`], [`networks`], [`images`], [`logs`] (what containers are made of), [`create`],
//! [`start`], [`owner`] (their life), [`units`], [`host`], [`server`], [`boot`] (all of it put together).

mod binds;
mod boot;
mod command;
mod config;
mod create;
mod files;
mod health;
mod host;
mod id;
mod images;
mod init_link;
mod launcher;
mod log;
mod logs;
mod networks;
mod owner;
mod phase;
mod readiness;
mod restart;
mod server;
mod slots;
mod start;
mod store;
mod tls;
mod units;
mod volumes;

/// Threads that run tasks: the machine's CPUs belong to containers.
const WORKERS: usize = 2;
/// Threads for what blocks: starts, clean-up, file work of pulls.
const BLOCKING: usize = 16;
/// Stack of each thread in bytes. Nothing here recurses over outside data.
const STACK: usize = 512 << 10;

/// What init leaves to its services is no mask at all; a container's root directory would be open to everybody.
const UMASK: rustix::fs::Mode = rustix::fs::Mode::from_bits_truncate(0o022);

fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(files::job::ARGUMENT) {
        return files::run::main(&arguments.next().unwrap_or_default());
    }
    rustix::process::umask(UMASK);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .thread_stack_size(STACK)
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(async {
            // On a worker, so that what blocks may step aside.
            match tokio::spawn(boot::run()).await {
                Ok(outcome) => outcome.map_err(|error| log::chain(&error)),
                Err(error) => Err(error.to_string()),
            }
        }),
        Err(error) => Err(format!("start threads: {error}")),
    };
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            std::process::ExitCode::FAILURE
        }
    }
}
