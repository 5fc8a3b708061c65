//! The agent's start, as a list of steps. Those that may fail leave the machine reachable with an error in the log and
//! in the host status; only the link to init, the state directory and the cgroup tree must succeed.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_net::host::InterfaceConfig;
use berth_net::resolver::Resolver;
use berth_net::{Upstreams, host as net_host, sntp};
use rustix::fs::{Mode, OFlags};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};

use crate::command::{Event, Handle};
use crate::config::{self, Loaded, Machine};
use crate::health;
use crate::host::{self, Board, Host};
use crate::images::{Images, ImagesError};
use crate::init_link::{self, Init};
use crate::launcher::Slots;
use crate::logs::Copier;
use crate::networks::{Networks, take_kept};
use crate::owner::Owner;
use crate::server::{self, Api, listen};
use crate::start::Machinery;
use crate::store::{Store, StoreError};
use crate::volumes::Volumes;
use crate::{tls, units};

/// State of the agent.
const STATE: &str = "/var/lib/berth";
/// What need not survive a boot.
const RUN: &str = "/run/berth";
/// The API's socket inside the machine.
const SOCKET: &str = "/run/docker.sock";
/// Under which name init keeps the socket that containers mount.
const SHARED_SOCKET: &str = "api";
/// The machine's resolv.conf.
const RESOLV: &str = "/run/berth/resolv.conf";
/// Parent of all containers' cgroups; made by init.
const CGROUPS: &str = "/sys/fs/cgroup/docker";
/// Events waiting for a slow listener; then it misses some and is told.
const EVENTS: usize = 1024;
/// Between two looks at a clock that is right.
const CLOCK_INTERVAL: Duration = Duration::from_secs(3600);
/// Between two tries while no time server answers.
const CLOCK_RETRY: Duration = Duration::from_secs(60);

