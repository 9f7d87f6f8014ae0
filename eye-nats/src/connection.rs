//! The connection to a NATS server or cluster: its settings, credentials and state.
//!
//! [`ConnectionSettings`] are the keys that every configuration of a NATS server has. A [`Connector`] makes a client of them
//! that reconnects for as long as it lives; [`watch`] reports each [`ConnectionEvent`]. No message contains a secret: the
//! credentials are cut from the URLs before the client library, which logs URLs, gets them.

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
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// Longest wait for a round trip to the server.
const ROUND_TRIP_TIMEOUT: Duration = Duration::from_secs(2);

/// Interval of pings. The client library closes a connection after 3 unanswered ones.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Longest wait for an answer of the server. Below the default `shutdown_timeout_s`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Received messages that one subscription may queue. Larger than any pull request. The client library drops messages
/// beyond it.
pub const SUBSCRIPTION_CAPACITY: usize = 10_240;

/// A text that `Debug` hides. Empty: none.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "hidden" })
    }
}

/// The URL of a server, or the URLs of a cluster's servers. User, password and token are kept apart from the addresses,
/// because the client library logs addresses.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ServerUrls {
    addresses: Vec<ServerAddr>,
    user: String,
    secret: Secret,
}

impl TryFrom<String> for ServerUrls {
    type Error = &'static str;

    /// Parses a comma-separated list. The errors never quote the URL: it may contain a password.
    fn try_from(urls: String) -> Result<Self, Self::Error> {
        let mut all = Self { addresses: Vec::new(), user: String::new(), secret: Secret::default() };
        for url in urls.split(',') {
            let (address, user, secret) = parse(url)?;
            all.addresses.push(address);
            let (credentials, none) = ((user.as_str(), secret.0.as_str()), ("", ""));
            if all.user_and_secret() == none {
                (all.user, all.secret) = (user, secret);
            } else if credentials != none && credentials != all.user_and_secret() {
                return Err("the servers of a cluster must have one user and password, or one token, for all");
            }
        }
        Ok(all)
    }
}

/// Parses one URL into address, user, and password or token.
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

/// The address and credentials of a server: the keys that every configuration of a NATS server has.
#[derive(Clone, Debug)]
pub struct ConnectionSettings {
    /// `nats://HOST:PORT` or `tls://HOST:PORT`; several servers of a cluster are separated by commas. User and password, or
    /// a token, may stand in it.
    pub url: ServerUrls,
    /// A file with a JWT and its key, as `nsc` writes it. Empty: none.
    pub credentials_file: String,
    /// Empty: none.
    pub token: Secret,
    /// With `password`, an alternative to the URL. Empty: none.
    pub user: String,
    /// The password of `user`.
    pub password: Secret,
    /// A PEM file with the certificate authorities of the server's certificate. Empty: those of the system.
    pub ca_file: String,
}

/// Copies the connection keys of a configuration into [`ConnectionSettings`].
///
/// The keys are fields of each `…Config` and not a shared flattened struct: `#[serde(flatten)]` hides field names from the
/// configuration reader, which could not report unknown keys then.
#[macro_export]
macro_rules! connection_settings {
    ($config:expr) => {
        $crate::connection::ConnectionSettings {
            url: $config.url.clone(),
            credentials_file: $config.credentials_file.clone(),
            token: $config.token.clone(),
            user: $config.user.clone(),
            password: $config.password.clone(),
            ca_file: $config.ca_file.clone(),
        }
    };
}

impl ConnectionSettings {
    /// Checks that at most one kind of credentials is set.
    ///
    /// # Errors
    /// [`BuildError`] when there is more than one.
    pub fn check(&self) -> Result<(), BuildError> {
        let credentials = [
            self.url.user_and_secret() != ("", ""),
            self.user_and_password() != ("", ""),
            !self.token.0.is_empty(),
            !self.credentials_file.is_empty(),
        ];
        if credentials.iter().filter(|is_set| **is_set).count() > 1 {
            let choices = "in the URL, or `user` and `password`, or `token`, or `credentials_file`";
            return Err(BuildError::new(format!("more than one way to log in: choose one of {choices}")));
        }
        Ok(())
    }

    fn user_and_password(&self) -> (&str, &str) {
        (&self.user, &self.password.0)
    }
}

/// Makes a client for a server or a cluster.
pub struct Connector {
    addresses: Vec<ServerAddr>,
    options: ConnectOptions,
}

/// A change of the connection.
#[derive(Debug, PartialEq, Eq)]
pub enum ConnectionEvent {
    /// The connection is established, and the server has processed everything that was sent before, such as subscriptions.
    Connected,
    /// The connection was lost. The client reconnects by itself.
    Lost,
    /// The connection cannot be established, or the server refuses a subscription. Holds the reason.
    Failed(String),
    /// The client library dropped a message, because its subscription's queue was full.
    MessageDropped,
}

impl Connector {
    /// Reads the files that `settings` names. Does not connect.
    ///
    /// # Errors
    /// [`BuildError`] when a file cannot be read or holds no credentials.
    pub async fn new(settings: &ConnectionSettings) -> Result<Self, BuildError> {
        let url = &settings.url;
        let (of_url, of_keys) = (url.user_and_secret(), settings.user_and_password());
        let token = settings.token.0.as_str();
        let mut options = ConnectOptions::new()
            .name("eye")
            .retry_on_initial_connect()
            .ping_interval(PING_INTERVAL)
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .request_timeout(Some(REQUEST_TIMEOUT))
            // For all servers: a cluster announces further ones by address, without a scheme.
            .require_tls(url.addresses.iter().any(ServerAddr::tls_required));
        for (user, secret) in [of_url, of_keys, ("", token)] {
            options = match (user, secret) {
                ("", "") => options,
                ("", token) => options.token(token.to_owned()),
                (user, password) => options.user_and_password(user.to_owned(), password.to_owned()),
            };
        }
        if !settings.credentials_file.is_empty() {
            // The library's errors might quote the file.
            let content = read("credentials_file", &settings.credentials_file).await?;
            options = options.credentials(&content).map_err(|_| {
                let file = &settings.credentials_file;
                BuildError::at("credentials_file", format!("{file} does not hold a JWT and a key as `nsc` writes them"))
            })?;
        }
        if !settings.ca_file.is_empty() {
            read("ca_file", &settings.ca_file).await?;
            options = options.add_root_certificates(settings.ca_file.as_str().into());
        }
        Ok(Self { addresses: url.addresses.clone(), options })
    }

