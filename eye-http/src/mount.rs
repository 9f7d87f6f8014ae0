//! Mounts: the endpoints that other crates add to the listener.
//!
//! A component registers each endpoint, a method of a path, as a [`Mount`] with [`Mounts`] while it is built. Several mounts
//! may share a path; a method that is taken is an error that names both owners. [`Mounts::router`] merges all mounts of a
//! path in `path_router`, the one place that every request passes: it sets `Allow` and answers `OPTIONS` and wrong methods.

use std::collections::BTreeMap;
use std::iter;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use tower::util::MapResponseLayer;

use crate::response::error;

/// The permission that a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// None.
    Public,
    /// To send events.
    Write,
    /// To read events.
    Read,
    /// To see and change everything else.
    Admin,
}

/// One endpoint: a method of a path.
#[derive(Clone, Debug)]
pub struct Mount {
    owner: String,
    path: &'static str,
    method: Method,
    scope: Scope,
    router: MethodRouter,
}

impl Mount {
    /// Creates the mount of `method` on `path`.
    ///
    /// `owner` is the component that registers it, such as `sources.web`; errors name it. `path` is in axum's syntax. If
    /// it ends with a slash, the path without the slash is served, too. `GET` includes `HEAD`, and `OPTIONS` is answered
    /// for every path. `scope` is the permission that a request needs. `router` serves
    /// this method and no other, as `axum::routing::get` and `post` make it.
    pub fn new(owner: &str, path: &'static str, method: Method, scope: Scope, router: MethodRouter) -> Self {
        Self { owner: owner.to_owned(), path, method, scope, router }
    }

    /// Returns the permission that a request needs.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// Returns the paths that the mount serves.
    fn paths(&self) -> impl Iterator<Item = &'static str> {
        let bare = self.path.strip_suffix('/').filter(|bare| !bare.is_empty());
        iter::once(self.path).chain(bare)
    }
}

/// Two mounts that serve one method of one path.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{other} serves {method} {path} already, so {owner} cannot: remove one of the two")]
pub struct MountError {
    /// The owner of the mount that was refused.
    pub owner: String,
    /// The owner of the mount that was registered before.
    pub other: String,
    /// The method that both serve.
    pub method: Method,
    /// The path that both serve.
    pub path: &'static str,
}

/// The mounts of one listener. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Mounts(Arc<Mutex<Vec<Mount>>>);

impl Mounts {
    /// Registers a mount.
    ///
    /// # Errors
    /// [`MountError`] when a method of its path is taken.
    pub fn add(&self, mount: Mount) -> Result<(), MountError> {
        let mut mounts = self.lock();
        for other in mounts.iter() {
            let shared = mount.paths().find(|path| other.paths().any(|taken| taken == *path));
            if let Some(path) = shared.filter(|_| mount.method == other.method) {
                let Mount { owner, method, .. } = mount;
                return Err(MountError { owner, other: other.owner.clone(), method, path });
            }
        }
        mounts.push(mount);
        Ok(())
    }

    /// Returns a router over all mounts registered so far. An unknown path gets 404 with `hint` at the end of its text.
    pub fn router(&self, hint: &'static str) -> Router {
        let mut paths: BTreeMap<&str, Vec<Mount>> = BTreeMap::new();
        for mount in self.lock().iter() {
            for path in mount.paths() {
                paths.entry(path).or_default().push(mount.clone());
            }
        }
        let not_found =
            async move |uri: Uri| error(StatusCode::NOT_FOUND, &format!("Not found: {}. {hint}", uri.path()));
        let router = Router::new().fallback(not_found);
        paths.into_iter().fold(router, |router, (path, mounts)| router.route(path, path_router(mounts)))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Mount>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the router of one path: all of its mounts, and around them everything that applies to each request for it.
fn path_router(mounts: Vec<Mount>) -> MethodRouter {
    let allow = HeaderValue::from_str(&allow(&mounts)).expect("methods are tokens, which headers may contain");
    let allowed = allow.clone();
    let other_method = async move |method: Method| match method {
        Method::OPTIONS => StatusCode::OK.into_response(),
        method => {
            let detail = format!("{method} is not allowed here; {} are.", allowed.to_str().unwrap_or_default());
            error(StatusCode::METHOD_NOT_ALLOWED, &detail)
        }
    };
    let set_allow = MapResponseLayer::new(move |mut response: Response| {
        response.headers_mut().insert(header::ALLOW, allow.clone());
        response
    });
    let merged = mounts.into_iter().fold(MethodRouter::new(), |merged, mount| merged.merge(mount.router));
    merged.fallback(other_method).layer(set_allow)
}

/// Returns the value of `Allow` for a path with these mounts.
fn allow(mounts: &[Mount]) -> String {
    const ORDER: [Method; 5] = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let mut methods: Vec<&Method> = mounts.iter().map(|mount| &mount.method).collect();
    methods.sort_by_key(|method| ORDER.iter().position(|known| known == *method).unwrap_or(ORDER.len()));
    let head = methods.contains(&&Method::GET).then_some(&Method::HEAD);
    let methods = methods.into_iter().chain(head).chain([&Method::OPTIONS]);
    methods.map(Method::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