/// Why the agent cannot work at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// The kernel or init refused.
    #[error("{0}")]
    Io(&'static str, #[source] io::Error),
    /// Containers' records.
    #[error("open the containers' store")]
    Store(#[source] StoreError),
    /// Images.
    #[error("open the images")]
    Images(#[source] ImagesError),
    /// The host's network.
    #[error("start the host network")]
    Network(#[source] net_host::StartError),
    /// The owner ended.
    #[error("init closed its socket")]
    Orphaned,
}

/// Runs the agent for ever.
pub(crate) async fn run() -> Result<(), BootError> {
    let board = Board::default();
    board.phase("agent started");
    let socket = init_link::inherited().map_err(|error| BootError::Io("take the control socket", error))?;
    let connected = tokio::task::block_in_place(|| init_link::connect(socket));
    let (init, mut kept) = connected.map_err(|error| BootError::Io("greet init", error))?;
    for dir in [STATE, &format!("{STATE}/net"), RUN] {
        std::fs::create_dir_all(dir).map_err(|error| BootError::Io("make the state directory", error))?;
    }
    let loaded = Arc::new(config::load());
    report(&loaded);
    name_host(&loaded.machine);

    let network = net_host::start(network_config(&loaded.machine), Path::new(&format!("{STATE}/net")));
    let mut network = network.map_err(BootError::Network)?;
    follow_network(&mut network, board.clone());
    let resolver = Resolver::new(network.upstreams());

    let starts =
        kept.services.iter().find(|service| service.service == "agent").map_or(1, |agent| agent.starts);
    let (events, _) = broadcast::channel(EVENTS);
    let (machinery, images) = {
        let sockets = take_kept(&mut kept.stored);
        machinery(&init, sockets, &loaded, resolver, network.upstreams(), &events)?
    };
    let boot = host::boot_id().map_err(|error| BootError::Io("read the boot id", error))?;
    let copier = Copier::start().map_err(|error| BootError::Io("start the log thread", error))?;
    let mut owner = Owner::new(machinery.clone(), copier, boot, starts <= 1, events.clone());
    let happenings = owner.happenings();
    let shutdown = kept.shutdown;
    let shared = kept.stored.remove(SHARED_SOCKET);
    let recovered = owner.recover(kept);
    // Starts wait for the networks; the API does not.
    tokio::spawn({
        let (networks, slots, board) = (machinery.networks.clone(), machinery.slots.clone(), board.clone());
        async move {
            networks.prepare().await;
            board.phase("container networks ready");
            drop(tokio::task::spawn_blocking(move || slots.fill()));
        }
    });
    match shutdown {
        None => owner.start_recovered(&recovered),
        Some((action, deadline_s)) => owner.shut_down(action, deadline_s),
    }

    let (handle, commands) = Handle::new(events);
    let from_init = init.listen().map_err(|error| BootError::Io("listen to init", error))?;
    let owner = tokio::spawn(owner.run(commands, from_init));

    let machine = Host {
        config: loaded.clone(),
        board: board.clone(),
        network: network.status(),
        owner: happenings,
        id: host::machine_id(),
    };
    let (ready, is_ready) = watch::channel(false);
    tokio::spawn(init.clone().heartbeat(is_ready));
    let api = Api::new(handle.clone(), images.store().clone(), images.puller().clone(), Arc::new(machine));
    serve(&loaded.machine, &api).await;
    serve_containers(&init, shared, &api);
    ready.send_replace(true);
    board.phase("api ready");

    tokio::spawn(keep_time(network.status()));
    // A broken or missing file says nothing about which containers shall not be.
    let complete = loaded.error.is_none() && !loaded.text.is_empty();
    tokio::spawn(health::run(handle.clone()));
    let online = network.status();
    tokio::spawn(units::run(loaded.machine.units.clone(), complete, online, handle, images, board));
    // The owner lives as long as anything else; its end is the agent's.
    owner.await.map_err(|error| BootError::Io("run the owner", io::Error::other(error)))?;
    Err(BootError::Orphaned)
}

fn report(loaded: &Loaded) {
    match &loaded.error {
        None => crate::log::info!("machine file from {}", loaded.source),
        Some(error) => crate::log::error!("machine file: {error}; the defaults are in force"),
    }
}

fn name_host(machine: &Machine) {
    if let Err(error) = rustix::system::sethostname(machine.name.as_bytes()) {
        crate::log::warning!("host name: {error}, continuing");
    }
}

fn network_config(machine: &Machine) -> net_host::Config {
    let wanted = &machine.network;
    let mut interfaces = Vec::new();
    for interface in &wanted.interfaces {
        let addresses =
            interface.addresses.iter().filter_map(|(ip, prefix)| berth_net::IpNet::new(*ip, *prefix).ok());
        // Every text is a match, so this never falls back.
        let matches = interface.matches.parse().unwrap_or(net_host::Match::Any);
        interfaces.push(InterfaceConfig {
            matches,
            dhcp4: interface.dhcp,
            router_advertisements: interface.dhcp,
            addresses: addresses.collect(),
            gateways: interface.gateway.into_iter().collect(),
            mtu: None,
        });
    }
    if interfaces.is_empty() {
        interfaces.push(InterfaceConfig::automatic());
    }
    net_host::Config {
        hostname: Some(machine.name.clone()),
        dns: wanted.dns.clone(),
        search: wanted.search.clone(),
        interfaces,
    }
}

/// Logs what the network does, and keeps resolv.conf.
fn follow_network(network: &mut net_host::Handle, board: Board) {
    if let Some(mut events) = network.take_events() {
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                crate::log::info!("network: {event}");
            }
        });
    }
    let mut status = network.status();
    tokio::spawn(async move {
        let mut online = false;
        loop {
            let (text, now) = {
                let status = status.borrow_and_update();
                (status.resolv_conf(), status.is_online())
            };
            if let Err(error) = crate::store::write_durably(Path::new(RESOLV), text.as_bytes()) {
                crate::log::warning!("{RESOLV}: {error}, continuing");
            }
            if now && !online {
                board.phase("network online");
                online = true;
            }
            if status.changed().await.is_err() {
                return;
            }
        }
    });
}