    /// Starts to connect in the background, and reconnects for as long as the client lives. Returns the client, which can be
    /// used at once, and the library's events for [`watch`].
    ///
    /// # Errors
    /// [`ConnectError`] when the client library refuses the address.
    pub async fn connect(self) -> Result<(Client, mpsc::Receiver<Event>), ConnectError> {
        // The library drops events that do not fit, and waits for none.
        let (events, received) = mpsc::channel(1);
        let (failed, events) = (events.clone(), Arc::new(events));
        let options = self.options.event_callback(move |event| {
            let events = events.clone();
            async move {
                if !lacks_cause(&event) {
                    drop(events.send(event).await);
                }
            }
        });
        // Called before each attempt. It only reads the errors of the last one; the library chooses the server.
        let options = options.reconnect_to_server_callback(move |servers, _| {
            if let Some(reason) = last_errors(servers) {
                // If the channel is full, the next attempt reports it.
                let _ = failed.try_send(Event::ClientError(ClientError::Other(reason)));
            }
            std::future::ready(None)
        });
        Ok((options.connect(self.addresses).await?, received))
    }

    /// Returns host and port of each server, for messages.
    pub fn name(&self) -> String {
        let name = |address: &ServerAddr| format!("{}:{}", address.host(), address.port());
        self.addresses.iter().map(name).collect::<Vec<_>>().join(", ")
    }
}

/// Returns true for an error that has only a kind; [`last_errors`] has its cause.
fn lacks_cause(event: &Event) -> bool {
    matches!(event, Event::ClientError(ClientError::Other(kind)) if ["IO error", "TLS error", "timed out"].contains(&&**kind))
}

/// Returns the reasons of failed attempts, each once.
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

/// Calls `on_event` for each change of the connection, for as long as the client lives.
pub async fn watch(
    client: Client,
    mut events: mpsc::Receiver<Event>,
    name: String,
    mut on_event: impl FnMut(ConnectionEvent) + Send,
) {
    let mut is_new = false;
    let mut is_error_logged = false;
    while let Some(event) = events.recv().await {
        match event {
            Event::Connected => {
                round_trip(&client).await;
                is_new = true;
                is_error_logged = false;
            }
            Event::Disconnected => {
                is_new = false;
                on_event(ConnectionEvent::Lost);
            }
            Event::ClientError(error) => {
                let error = error.to_string();
                let error = error.strip_prefix("nats: ").unwrap_or(&error);
                on_event(ConnectionEvent::Failed(format!("no connection to {name}: {error}")));
            }
            Event::ServerError(ServerError::Other(error)) if error.contains("for Subscription to") => {
                is_new = false;
                on_event(ConnectionEvent::Failed(format!("{name} answers: {error}")));
            }
            // The server may report an error for each message. One log line for each connection is enough.
            Event::ServerError(_) if is_error_logged => {}
            Event::ServerError(error) => {
                is_error_logged = true;
                tracing::warn!(server = name, %error, "the NATS server reports an error");
            }
            Event::SlowConsumer(_) => on_event(ConnectionEvent::MessageDropped),
            Event::LameDuckMode | Event::Draining | Event::Closed => {}
        }
        // Events that arrived during the round trip are newer.
        if is_new && events.is_empty() {
            is_new = false;
            on_event(ConnectionEvent::Connected);
        }
    }
}

/// Runs [`watch`] on a task for a user that only needs the connection's state. Returns true in the receiver while connected, and
/// calls `on_unavailable` with each reason. A dropped message is of no concern where it was not acknowledged.
pub fn watch_state(
    client: Client,
    events: mpsc::Receiver<Event>,
    name: String,
    mut on_unavailable: impl FnMut(String) + Send + 'static,
) -> (watch::Receiver<bool>, AbortOnDropHandle<()>) {
    let (is_connected, connection) = watch::channel(false);
    let on_event = move |event| match event {
        ConnectionEvent::Connected => drop(is_connected.send_replace(true)),
        ConnectionEvent::Lost => {
            // First: what was found on the lost connection is no longer reported after this.
            is_connected.send_replace(false);
            on_unavailable("the connection was lost".to_owned());
        }
        ConnectionEvent::Failed(reason) => on_unavailable(reason),
        ConnectionEvent::MessageDropped => {}
    };
    (connection, AbortOnDropHandle::new(tokio::spawn(watch(client, events, name, on_event))))
}

/// Waits until the server has processed everything that was sent so far. The server answers this request at once that it has
/// no responders. Without permission to publish, the wait ends by its timeout.
async fn round_trip(client: &Client) {
    let _ = timeout(ROUND_TRIP_TIMEOUT, client.request(client.new_inbox(), "".into())).await;
}

/// Waits until published messages are written to the socket, 2 s at most. Returns at once while disconnected.
pub async fn flush(client: &Client) {
    if client.connection_state() == State::Connected {
        let _ = timeout(ROUND_TRIP_TIMEOUT, client.flush()).await;
    }
}
