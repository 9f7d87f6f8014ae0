//! The HTTP endpoints over stores, accounting and health.
//!
//! Each module makes the [`Mount`](eye_http::mount::Mount) of one endpoint: [`events`] answers queries, [`audit`] and
//! [`metrics`] show the accounting, [`health`] the components, and [`index`] names the paths.

pub mod audit;
pub mod events;
pub mod health;
pub mod index;
pub mod metrics;