fn machinery(
    init: &Init,
    sockets: BTreeMap<String, Vec<OwnedFd>>,
    loaded: &Loaded,
    resolver: Resolver,
    upstreams: watch::Receiver<Upstreams>,
    events: &broadcast::Sender<Event>,
) -> Result<(Machinery, Images), BootError> {
    let state = Path::new(STATE);
    let store = Store::open(&state.join("containers")).map_err(BootError::Store)?;
    let volumes =
        Volumes::open(&state.join("volumes")).map_err(|error| BootError::Io("open the volumes", error))?;
    let machine_id = berth_net::host::machine_id(&state.join("net"))
        .map_err(|error| BootError::Io("read the machine id", error))?;
    let networks = Networks::open(
        &state.join("networks"),
        &machine_id,
        upstreams,
        events.clone(),
        (init.clone(), sockets),
    )
    .map_err(|error| BootError::Io("open the networks", error))?;
    let registries = &loaded.machine.registries;
    let images = Images::open(&state.join("image"), Path::new(RUN), registries, resolver)
        .map_err(BootError::Images)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let cgroups: OwnedFd = rustix::fs::open(CGROUPS, flags, Mode::empty())
        .map_err(|error| BootError::Io("open the containers' cgroup", error.into()))?;
    let machinery = Machinery {
        init: init.clone(),
        slots: Slots::default(),
        networks: Arc::new(networks),
        volumes: Arc::new(volumes),
        images: images.store().clone(),
        store,
        cgroups: Arc::new(cgroups),
    };
    Ok((machinery, images))
}

/// Opens the socket that containers mount. init keeps it, since a container knows the file it has mounted only: a new
/// file in its place would be another.
fn serve_containers(init: &Init, kept: Option<Vec<OwnedFd>>, api: &Arc<Api>) {
    let path = Path::new(crate::binds::API_SOCKET);
    let opened = match kept.into_iter().flatten().next() {
        Some(fd) => {
            let listener = std::os::unix::net::UnixListener::from(fd);
            listener.set_nonblocking(true).and_then(|()| tokio::net::UnixListener::from_std(listener))
        }
        None => path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| listen::bind_unix(path))
            .and_then(|listener| {
                init.store(SHARED_SOCKET, vec![listener.as_fd().try_clone_to_owned()?])?;
                Ok(listener)
            }),
    };
    match opened {
        Ok(listener) => drop(tokio::spawn(listen::serve_unix(listener, api.clone()))),
        Err(error) => crate::log::error!("{}: {error}", path.display()),
    }
}

/// Opens the API's sockets. One that fails does not stop the other.
async fn serve(machine: &Machine, api: &Arc<Api>) {
    match listen::bind_unix(Path::new(SOCKET)) {
        Ok(listener) => {
            tokio::spawn(listen::serve_unix(listener, api.clone()));
            crate::log::info!("api ready on {SOCKET}");
        }
        Err(error) => crate::log::error!("{SOCKET}: {error}"),
    }
    let Some(client_ca) = &machine.api.client_ca else {
        crate::log::info!("no client_ca in the machine file: the api does not listen on TCP");
        return;
    };
    let address: SocketAddr = machine.api.listen;
    let config = tls::server(machine, Path::new(&format!("{STATE}/tls")))
        .map_err(|error| crate::log::chain(&error))
        .and_then(|(cert, key)| {
            listen::mutual_tls(client_ca, &cert, &key).map_err(|error| crate::log::chain(&error))
        });
    let config = match config {
        Ok(config) => config,
        Err(error) => return crate::log::error!("api on {address}: {error}"),
    };
    match TcpListener::bind(address).await {
        Ok(listener) => {
            tokio::spawn(server::listen::serve_tls(listener, config, api.clone()));
            crate::log::info!("api ready on {address}");
        }
        Err(error) => crate::log::error!("api on {address}: {error}"),
    }
}

/// Keeps the clock true, when the network names a time server.
async fn keep_time(mut status: watch::Receiver<net_host::Status>) {
    loop {
        let servers = status.borrow_and_update().ntp.clone();
        let mut wait = CLOCK_RETRY;
        for server in servers {
            let Ok(sample) = sntp::query(SocketAddr::new(server, 123)).await else { continue };
            match sntp::adjust(&sample) {
                Ok(_) => wait = CLOCK_INTERVAL,
                Err(error) => crate::log::warning!("clock: {error}, continuing"),
            }
            break;
        }
        let _ = tokio::time::timeout(wait, status.changed()).await;
    }
}
