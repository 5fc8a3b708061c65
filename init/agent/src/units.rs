//! Units: the `[[container]]` tables of the machine file, kept true. Each is an ordinary container with a label; it is
//! made when missing, made anew when its definition changed, and removed when the file names it no more.

use std::time::Duration;

use berth_image::{Platform, Reference};
use berth_net::host::Status;
use tokio::sync::watch;

use crate::command::{Create, Handle, Refusal, State, View};
use crate::config::{DEFINITION_LABEL, Unit};
use crate::host::Board;
use crate::images::Images;

/// First wait after a failure.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait: a registry that comes back is noticed within this time.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How long the first pull waits for the network: DHCP on a slow link. A machine without gateway pulls after it.
const ONLINE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a unit is not true yet.
#[derive(Debug, thiserror::Error)]
enum UnitError {
    /// The owner refused.
    #[error("{doing}")]
    Refused {
        /// What was wanted.
        doing: &'static str,
        /// Why not.
        #[source]
        source: Refusal,
    },
    /// The image cannot be had.
    #[error("pull {image}")]
    Pull {
        /// As typed.
        image: String,
        /// Why not.
        #[source]
        source: berth_image::PullError,
    },
    /// The image's name makes no sense; the machine file was checked, so this does not happen.
    #[error("image name")]
    Name(#[source] berth_image::ReferenceError),
    /// Somebody made a container of that name by hand.
    #[error("there is a container named {0} that is not this unit's; remove or rename it")]
    Taken(String),
}

/// Makes all units true, each in its own time, and removes what is no unit any more when `units` is all there is.
pub(crate) async fn run(
    units: Vec<Unit>,
    complete: bool,
    online: watch::Receiver<Status>,
    owner: Handle,
    images: Images,
    board: Board,
) {
    if complete {
        remove_former(&units, &owner).await;
    }
    for unit in units {
        let (owner, images, board, mut online) =
            (owner.clone(), images.clone(), board.clone(), online.clone());
        tokio::spawn(async move {
            if images.store().find(&unit.image).is_err() {
                board.unit(&unit.name, "waiting", "for the network", None);
                // Over or not, the pull says what is wrong.
                let _ = tokio::time::timeout(ONLINE_TIMEOUT, online.wait_for(Status::is_online)).await;
            }
            let mut wait = FIRST_WAIT;
            while let Err(error) = establish(&unit, &owner, &images, &board).await {
                let text = crate::log::chain(&error);
                crate::log::error!("unit {}: {text}; next try in {} s", unit.name, wait.as_secs());
                board.unit(&unit.name, "failed", &text, None);
                tokio::time::sleep(wait).await;
                wait = wait.saturating_mul(2).min(LONGEST_WAIT);
            }
        });
    }
}

async fn remove_former(units: &[Unit], owner: &Handle) {
    let Ok(all) = owner.list().await else { return };
    for view in all {
        let former = view.unit.as_ref().is_some_and(|name| !units.iter().any(|unit| unit.name == *name));
        if !former {
            continue;
        }
        crate::log::info!("unit {} is not in the machine file any more, removing its container", view.name);
        if let Err(error) = remove(owner, &view).await {
            crate::log::warning!("{}, continuing", crate::log::chain(&error));
        }
    }
}

/// Makes one unit true.
async fn establish(unit: &Unit, owner: &Handle, images: &Images, board: &Board) -> Result<(), UnitError> {
    let refused = |doing| move |source| UnitError::Refused { doing, source };
    let mut present = match owner.view(&unit.name).await {
        Ok(view) => Some(view),
        Err(Refusal::NotFound(_)) => None,
        Err(source) => return Err(UnitError::Refused { doing: "look for the container", source }),
    };
    if let Some(view) = &present {
        if view.unit.as_deref() != Some(unit.name.as_str()) {
            return Err(UnitError::Taken(unit.name.clone()));
        }
        let labels = view.config.labels.as_ref();
        if labels.and_then(|labels| labels.get(DEFINITION_LABEL)) != Some(&unit.definition) {
            crate::log::info!("unit {} changed, making its container anew", unit.name);
            ensure_image(unit, images, owner, board).await?;
            remove(owner, view).await?;
            present = None;
        }
    }
    let id = if let Some(view) = &present {
        view.id.clone()
    } else {
        ensure_image(unit, images, owner, board).await?;
        let create = Create {
            name: Some(unit.name.clone()),
            image: unit.image.clone(),
            docker: unit.docker.clone(),
            unit: Some(unit.name.clone()),
        };
        owner.create(create).await.map_err(refused("create the container"))?.id
    };
    let untouched = present.is_none_or(|view| matches!(view.state, State::Created { .. }));
    if untouched {
        board.unit(&unit.name, "starting", "", Some(id.clone()));
        owner.start(&id).await.map_err(refused("start the container"))?;
    }
    board.unit(&unit.name, "running", "", Some(id));
    Ok(())
}

async fn remove(owner: &Handle, view: &View) -> Result<(), UnitError> {
    let refused = |doing| move |source| UnitError::Refused { doing, source };
    owner.stop(&view.id, None, None).await.map_err(refused("stop the former container"))?;
    owner.remove(&view.id, true, false).await.map_err(refused("remove the former container"))
}

async fn ensure_image(unit: &Unit, images: &Images, owner: &Handle, board: &Board) -> Result<(), UnitError> {
    if images.store().find(&unit.image).is_ok() {
        return Ok(());
    }
    board.unit(&unit.name, "pulling", "", None);
    crate::log::info!("unit {}: pulling {}", unit.name, unit.image);
    let reference: Reference = unit.image.parse().map_err(UnitError::Name)?;
    let pulled = images.pull(owner, &reference, &Platform::host(), None, None).await;
    pulled.map_err(|source| UnitError::Pull { image: unit.image.clone(), source })?;
    crate::log::info!("unit {}: pulled {}", unit.name, unit.image);
    Ok(())
}
