//! What sends one request or message and waits for its answer, as cheaply as may be: it shares the machine with what it
//! measures.

use anyhow::{Context, Result, ensure};
use async_nats::jetstream;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::load::{NatsMode, Target};

/// One client of a target.
pub(crate) enum Client {
    Http(HttpClient),
    Nats(Box<NatsClient>),
}

impl Client {
    /// The first client of a thread. HTTP connects with the first request.
    pub(crate) async fn connect(target: &Target) -> Result<Self> {
        match target {
            Target::Http { url } => Ok(Self::Http(HttpClient::new(url)?)),
            Target::Nats { url, subject, mode } => {
                let client = async_nats::connect(url).await.with_context(|| format!("cannot connect to {url}"))?;
                let jetstream = jetstream::new(client.clone());
                Ok(Self::Nats(Box::new(NatsClient { client, jetstream, subject: subject.clone(), mode: *mode })))
            }
        }
    }

    /// A further one: over HTTP a connection of its own, over NATS the same.
    pub(crate) fn another(&self) -> Self {
        match self {
            Self::Http(client) => Self::Http(client.another()),
            Self::Nats(client) => Self::Nats(client.clone()),
        }
    }

    /// Sends the JSON and waits until it is acknowledged. The error is short: equal ones are counted.
    pub(crate) async fn send(&mut self, body: &[u8]) -> Result<(), String> {
        match self {
            Self::Http(client) => client.post(body).await,
            Self::Nats(client) => client.send(Bytes::copy_from_slice(body)).await,
        }
    }

    /// Waits until all that was published has left.
    pub(crate) async fn flush(&self) -> Result<()> {
        match self {
            Self::Http(_) => Ok(()),
            Self::Nats(client) => Ok(client.client.flush().await?),
        }
    }
}

#[derive(Clone)]
pub(crate) struct NatsClient {
    client: async_nats::Client,
    jetstream: jetstream::Context,
    subject: String,
    mode: NatsMode,
}

impl NatsClient {
    async fn send(&self, body: Bytes) -> Result<(), String> {
        let subject = self.subject.clone();
        match self.mode {
            NatsMode::Publish => self.client.publish(subject, body).await.map_err(|error| error.to_string()),
            NatsMode::Request => {
                let reply = self.client.request(subject, body).await.map_err(|error| error.to_string())?;
                let status = reply.headers.as_ref().and_then(|headers| headers.get("Nats-Service-Error-Code"));
                status.map_or(Ok(()), |status| Err(status.to_string()))
            }
            NatsMode::Jetstream => {
                let ack = self.jetstream.publish(subject, body).await.map_err(|error| error.to_string())?;
                ack.await.map(drop).map_err(|error| error.to_string())
            }
        }
    }
}

/// One connection that is kept alive, and opened again after an error.
pub(crate) struct HttpClient {
    /// Host and port.
    authority: String,
    path: Uri,
    host: HeaderValue,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl HttpClient {
    /// `url` is `http://HOST:PORT/PATH`.
    pub(crate) fn new(url: &str) -> Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("no URL: {url}"))?;
        ensure!(uri.scheme_str() == Some("http"), "only http:// is measured, not {url}");
        let host = uri.host().with_context(|| format!("no host in {url}"))?;
        let authority = format!("{host}:{}", uri.port_u16().unwrap_or(80));
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
        Ok(Self { host: authority.parse()?, authority, path, connection: None })
    }

    fn another(&self) -> Self {
        Self { authority: self.authority.clone(), path: self.path.clone(), host: self.host.clone(), connection: None }
    }

    async fn post(&mut self, body: &[u8]) -> Result<(), String> {
        let request = Request::post(self.path.clone())
            .header(HOST, self.host.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(Full::new(Bytes::copy_from_slice(body)))
            .map_err(|error| error.to_string())?;
        match self.exchange(request, |_| {}).await? {
            200..300 => Ok(()),
            status => Err(status.to_string()),
        }
    }

    /// `GET` of a path: hands over the parts of the body as they come, and returns the status.
    pub(crate) async fn get(&mut self, path: &str, take: impl FnMut(Bytes)) -> Result<u16, String> {
        let request = Request::get(path).header(HOST, self.host.clone()).body(Full::default());
        self.exchange(request.map_err(|error| error.to_string())?, take).await
    }

    /// Sends the request and reads the answer to its end. Returns the status.
    async fn exchange(&mut self, request: Request<Full<Bytes>>, mut take: impl FnMut(Bytes)) -> Result<u16, String> {
        let mut connection = match self.connection.take() {
            Some(connection) if !connection.is_closed() => connection,
            _ => self.open().await.map_err(|error| error.to_string())?,
        };
        connection.ready().await.map_err(|error| error.to_string())?;
        let response = connection.send_request(request).await.map_err(|error| error.to_string())?;
        let (head, mut body) = response.into_parts();
        while let Some(frame) = body.frame().await {
            if let Ok(part) = frame.map_err(|error| error.to_string())?.into_data() {
                take(part);
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
