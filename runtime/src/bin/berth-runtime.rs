//! `berth-runtime`: the OCI runtime command line.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use berth_runtime::oci::create::{Create, create};
use berth_runtime::oci::exec::exec;
use berth_runtime::oci::spec::ProcessSpec;
use berth_runtime::oci::state::{Container, ROOT, Status};
use berth_runtime::oci::{OciError, end, features, start};
use berth_runtime::signal;
use berth_sys::clone::SingleThreaded;
use clap::{Parser, Subcommand};
use rustix::process::{WaitId, WaitIdOptions, waitid};

/// Runs OCI bundles.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// Where records of containers are kept.
    #[arg(long, default_value = ROOT)]
    root: PathBuf,
    /// File that gets the error, if there is one, instead of standard error.
    #[arg(long)]
    log: Option<PathBuf>,
    /// How the error is written there.
    #[arg(long, default_value = "text")]
    log_format: LogFormat,
    /// Taken for other runtimes' sake: there is nothing more to say.
    #[arg(long)]
    debug: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Set a container up; its program waits for `start`.
    Create(CreateArguments),
    /// Start the program of a created container.
    Start { id: String },
    /// Create and start a container, wait for it and delete it.
    Run(CreateArguments),
    /// Run a further process in a running container.
    Exec(ExecArguments),
    /// Show the state of a container as JSON.
    State { id: String },
    /// Send a signal.
    Kill {
        /// To every process of the container.
        #[arg(short, long)]
        all: bool,
        id: String,
        #[arg(default_value = "SIGTERM")]
        signal: String,
    },
    /// Remove a container.
    Delete {
        /// Kill it first when it runs.
        #[arg(short, long)]
        force: bool,
        id: String,
    },
    /// Stop every process of a container.
    Pause { id: String },
    /// Let a paused container go on.
    Resume { id: String },
    /// Set limits anew.
    Update {
        /// A file with `linux.resources` as JSON; `-` for standard input.
        #[arg(short, long)]
        resources: PathBuf,
        id: String,
    },
    /// Show the processes of a container, by their numbers on the host.
    Ps {
        /// `table` or `json`.
        #[arg(short, long, default_value = "table")]
        format: Format,
        id: String,
    },
    /// List containers.
    List {
        /// Only their names.
        #[arg(short, long)]
        quiet: bool,
        /// `table` or `json`.
        #[arg(short, long, default_value = "table")]
        format: Format,
    },
    /// Show what this runtime can do as JSON.
    Features,
    /// Write a `config.json` to begin with.
    Spec {
        #[arg(short, long, default_value = ".")]
        bundle: PathBuf,
    },
}

/// How a list is shown.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Table,
    Json,
}

/// How errors are written to the log.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(clap::Args)]
struct CreateArguments {
    /// Directory with `config.json`.
    #[arg(short, long, default_value = ".")]
    bundle: PathBuf,
    /// Unix socket that gets the terminal.
    #[arg(long)]
    console_socket: Option<PathBuf>,
    /// File that gets the pid.
    #[arg(long)]
    pid_file: Option<PathBuf>,
    id: String,
}

#[derive(clap::Args)]
struct ExecArguments {
    /// A JSON file with the process.
    #[arg(short, long)]
    process: Option<PathBuf>,
    /// Working directory.
    #[arg(long)]
    cwd: Option<String>,
    /// `KEY=value`, in addition to the container's.
    #[arg(short, long)]
    env: Vec<String>,
    /// Do not wait.
    #[arg(short, long)]
    detach: bool,
    /// File that gets the pid.
    #[arg(long)]
    pid_file: Option<PathBuf>,
    id: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (log, format) = (arguments.log.clone(), arguments.log_format);
    match run(arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let mut texts = vec!["berth-runtime".to_owned(), error.to_string()];
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                texts.push(cause.to_string());
                source = cause.source();
            }
            complain(&texts.join(": "), log.as_deref(), format);
            ExitCode::FAILURE
        }
    }
}

/// Where the caller reads errors; on standard error too when the log cannot be written.
fn complain(text: &str, log: Option<&std::path::Path>, format: LogFormat) {
    let line = match format {
        LogFormat::Text => text.to_owned(),
        LogFormat::Json => serde_json::json!({ "level": "error", "msg": text }).to_string(),
    };
    let opened = log.map(|path| std::fs::File::options().create(true).append(true).open(path));
    let written = opened.map(|file| file.and_then(|mut file| writeln!(file, "{line}")));
    if !matches!(written, Some(Ok(()))) {
        eprintln!("{text}");
    }
}

fn run(arguments: Arguments) -> Result<u8, OciError> {
    let root = arguments.root;
    match arguments.command {
        Command::Create(wanted) => create(single()?, &wanted.into_create(root)).map(|_| 0),
        Command::Start { id } => start::start(&root, &id).map(|()| 0),
        Command::Run(wanted) => run_container(&wanted.into_create(root)),
        Command::Exec(wanted) => run_exec(&root, wanted),
        Command::State { id } => {
            let container = Container::open(&root, &id)?;
            print(&container.shown(container.status()))
        }
        Command::Kill { all, id, signal: name } => {
            let number = signal::parse(&name).ok_or_else(|| OciError::Spec(format!("signal {name:?}")))?;
            end::kill(&root, &id, number, all).map(|()| 0)
        }
        Command::Delete { force, id } => delete(&root, &id, force),
        Command::Pause { id } => end::pause(&root, &id, true).map(|()| 0),
        Command::Resume { id } => end::pause(&root, &id, false).map(|()| 0),
        Command::Update { resources, id } => {
            let wanted = read_json(&resources)?;
            end::update(&root, &id, &wanted).map(|()| 0)
        }
        Command::Ps { format, id } => {
            let pids = end::processes(&root, &id)?;
            if format == Format::Json {
                return print(&pids);
            }
            for pid in pids {
                let _ = writeln!(std::io::stdout(), "{pid}");
            }
            Ok(0)
        }
        Command::List { quiet, format } => list(&root, quiet, format),
        Command::Features => print(&features::features()),
        Command::Spec { bundle } => write_spec(&bundle),
    }
}

