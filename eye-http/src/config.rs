//! The `[server]` section of the configuration.

use eye_config::at_least_one;
use serde::de::{Error as _, Unexpected};
use serde::{Deserialize, Deserializer};

/// Settings below `[server]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct ServerConfig {
    /// Address and port to listen on. Default `127.0.0.1:8000`; port 0 takes a free one.
    #[serde(deserialize_with = "address_and_port")]
    pub listen: String,
    /// Connections open at once; further ones wait in the system's backlog. The default, 800, stays below the usual limit
    /// of 1,024 open files.
    #[serde(deserialize_with = "at_least_one")]
    pub max_connections: u32,
    /// Milliseconds for three waits: until a request's line and headers have arrived, until an idle connection is closed,
    /// and until a client reads more of an answer. Default 60 s.
    #[serde(deserialize_with = "at_least_one")]
    pub idle_timeout_ms: u64,
    /// Trusts `X-Forwarded-Proto` and `X-Forwarded-Host`; only behind a proxy that sets them. Default false.
    pub trust_proxy: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self { listen: "127.0.0.1:8000".to_owned(), max_connections: 800, idle_timeout_ms: 60_000, trust_proxy: false }
    }
}

/// Rejects text that is no address on any machine. A name such as `localhost` is resolved when the listener binds.
fn address_and_port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let listen = String::deserialize(deserializer)?;
    let valid = listen.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    // A custom error would have the value cut out of it, as a possible secret; the example may equal the value.
    let expected = "an address and a port, such as `127.0.0.1:8000`";
    if valid { Ok(listen) } else { Err(D::Error::invalid_value(Unexpected::Other("another text"), &expected)) }
}
