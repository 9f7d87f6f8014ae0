//! The connection to a NATS server: who we are, and how it is.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ClientError, ConnectError, ConnectOptions, Event, ServerAddr, ServerError};
use eye_core::error::BuildError;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long the server may take to say that it has heard everything.
const ROUND_TRIP_TIMEOUT: Duration = Duration::from_secs(2);

/// A server that is silent for three of these is given up.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// How long an answer of the server may take. Less than a shutdown may.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Messages that wait for their reader, of one subscription; more than are asked for at once of any stream. Beyond, the
/// client library drops what comes.
pub const SUBSCRIPTION_CAPACITY: usize = 10_240;

/// A text that is not shown. Empty: none.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "hidden" })
    }
}

/// The server's URL, or those of a cluster's servers, apart from what was in them of user, password or token: the client
/// library logs URLs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ServerUrls {
    addresses: Vec<ServerAddr>,
    user: String,
    secret: Secret,
}

impl TryFrom<String> for ServerUrls {
    type Error = &'static str;

    /// The messages do not quote the URL: it may hold a password.
    fn try_from(urls: String) -> Result<Self, Self::Error> {
        let mut all = Self { addresses: Vec::new(), user: String::new(), secret: Secret::default() };
        for url in urls.split(',') {
            let (address, user, secret) = parse(url)?;
            all.addresses.push(address);
            let (login, none) = ((user.as_str(), secret.0.as_str()), ("", ""));
            if all.user_and_secret() == none {
                (all.user, all.secret) = (user, secret);
            } else if login != none && login != all.user_and_secret() {
                return Err("the servers of a cluster must have one user and password, or one token, for all");
            }
        }
        Ok(all)
    }
}

/// One server's address, user, and password or token.
fn parse(url: &str) -> Result<(ServerAddr, String, Secret), &'static str> {
    const FORM: &str = "the URL must be `nats://HOST:PORT` or `tls://HOST:PORT`, with `USER:PASSWORD@` or `TOKEN@` \
                        before the host where the server asks for it; several of a cluster are separated by commas";
    let url = url.trim();
    if !["nats://", "tls://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err(FORM);
    }
    let mut url = url.parse::<ServerAddr>().map_err(|_| FORM)?.into_inner();
    let is_bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
    if !url.has_host() || !is_bare {
        return Err(FORM);
    }
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().map(String::from).map_err(|_| FORM);
    let (user, secret) = match (decoded(url.username())?, url.password()) {
        (token, None) => (String::new(), token),
        (user, Some(password)) => (user, decoded(password)?),
    };
    url.set_username("").and_then(|()| url.set_password(None)).map_err(|()| FORM)?;
    let address = ServerAddr::from_url(url).map_err(|_| FORM)?;
    Ok((address, user, Secret(secret)))
}

impl ServerUrls {
    fn user_and_secret(&self) -> (&str, &str) {
        (&self.user, &self.secret.0)
    }
}

/// Where the server is, who we are, and whom we trust: the keys that every configuration of a server has.
#[derive(Clone, Debug)]
pub struct Login {
    /// Where the server is: `nats://HOST:PORT`, or `tls://HOST:PORT`; several of a cluster are separated by commas. User and
    /// password, or a token, may be in it.
    pub url: ServerUrls,
    /// A file with a JWT and its key, as `nsc` makes it. Empty: none.
    pub credentials_file: String,
    /// Empty: none.
    pub token: Secret,
    /// With `password`, where they are not in the URL. Empty: none.
    pub user: String,
    /// Of `user`.
    pub password: Secret,
    /// A PEM file with the certificates that the server's must be signed by. Empty: those of the system.
    pub ca_file: String,
}

impl Login {
    /// Whether there is at most one way to log in.
    ///
    /// # Errors
    /// When there is more than one.
    pub fn check(&self) -> Result<(), BuildError> {
        let ways = [
            self.url.user_and_secret() != ("", ""),
            self.user_and_password() != ("", ""),
            !self.token.0.is_empty(),
            !self.credentials_file.is_empty(),
        ];
        if ways.iter().filter(|is_taken| **is_taken).count() > 1 {
            let ways = "in the URL, or `user` and `password`, or `token`, or `credentials_file`";
            return Err(BuildError::new(format!("more than one way to log in: choose one of {ways}")));
        }
        Ok(())
    }

    fn user_and_password(&self) -> (&str, &str) {
        (&self.user, &self.password.0)
    }
}

/// A server that can be connected to, or a cluster.
pub struct Server {
    addresses: Vec<ServerAddr>,
    options: ConnectOptions,
}

/// What happened to a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// It is there, and the server has heard everything that was said before.
    Connected,
    /// It was there, and is not any more.
    Lost,
    /// It cannot be made, or is of no use: why.
    Failed(String),
    /// A message came while there was no place left to keep it until it is read.
    Dropped,
}