impl CreateArguments {
    fn into_create(self, root: PathBuf) -> Create {
        Create {
            root,
            id: self.id,
            bundle: self.bundle,
            console_socket: self.console_socket,
            pid_file: self.pid_file,
        }
    }
}

/// Children of this command may run ordinary code only while it has one thread; it starts none. Nothing of a
/// container's set-up may be read from inside.
fn single() -> Result<SingleThreaded, OciError> {
    let failed = |source| OciError::System { what: "threads", source };
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|errno| failed(errno.into()))?;
    SingleThreaded::check().map_err(failed)
}

fn run_container(wanted: &Create) -> Result<u8, OciError> {
    let pidfd = create(single()?, wanted)?;
    let started = start::start(&wanted.root, &wanted.id);
    let code = started.and_then(|()| wait(pidfd.as_fd()));
    delete(&wanted.root, &wanted.id, true)?;
    code
}

/// Hooks that fail when all is over are worth a warning, no more.
fn delete(root: &std::path::Path, id: &str, force: bool) -> Result<u8, OciError> {
    for warning in end::delete(root, id, force)? {
        eprintln!("berth-runtime: warning: {warning}");
    }
    Ok(0)
}

fn run_exec(root: &std::path::Path, wanted: ExecArguments) -> Result<u8, OciError> {
    let spec = if let Some(path) = &wanted.process {
        read_json(path)?
    } else {
        let own = Container::open(root, &wanted.id)?.spec.process.clone().unwrap_or_default();
        let env = own.env.iter().chain(&wanted.env).cloned().collect();
        let cwd = wanted.cwd.clone().unwrap_or_else(|| own.cwd.clone());
        ProcessSpec { args: wanted.args, env, cwd, terminal: false, ..own }
    };
    let (pid, fds) = exec(single()?, root, &wanted.id, &spec)?;
    if let Some(path) = wanted.pid_file {
        std::fs::write(&path, pid.to_string()).map_err(|source| OciError::File {
            what: "write",
            path,
            source,
        })?;
    }
    match fds.first() {
        Some(pidfd) if !wanted.detach => wait(pidfd.as_fd()),
        _ => Ok(0),
    }
}

/// Waits for a child; its exit code, or 128 and the signal that ended it.
fn wait(pidfd: BorrowedFd<'_>) -> Result<u8, OciError> {
    let waited = rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED));
    let status = waited.map_err(|errno| OciError::System { what: "wait", source: errno.into() })?;
    let code = status.map_or(255, |status| {
        status.exit_status().unwrap_or_else(|| 128 + status.terminating_signal().unwrap_or(0))
    });
    Ok(u8::try_from(code).unwrap_or(255))
}

/// A JSON document of a file, or of standard input for `-`.
fn read_json<T: serde::de::DeserializeOwned>(path: &std::path::Path) -> Result<T, OciError> {
    let read = if path.as_os_str() == "-" {
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin(), &mut text).map(|_| text)
    } else {
        std::fs::read(path)
    };
    let text = read.map_err(|source| OciError::File { what: "read", path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|source| OciError::Json { path: path.to_owned(), source })
}

fn list(root: &std::path::Path, quiet: bool, format: Format) -> Result<u8, OciError> {
    let mut out = std::io::stdout().lock();
    let mut all = Vec::new();
    for id in Container::list(root)? {
        let Ok(container) = Container::open(root, &id) else { continue };
        let shown = container.shown(container.status());
        if format == Format::Json {
            all.push(shown);
            continue;
        }
        if quiet {
            let _ = writeln!(out, "{id}");
            continue;
        }
        let pid = if shown.status == Status::Stopped { 0 } else { shown.pid };
        let _ = writeln!(out, "{id}\t{pid}\t{}\t{}", shown.status, shown.bundle.display());
    }
    if format == Format::Json {
        drop(out);
        return print(&all);
    }
    Ok(0)
}

fn print<T: serde::Serialize>(value: &T) -> Result<u8, OciError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|source| OciError::Json { path: "output".into(), source })?;
    let written = writeln!(std::io::stdout(), "{text}");
    written.map_err(|source| OciError::System { what: "output", source })?;
    Ok(0)
}

fn write_spec(bundle: &std::path::Path) -> Result<u8, OciError> {
    let path = bundle.join("config.json");
    let failed = |source| OciError::File { what: "write", path: path.clone(), source };
    let mut file = std::fs::File::create_new(&path).map_err(failed)?;
    serde_json::to_writer_pretty(&mut file, &features::template())
        .map_err(|source| OciError::Json { path: path.clone(), source })?;
    writeln!(file).map_err(failed)?;
    Ok(0)
}
