//! Clients that send one request or message at a time and wait for its acknowledgement.
//!
//! They do as little as possible, because they share the machine with the measured program. [`LoadClient`] is the client
//! of a load; [`HttpConnection`] is a single connection that the queries use, too.

use anyhow::{Context, Result, bail, ensure};
use async_nats::jetstream;
use bytes::Bytes;
use clap::ValueEnum;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The receiver of a load.
#[derive(Clone, Debug)]
pub(crate) enum LoadTarget {
    Http { url: String },
    Nats { url: String, subject: String, mode: NatsAckMode },
}

/// The acknowledgement of a NATS message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NatsAckMode {
    /// No acknowledgement: a published message counts as acknowledged
    Publish,
    /// Reply to a request
    Request,
    /// `PubAck` of a stream
    Jetstream,
}

/// One client of a target.
pub(crate) enum LoadClient {
    Http(HttpConnection),
    Nats(Box<NatsPublisher>),
}

impl LoadClient {
    /// Creates the first client of a thread. An HTTP client connects with its first request.
    pub(crate) async fn connect(target: &LoadTarget) -> Result<Self> {
        match target {
            LoadTarget::Http { url } => Ok(Self::Http(HttpConnection::new(url)?)),
            LoadTarget::Nats { url, subject, mode } => {
                let client = async_nats::connect(url).await.with_context(|| format!("cannot connect to {url}"))?;
                let jetstream = jetstream::new(client.clone());
                Ok(Self::Nats(Box::new(NatsPublisher { client, jetstream, subject: subject.clone(), mode: *mode })))
            }
        }
    }

    /// Creates another client: over HTTP with its own connection, over NATS on the same connection.
    pub(crate) fn another(&self) -> Self {
        match self {
            Self::Http(client) => Self::Http(client.another()),
            Self::Nats(client) => Self::Nats(client.clone()),
        }
    }

    /// Sends the JSON and waits until it is acknowledged.
    ///
    /// # Errors
    /// The status or the cause in a few words, so that equal errors can be counted.
    pub(crate) async fn send(&mut self, body: &[u8]) -> Result<(), String> {
        let body = Bytes::copy_from_slice(body);
        let result = match self {
            Self::Http(client) => client.post(body).await,
            Self::Nats(client) => client.send(body).await,
        };
        result.map_err(|error| error.to_string())
    }

    /// Waits until all published messages have left the client.
    pub(crate) async fn flush(&self) -> Result<()> {
        match self {
            Self::Http(_) => Ok(()),
            Self::Nats(client) => Ok(client.client.flush().await?),
        }
    }
}

/// A publisher of messages to one subject.
#[derive(Clone)]
pub(crate) struct NatsPublisher {
    client: async_nats::Client,
    jetstream: jetstream::Context,
    subject: String,
    mode: NatsAckMode,
}

impl NatsPublisher {
    async fn send(&self, body: Bytes) -> Result<()> {
        let subject = self.subject.clone();
        match self.mode {
            NatsAckMode::Publish => self.client.publish(subject, body).await?,
            NatsAckMode::Request => {
                let reply = self.client.request(subject, body).await?;
                if let Some(status) = reply.headers.and_then(|headers| headers.get("Nats-Service-Error-Code").cloned())
                {
                    bail!("{status}");
                }
            }
            NatsAckMode::Jetstream => drop(self.jetstream.publish(subject, body).await?.await?),
        }
        Ok(())
    }
}

/// An HTTP/1.1 connection that is kept alive and reopened after an error.
pub(crate) struct HttpConnection {
    /// Host and port.
    authority: String,
    path: Uri,
    host: HeaderValue,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl HttpConnection {
    /// Creates a connection that is not open yet. `url` is `http://HOST:PORT/PATH`.
    pub(crate) fn new(url: &str) -> Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url} is no URL"))?;
        ensure!(uri.scheme_str() == Some("http"), "{url} cannot be measured: the URL must start with http://");
        let host = uri.host().with_context(|| format!("{url} has no host"))?;
        let authority = format!("{host}:{}", uri.port_u16().unwrap_or(80));
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
        Ok(Self { host: authority.parse()?, authority, path, connection: None })
    }

    fn another(&self) -> Self {
        Self { authority: self.authority.clone(), path: self.path.clone(), host: self.host.clone(), connection: None }
    }

    async fn post(&mut self, body: Bytes) -> Result<()> {
        let request = Request::post(self.path.clone())
            .header(HOST, self.host.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(Full::new(body))?;
        match self.exchange(request, |_| {}).await? {
            200..300 => Ok(()),
            status => bail!("{status}"),
        }
    }

    /// Gets `path` and passes the parts of the body to `on_part`. Returns the status.
    pub(crate) async fn get(&mut self, path: &str, on_part: impl FnMut(Bytes)) -> Result<u16> {
        let request = Request::get(path).header(HOST, self.host.clone()).body(Full::default())?;
        self.exchange(request, on_part).await
    }

    /// Sends the request and reads the response to its end. Returns the status.
    async fn exchange(&mut self, request: Request<Full<Bytes>>, mut on_part: impl FnMut(Bytes)) -> Result<u16> {
        let mut connection = match self.connection.take() {
            Some(connection) if !connection.is_closed() => connection,
            _ => self.open().await?,
        };
        connection.ready().await?;
        let (head, mut body) = connection.send_request(request).await?.into_parts();
        while let Some(frame) = body.frame().await {
            if let Ok(part) = frame?.into_data() {
                on_part(part);
            }
        }
        self.connection = Some(connection);
        Ok(head.status.as_u16())
    }

    async fn open(&self) -> Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(&self.authority).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}