impl Server {
    /// Reads the files that `login` names. Connects to nothing yet.
    ///
    /// # Errors
    /// When a file is of no use.
    pub async fn new(login: &Login) -> Result<Self, BuildError> {
        let url = &login.url;
        let (of_url, of_keys) = (url.user_and_secret(), login.user_and_password());
        let token = login.token.0.as_str();
        let mut options = ConnectOptions::new()
            .name("eye")
            .retry_on_initial_connect()
            .ping_interval(PING_INTERVAL)
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .request_timeout(Some(REQUEST_TIMEOUT))
            // Of all: the servers of a cluster tell of others by address alone.
            .require_tls(url.addresses.iter().any(ServerAddr::tls_required));
        for (user, secret) in [of_url, of_keys, ("", token)] {
            options = match (user, secret) {
                ("", "") => options,
                ("", token) => options.token(token.to_owned()),
                (user, password) => options.user_and_password(user.to_owned(), password.to_owned()),
            };
        }
        if !login.credentials_file.is_empty() {
            // The library's errors might quote the file.
            let content = read("credentials_file", &login.credentials_file).await?;
            options = options.credentials(&content).map_err(|_| {
                let file = &login.credentials_file;
                BuildError::at("credentials_file", format!("{file} does not hold a JWT and a key as `nsc` writes them"))
            })?;
        }
        if !login.ca_file.is_empty() {
            read("ca_file", &login.ca_file).await?;
            options = options.add_root_certificates(login.ca_file.as_str().into());
        }
        Ok(Self { addresses: url.addresses.clone(), options })
    }

    /// Starts to connect, again and again where it must: a client that can be used at once, and what happens to it.
    ///
    /// # Errors
    /// When the client library refuses the address.
    pub async fn connect(self) -> Result<(Client, mpsc::Receiver<Event>), ConnectError> {
        // Where events come faster than they are read, the library drops some.
        let (events, received) = mpsc::channel(1);
        let (failed, events) = (events.clone(), Arc::new(events));
        let options = self.options.event_callback(move |event| {
            let events = events.clone();
            async move {
                if !is_vague(&event) {
                    drop(events.send(event).await);
                }
            }
        });
        // Asked before each attempt where to connect, which it leaves to the library.
        let options = options.reconnect_to_server_callback(move |servers, _| {
            if let Some(reason) = last_errors(servers) {
                // Where there is no place, the next attempt tells.
                let _ = failed.try_send(Event::ClientError(ClientError::Other(reason)));
            }
            std::future::ready(None)
        });
        Ok((options.connect(self.addresses).await?, received))
    }

    /// Host and port of each, for messages.
    pub fn name(&self) -> String {
        let name = |address: &ServerAddr| format!("{}:{}", address.host(), address.port());
        self.addresses.iter().map(name).collect::<Vec<_>>().join(", ")
    }
}

/// Whether it is an error of which the library tells the kind alone; [`last_errors`] has all of it.
fn is_vague(event: &Event) -> bool {
    matches!(event, Event::ClientError(ClientError::Other(kind)) if ["IO error", "TLS error", "timed out"].contains(&&**kind))
}

/// Why the servers could not be connected to, each reason once.
fn last_errors(servers: Vec<async_nats::Server>) -> Option<String> {
    let errors = servers.into_iter().filter_map(|server| server.last_error);
    let reasons: BTreeSet<_> = errors.map(|error| error.trim_start_matches("IO error: ").to_owned()).collect();
    (!reasons.is_empty()).then(|| Vec::from_iter(reasons).join("; "))
}

async fn read(key: &str, file: &str) -> Result<String, BuildError> {
    let path = file.to_owned();
    let content = tokio::task::spawn_blocking(move || fs::read_to_string(path)).await;
    let content = content.expect("reading does not panic, and is not cancelled");
    content.map_err(|error| BuildError::at(key, format!("cannot read {file}: {error}")))
}

/// Tells `on_change` what happens to the connection, for as long as the client lives.
pub async fn watch(
    client: Client,
    mut events: mpsc::Receiver<Event>,
    name: String,
    mut on_change: impl FnMut(Change) + Send,
) {
    let mut is_new = false;
    let mut has_complained = false;
    while let Some(event) = events.recv().await {
        match event {
            Event::Connected => {
                round_trip(&client).await;
                is_new = true;
                has_complained = false;
            }
            Event::Disconnected => {
                is_new = false;
                on_change(Change::Lost);
            }
            Event::ClientError(error) => {
                let error = error.to_string();
                let error = error.strip_prefix("nats: ").unwrap_or(&error);
                on_change(Change::Failed(format!("no connection to {name}: {error}")));
            }
            Event::ServerError(ServerError::Other(error)) if error.contains("for Subscription to") => {
                is_new = false;
                on_change(Change::Failed(format!("{name} says: {error}")));
            }
            // It may complain about each message that we send. Once a connection is enough.
            Event::ServerError(_) if has_complained => {}
            Event::ServerError(error) => {
                has_complained = true;
                tracing::warn!(server = name, %error, "the NATS server complains");
            }
            Event::SlowConsumer(_) => on_change(Change::Dropped),
            Event::LameDuckMode | Event::Draining | Event::Closed => {}
        }
        // What was said during the round trip is newer.
        if is_new && events.is_empty() {
            is_new = false;
            on_change(Change::Connected);
        }
    }
}

/// Waits until the server has heard everything that was said so far. It answers at once that nobody listens to this
/// request; where it may not be made, the time is waited.
async fn round_trip(client: &Client) {
    let _ = timeout(ROUND_TRIP_TIMEOUT, client.request(client.new_inbox(), "".into())).await;
}

/// Waits until what was published is on its way, for a short time, and only where that is possible.
pub async fn flush(client: &Client) {
    if client.connection_state() == State::Connected {
        let _ = timeout(ROUND_TRIP_TIMEOUT, client.flush()).await;
    }
}
