//! Errors as statuses and texts: the one place where a refusal becomes an HTTP answer. Exhaustive, so that a new
//! variant cannot be forgotten.

use berth_image::{
    AuthorError, FindError, LoadError, PullError, Reference, ReferenceError, RegistryError, RemoveError,
    SaveError, StoreError,
};
use hyper::{Response, StatusCode};

use super::respond::{self, Body};
use crate::command::Refusal;

/// An answer of 304 or of 400 and more, in Docker's form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// 400.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 409.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// 500, also for what the reference engine answers so though the client is to blame.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 501.
    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, message)
    }

    /// The answer to a route that does not exist.
    pub(crate) fn no_such_page() -> Self {
        Self::not_found("page not found")
    }

    /// The answer.
    pub(crate) fn into_response(self) -> Response<Body> {
        respond::json(self.status, &berth_api::error::ErrorBody { message: self.message })
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotFound(text) => Self::not_found(text),
            Refusal::Conflict(text) => Self::conflict(text),
            Refusal::Invalid(text) => Self::invalid(text),
            Refusal::Forbidden(text) => Self::new(StatusCode::FORBIDDEN, text),
            Refusal::Failed(text) => Self::failed(text),
            Refusal::Unsupported(text) => Self::unsupported(text),
            Refusal::Unavailable(text) => Self::new(StatusCode::SERVICE_UNAVAILABLE, text),
        }
    }
}

/// No image, or several, for what a client typed. Docker tells names in full, with the tag it assumed.
pub(crate) fn no_image(typed: &str, error: &FindError) -> ApiError {
    match error {
        FindError::NotFound(_) => {
            let full = typed.parse::<Reference>().map_or_else(|_| typed.to_owned(), |name| name.familiar());
            ApiError::not_found(format!("No such image: {full}"))
        }
        FindError::Ambiguous(_) => ApiError::failed(error.to_string()),
    }
}

/// A text that is no name of an image.
pub(crate) fn bad_reference(error: ReferenceError) -> ApiError {
    match error {
        // Docker names the repository as it is on Docker Hub.
        ReferenceError::UpperCase(name) if !name.contains('/') => {
            ApiError::invalid(ReferenceError::UpperCase(format!("library/{name}")).to_string())
        }
        ReferenceError::Format
        | ReferenceError::UpperCase(_)
        | ReferenceError::Identifier(_)
        | ReferenceError::TooLong => ApiError::invalid(error.to_string()),
    }
}

/// A store that could not do it.
pub(crate) fn store(error: &StoreError) -> ApiError {
    match error {
        StoreError::NoSuchImage(name) => ApiError::not_found(format!("No such image: {name}")),
        StoreError::Locked(_) | StoreError::Format(_) | StoreError::Io { .. } => {
            ApiError::failed(chain(error))
        }
    }
}

/// An image that cannot be removed.
pub(crate) fn remove_image(typed: &str, error: &RemoveError) -> ApiError {
    match error {
        RemoveError::Find(error) => no_image(typed, error),
        RemoveError::ManyNames(_)
        | RemoveError::Referenced { .. }
        | RemoveError::Stopped { .. }
        | RemoveError::Running { .. } => ApiError::conflict(error.to_string()),
        RemoveError::Store(error) => store(error),
    }
}

/// A pull that failed.
pub(crate) fn pull(error: &PullError) -> ApiError {
    let status = match error {
        PullError::NotFound { .. } | PullError::Denied { .. } | PullError::NoPlatform { .. } => {
            StatusCode::NOT_FOUND
        }
        PullError::Unauthorized { .. } => StatusCode::UNAUTHORIZED,
        PullError::TooManyRequests { .. } => StatusCode::TOO_MANY_REQUESTS,
        PullError::Unreachable { .. }
        | PullError::Manifest { .. }
        | PullError::Config { .. }
        | PullError::Content(_)
        | PullError::Unpack { .. }
        | PullError::NoSpace(_)
        | PullError::Store(_)
        | PullError::Cancelled => StatusCode::INTERNAL_SERVER_ERROR,
    };
    ApiError::new(status, chain(error))
}

/// A registry that refuses a question, or does not answer.
pub(crate) fn registry(error: &RegistryError) -> ApiError {
    let status = match error {
        RegistryError::Unauthorized { .. } => StatusCode::UNAUTHORIZED,
        RegistryError::Denied { .. } => StatusCode::FORBIDDEN,
        RegistryError::NotFound { .. } => StatusCode::NOT_FOUND,
        RegistryError::TooManyRequests { .. } => StatusCode::TOO_MANY_REQUESTS,
        RegistryError::Resolve { .. }
        | RegistryError::Connect { .. }
        | RegistryError::Timeout { .. }
        | RegistryError::Protocol { .. }
        | RegistryError::Refused { .. }
        | RegistryError::Status { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    };
    ApiError::new(status, chain(error))
}

/// A registry that does not take credentials, or was not asked.
pub(crate) fn log_in(registry: &str, error: &RegistryError) -> ApiError {
    let ApiError { status, message } = self::registry(error);
    match error {
        RegistryError::Unauthorized { .. } => ApiError::new(
            status,
            format!("login attempt to {registry} failed with status: 401 Unauthorized: {message}"),
        ),
        _ => ApiError::new(status, format!("login attempt to {registry} failed: {message}")),
    }
}

/// An archive that cannot be loaded.
pub(crate) fn load(error: &LoadError) -> ApiError {
    match error {
        LoadError::Archive(_) | LoadError::Layout { .. } | LoadError::Json { .. } => {
            ApiError::invalid(chain(error))
        }
        LoadError::Image(error) => pull(error),
    }
}

/// Images that cannot be saved.
pub(crate) fn save(error: &SaveError) -> ApiError {
    match error {
        SaveError::Find(FindError::NotFound(_)) => ApiError::not_found(error.to_string()),
        SaveError::Find(FindError::Ambiguous(_))
        | SaveError::Inexact(_)
        | SaveError::Damaged(_)
        | SaveError::Write(_) => ApiError::failed(chain(error)),
        SaveError::Store(error) => store(error),
    }
}

/// An image that cannot be made.
pub(crate) fn author(error: &AuthorError) -> ApiError {
    match error {
        AuthorError::Layer(error) => pull(error),
        AuthorError::TooManyLayers => ApiError::invalid(error.to_string()),
        AuthorError::NoParent(_) => ApiError::not_found(error.to_string()),
        AuthorError::Config(_) => ApiError::failed(chain(error)),
        AuthorError::Store(error) => store(error),
    }
}

/// An error and its causes in one line, for messages.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
